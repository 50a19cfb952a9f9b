"""Training on a few images as an arm of a study: several initial values on one draw of images."""

import statistics
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from stepwell.data import ImageSet, seed_of
from stepwell.data.image_flags import Images
from stepwell.flags import call
from stepwell.methods import Distill, Objective, Supervised
from stepwell.methods.netgraft import GraftLoss
from stepwell.nets import NestedNet, build
from stepwell.nets.files.nested import save
from stepwell.nets.grafting.surgery import Grafting, Start
from stepwell.recipes.distill import distill
from stepwell.recipes.graft_phases import Schedule, Stages, learn, views_of
from stepwell.tasks.classification import input_arguments, prepare, read_splits, start_network
from stepwell.tasks.measuring import finish
from stepwell.tasks.task import Task, open_task
from stepwell.teachers import open_teacher
from stepwell.training import Loop, fit, optimizer_of
from stepwell.training.optimisation import Optimisation

Method = Literal["netgraft", "kd", "labels"]
#: Distance between the seeds of a teacher and its students.
APART = 1000
TEMPERATURE = 4.0


def few_shots(
    *, out: Path, data: str, size: int | None, teacher: Path, student: str, shots: int, lr: float,
    method: Method = "netgraft", schedule: Schedule = "both", start: Start = "teacher",
    loss: GraftLoss = "direction", trace: bool = False, graft_steps: int = 300,
    join_steps: int = 300, batch_size: int = 64, views: int = 64, inits: int = 2, seed: int = 0,
    loop: Loop = Loop(),
) -> dict[str, Any]:  # fmt: skip
    """Train a student on a few images, once for each initial value.

    Args:
        out: a folder, for the runs.
        teacher: the file of its network.
        shots: images of each class, drawn by `seed` from the training part with its labels.
        method: `netgraft`, or one network from scratch, by its teacher's soft targets (`kd`) or by the
            `labels` of the images, in as many steps as both stages of grafting with copied blocks.
        inits: number of initial values; each has its own order and views, too.
        seed: of the draw.

    Returns:
        Under "test" the means over the initial values, such as "14/accuracy" and the processor's
        "run_seconds", and "spread", the standard deviation of several accuracies; "seconds" and
        "cpu_seconds" of all; under "images" the fingerprint of each initial value's training images.

    Raises:
        ValueError: a class has fewer images than `shots`.
    """
    recorded = dict(locals()) | {"val_fraction": 0.0, "flip": None}  # in config.json
    stages = Stages(graft_steps, join_steps)

    def train(task: Task, nested: NestedNet, grafting: Callable[..., Grafting]) -> dict[str, Any]:
        if method == "netgraft":
            return learn(
                task, grafting(nested, start=start), stages=stages, schedule=schedule, loss=loss, lr=lr,
                views=views, trace=trace, loop=loop,
            )  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # adaptions draw numbers
            steps = stages.total(grafting(deepcopy(nested)))
        assert task.teacher is not None
        objective: Objective = Supervised(nested.module)
        if method == "kd":
            objective = Distill(nested, task.teacher, ce=0.0, temperature=TEMPERATURE)
        fit(
            objective, views_of(task.train, views, stages), optimizer_of("adam", lr, weight_decay=0.0),
            task.run, phase="train", steps=steps, loop=loop,
        )  # fmt: skip
        return finish(task, nested)

    def run(folder: Path, own_seed: int) -> dict[str, Any]:
        taught_by = open_teacher((str(teacher),))
        source, depth = taught_by.nested
        torch.manual_seed(own_seed)  # the student's: opening draws numbers, too
        images = Images(size=size)
        splits = read_splits(data, folder, images)
        nested, _ = start_network(splits, student)
        inputs = prepare(
            splits, images, Optimisation(batch_size=batch_size, val_fraction=0.0, seed=own_seed),
            teacher=taught_by, choose=partial(draw, shots=shots, seed=seed),
        )  # fmt: skip
        saved = recorded | {"out": folder, "seed": own_seed}
        with open_task("few shots", folder, loop, saved, inputs) as task:
            side = task.train.images.size
            grafting = partial(Grafting, teacher=source, depth=depth, input_shape=(3, side, side))
            result = train(task, nested, grafting)
            numbers = _numbers(result) | {"run_seconds": result["cpu_seconds"]}
            return result | {"test": numbers, "images": task.train.images.fingerprint}

    results = [run(out / f"init-{i}", APART * (i + 1) + seed) for i in range(inits)]
    test = {k: statistics.fmean(r["test"][k] for r in results) for k in results[0]["test"]}
    (accuracy,) = (k for k in test if k.endswith("/accuracy") and k.count("/") == 1)
    if inits > 1:
        test["spread"] = statistics.stdev(r["test"][accuracy] for r in results)
    return {"test": test, "images": [r["images"] for r in results]} | {
        name: sum(r[name] for r in results) for name in ("seconds", "cpu_seconds")
    }


def draw(train: ImageSet, *, shots: int, seed: int) -> ImageSet:
    """Draw `shots` images of each class; a draw of fewer shots is part of a draw of more.

    Raises:
        ValueError: a class has fewer.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "shots"))
    chosen = []
    for index, name in enumerate(train.classes):
        members = (train.labels == index).nonzero().flatten()
        if len(members) < shots:
            raise ValueError(
                f"{shots} images of each class are asked for, and class {name!r} has {len(members)} "
                "in the training part: use data with more"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:shots]])
    return train.subset(torch.cat(chosen))


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    """Test accuracy of the student, and of the teacher with blocks of the student in it."""
    record = result.get("netgraft", {})
    after = {
        f"{kind} {stage}": value
        for kind in ("grafted", "joined")
        for stage, value in record.get(kind, {}).items()
    }
    untuned = {"untuned": record["untuned"]} if "untuned" in record else {}
    return result["test"] | after | untuned


def full_data(
    *, out: Path, data: str, size: int | None, teacher: Path, student: str, epochs: int,
    val_fraction: float, seed: int = 0, loop: Loop = Loop(),
) -> dict[str, Any]:  # fmt: skip
    """Distil on all images with their labels, from copies of the blocks that are like the teacher's.

    The copies train, too. All else has the defaults of `distill`.
    """
    taught_by = open_teacher((str(teacher),))
    source, depth = taught_by.nested
    card = source.card
    torch.manual_seed(seed)
    nested = build(student, num_classes=len(card.classes), **input_arguments(student, card.size, None))
    Grafting(nested, source, depth=depth, input_shape=(3, card.size, card.size))  # copies blocks
    nested.card, start = card, out / "start.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    save(nested, start)
    return call(
        distill, data=data, out=out / "run", size=size, teacher=(str(teacher),), student=student,
        init=start, temperature=TEMPERATURE, epochs=epochs,
        val_fraction=val_fraction, seed=seed, loop=loop,
    )  # fmt: skip
