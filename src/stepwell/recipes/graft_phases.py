"""The phases of grafting on an open task: which blocks train, on which views, for how many steps."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from stepwell.data import Batches, ImageSet, seed_of
from stepwell.data.decoding import MEMORY
from stepwell.evaluation import evaluate
from stepwell.methods import Graft
from stepwell.methods.netgraft import GraftLoss
from stepwell.nets.grafting.split_points import Adaption
from stepwell.nets.grafting.surgery import Grafting
from stepwell.tasks.measuring import finish
from stepwell.tasks.task import Task
from stepwell.training import Loop, fit
from stepwell.training.optim import Optim, cosine
from stepwell.training.progress import tell

Schedule = Literal["both", "graft", "join", "direct"]


class Stages(NamedTuple):
    """The two stages of grafting: steps of each block alone, and steps after each joined block."""

    graft_steps: int
    join_steps: int

    def total(self, grafting: Grafting) -> int:
        """Steps of both stages together: each block alone, then one joined after the other."""
        blocks = len(grafting.grafted)
        return blocks * self.graft_steps + (blocks - 1) * self.join_steps


class Phase(NamedTuple):
    """A phase trains blocks `first` to `last` for `steps`; blocks in `settle` have not trained yet."""

    name: str
    first: int
    last: int
    steps: int
    settle: tuple[int, ...] = ()


def phases_of(grafting: Grafting, schedule: Schedule, stages: Stages) -> Sequence[Phase]:
    """The phases of a schedule, in order. All schedules take the steps of both stages together."""
    grafted = grafting.grafted
    first, *others = grafted
    alone = [Phase(f"graft-{i + 1}", i, i, stages.graft_steps, (i,)) for i in grafted]
    joined = [Phase(f"join-{i + 1}", first, i, stages.join_steps) for i in others]
    if schedule == "both":
        return alone + joined
    if schedule == "direct":
        chosen = [Phase("direct", first, grafted[-1], 0, grafted)]
    elif schedule == "join":
        begin = [grafted[:2], *((i,) for i in others[1:])]
        chosen = [p._replace(settle=new) for p, new in zip(joined, begin, strict=True)]
    else:
        chosen = alone
    share, more = divmod(stages.total(grafting), len(chosen))
    return [phase._replace(steps=share + (n < more)) for n, phase in enumerate(chosen)]


def learn(
    task: Task, grafting: Grafting, *, stages: Stages, loop: Loop, schedule: Schedule = "both",
    loss: GraftLoss = "direction", lr: float = 1e-2, adaption_lr: float = 1e-2, views: int = 64,
    trace: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train the student phase by phase, merge it, measure it; the run's results.

    Args:
        views: largest number of views of each image.
        trace: also measure on the test part after each phase.
    """
    images = task.train.images
    augmented = views_of(task.train, views, stages)
    record = {"images": len(images), "views": len(augmented.images)}
    measure = _Measure(grafting, task)
    if trace:
        measure.record["teacher"] = measure.accuracy(0, -1)  # alone
    for phase in phases_of(grafting, schedule, stages):
        objective = Graft(
            grafting, phase.first, phase.last, images=augmented.with_images(augmented.images),
            settle=phase.settle, loss=loss,
        )  # fmt: skip
        fit(
            objective, augmented, adam(lr, adaption_lr), task.run, phase=phase.name,
            steps=phase.steps, loop=loop,
        )  # fmt: skip
        objective.forget()  # the finished loop still holds it
        if trace:
            measure.after(phase)
    tell(f"merging the student on {len(images)} images", quiet=not task.run.writes)
    grafting.to(task.device)
    merged, left = grafting.merged(augmented.with_images(images))
    record |= measure.record | {"adaptions": left}
    return finish(task, merged, record={"netgraft": record})


class _Measure:
    """Accuracy on the test part after each phase; it decides nothing."""

    def __init__(self, grafting: Grafting, task: Task) -> None:
        self.grafting, self.task = grafting, task
        copied = zip(grafting.names, grafting.copied, strict=True)
        self.record: dict[str, Any] = {
            "copied": [name for name, same in copied if same],
            "pairs": [f"{a}={b}" for a, b in grafting.pairs],
            "grafted": {},
            "joined": {},
        }

    def after(self, phase: Phase) -> None:
        """Measure the teacher with the blocks that `phase` trained; at the end the student alone."""
        grafted = self.grafting.grafted
        kind = "grafted" if phase.name.startswith("graft") else "joined"
        name = self.grafting.names[phase.last]
        self.record[kind][name] = self.accuracy(phase.first, phase.last)
        if kind == "grafted" and phase.last == grafted[-1]:
            self.record["untuned"] = self.accuracy(grafted[0], grafted[-1])

    def accuracy(self, first: int, last: int) -> float:
        """Measure the teacher with the student's blocks `first` to `last`."""
        device, test = self.task.device, self.task.test
        mixed = self.grafting.to(device).mixed(first, last)
        return evaluate(lambda images: mixed(images.to(device)), test)["accuracy"]


def views_of(train: Batches, most: int, stages: Stages) -> Batches:
    """Several views of each of the few images: the image itself, then augmented copies.

    At most `most` views, at most as many as the longest phase shows, and at most as many as fit in
    memory. The schedule does not matter, so all schedules see the same views. Without augmentation
    there is one view.
    """
    images = train.images
    seen = max(stages) * train.batch_size // len(images)
    fitting = MEMORY // (len(images) * 3 * images.size**2)
    count = 1 if train.augment is None else max(1, min(most, seen, fitting))
    if count > 1:
        images = _changed(train, count)
    return Batches(
        images, train.batch_size, mean=train.mean, std=train.std, shuffle=True, seed=train.seed
    )


def _changed(train: Batches, count: int) -> ImageSet:
    """The images themselves, and `count` - 1 augmented copies."""
    images, change = train.images, train.augment
    assert change is not None
    pixels = images.pixels[torch.arange(len(images))]
    every = torch.empty(count, *pixels.shape, dtype=torch.uint8)
    every[0] = pixels
    for view in range(1, count):
        generator = torch.Generator().manual_seed(seed_of(train.seed, "view", view))
        every[view] = change(pixels, generator)
    return ImageSet(every.flatten(0, 1), images.labels.repeat(count), images.classes)


def adam(lr: float, adaption_lr: float) -> Optim:
    """Adam without decay; the adaptions have their own rate."""

    def make(objective: nn.Module) -> torch.optim.Optimizer:
        of_adaptions = {id(m.weight) for m in objective.modules() if isinstance(m, Adaption)}
        trained = [p for p in objective.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if id(p) not in of_adaptions], "lr": lr},
            {"params": [p for p in trained if id(p) in of_adaptions], "lr": adaption_lr},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]])

    return Optim(make, partial(cosine, warmup=0.05))
