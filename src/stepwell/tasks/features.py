"""The task of learning a teacher's features on images without labels: a start for other trainings."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from stepwell.data import Batches, Splits, load_unlabeled
from stepwell.data.image_flags import Images, LabelledImages
from stepwell.measure.depths import cost_table
from stepwell.methods import Distill
from stepwell.nets import Card, NestedNet, builder_of
from stepwell.nets.files.nested import load, save
from stepwell.tasks.classification import size_of_run
from stepwell.tasks.finishing import finished, spent
from stepwell.tasks.measuring import tell_measuring
from stepwell.tasks.task import Task
from stepwell.teachers.teacher import Teacher, stages_of
from stepwell.train_mode import in_eval_mode
from stepwell.training.progress import tell

#: The kind of network that is written, and the one class that its images have.
KIND, CLASS = "features", "image"
#: Share of the images that are set aside to measure on.
ASIDE = 0.1


Losses = TypeVar("Losses", bound=Any)


def read_unlabeled(folder: Path | None, out: Path, images: Images, net: str) -> Splits:
    """All images below `folder` as one class; a tenth of them are set aside to measure on.

    ValueError if there is no folder or no second image in it, `out` lies in it, or classes are asked
    for.
    """
    if folder is None:
        raise ValueError("name images to learn on: --data DATA with labels, or --unlabeled FOLDER")
    if isinstance(images, LabelledImages) and images.balance:
        raise ValueError("--balance draws classes, and without --data there are none: leave it out")
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"--out {out} lies in {folder}, whose images train: name another place")
    size = images.size or size_of_run(out, None)
    every = load_unlabeled(folder, size, (CLASS,), builder_of(net).size)
    train, test = replace(every, labels=torch.zeros_like(every.labels)).split(ASIDE)
    return Splits(str(folder), train, test)


def with_stages(losses: Losses, student: nn.Module, teacher: Teacher) -> Losses:
    """`losses` with hints between the last stages, if the networks have unequally many."""
    ours, theirs = stages_of(student), stages_of(teacher)
    if not losses.hint or losses.hint_stages or not theirs or len(ours) == len(theirs):
        return losses
    pair = f"{ours[-1]}={theirs[-1]}"
    tell(f"hints compare the last stages, {pair}; --hint-stages names others")
    return replace(losses, hint_stages=(pair,))


def validator(
    objective: Distill, task: Task, batches: Batches | None = None
) -> Callable[[], dict[str, float]] | None:
    """A call that measures the distance from the teacher, on the validation part by default."""
    part = task.validation if batches is None else batches
    if part is None:
        return None

    @torch.no_grad()
    def validate() -> dict[str, float]:
        total, count = 0.0, 0
        with in_eval_mode(objective):
            for batch in part:
                inputs, labels = (x.to(task.device) for x in batch)
                loss = objective.training_step(type(batch)(inputs, labels)).loss
                total, count = total + float(loss) * len(labels), count + len(labels)
        return {"loss": total / count}

    return validate


def select(values: Mapping[str, float]) -> float:
    """Score an epoch: the less distance, the better."""
    return -values["loss"]


def finish_features(task: Task, net: NestedNet, objective: Distill) -> dict[str, Any]:
    """Measure the student's distance from its teacher, write the run's results, and return them.

    Writes net.safetensors and, last, results.json. A finished run keeps them.
    """
    run, file = task.run, task.run.path / "net.safetensors"
    finished_net, results = finished(run, load, predictions=False)
    if results is not None:
        return results
    tell_measuring(task)
    measure = validator(objective.to(task.device), task, task.test)
    assert measure is not None
    distance = measure()["loss"]
    net.cpu().eval()
    net.mark("trained")
    size = task.train.images.size
    net.card = Card((CLASS,), size, task.train.mean, task.train.std)
    if run.writes and finished_net is None:
        save(net, file, kind=KIND)
    results = {
        "kind": KIND, "rows": None, "test": {"loss": distance}, "examples": len(task.test.images),
        "churn": {}, "costs": cost_table(net, size), **spent(run),
        "features": {"net": (net.builder or ("",))[0], "size": size},
    }  # fmt: skip
    if run.writes:
        results["file_bytes"] = file.stat().st_size
        run.write_json("results.json", results)
    return results
