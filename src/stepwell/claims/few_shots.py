"""Training on a few images as an arm of a study: several initial values on one draw of images."""

import statistics
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch

from stepwell.methods import Distill, Grafting, Objective, Supervised, open_teacher
from stepwell.methods.netgraft import GraftLoss, Start
from stepwell.recipes.classification import finish, open_classifier
from stepwell.recipes.netgraft import Schedule, netgraft, steps_of, views_of
from stepwell.training import Loop, fit, optimizer_of

Method = Literal["netgraft", "kd", "labels"]
#: Between the seeds of a teacher and of students.
APART = 1000
TEMPERATURE = 4.0


def few_shots(
    *,
    out: Path,
    data: str,
    size: int | None,
    teacher: Path,
    student: str,
    shots: int,
    per_class: int,
    method: Method = "netgraft",
    schedule: Schedule = "both",
    start: Start = "teacher",
    loss: GraftLoss = "direction",
    trace: bool = False,
    graft_steps: int = 300,
    join_steps: int = 300,
    batch_size: int = 64,
    views: int = 64,
    lr: float = 3e-3,
    inits: int = 2,
    seed: int = 0,
    loop: Loop = Loop(),
) -> dict[str, Any]:
    """Train a student on a few images, once for each initial value.

    Args:
        out: a folder, for the runs.
        teacher: the file of its network.
        shots: images of each class; which, is drawn by `seed` from the training part, with its labels.
        per_class: images that the training part has of each class.
        method: `netgraft`, or one network from scratch, by its teacher's soft targets (`kd`) or by the
            `labels` of the images, in as many steps as both stages of grafting take together where
            the blocks that are like the teacher's are copied.
        inits: how many initial values; each has an order and views of its own, too.
        seed: of the draw.

    Returns:
        Under "test" the means over the initial values, such as "14/accuracy", and "spread", the
        standard deviation of the accuracy over them; "seconds" and "cpu_seconds" of all.
    """
    found = []
    for init in range(inits):
        common: dict[str, Any] = {
            "data": data, "size": size, "student": student, "batch_size": batch_size, "views": views,
            "lr": lr, "part": f"{seed + 1}/{max(1, per_class // shots)}", "loop": loop,
            "graft_steps": graft_steps, "join_steps": join_steps, "out": out / f"init-{init}",
            "seed": APART * (init + 1) + seed,
        }  # fmt: skip
        if method == "netgraft":
            result = netgraft(
                **common, teacher=str(teacher), shots=shots, schedule=schedule, start=start, loss=loss,
                trace=trace,
            )  # fmt: skip
        else:
            result = _alone(method, teacher, common)
        found.append(result | {"test": _numbers(result)})
    test = {k: statistics.fmean(r["test"][k] for r in found) for k in found[0]["test"]}
    (accuracy,) = (k for k in test if k.endswith("/accuracy") and k.count("/") == 1)
    values = [r["test"][accuracy] for r in found]
    test["spread"] = statistics.stdev(values) if inits > 1 else 0.0
    return {"test": test} | {k: sum(r[k] for r in found) for k in ("seconds", "cpu_seconds")}


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


def _alone(method: Method, teacher: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Train a student from scratch on the same views of the same images."""
    taught_by = open_teacher((str(teacher),))
    source, depth = taught_by.nested
    torch.manual_seed(arguments["seed"])
    more = {"val_fraction": 0.0, "flip": None, "method": method}
    with open_classifier(
        "few shots", arguments | more, arguments["student"], teacher=taught_by
    ) as (task, nested, _):
        shown = views_of(task.train, arguments["views"])
        with torch.random.fork_rng(devices=[]):  # adaptions draw numbers
            size = task.train.images.size
            grafting = Grafting(deepcopy(nested), source, depth=depth, input_shape=(3, size, size))
        steps = steps_of(grafting, arguments["graft_steps"], arguments["join_steps"])
        assert task.teacher is not None
        objective: Objective = Supervised(nested.module)
        if method == "kd":
            objective = Distill(nested, task.teacher, ce=0.0, temperature=TEMPERATURE)
        fit(
            objective,
            shown,
            optimizer_of("adam", arguments["lr"], weight_decay=0.0),
            task.run,
            phase="train",
            epochs=max(1, round(steps / len(shown))),
            loop=arguments["loop"],
        )
        return finish(task, nested)
