"""Train one network on labels alone: the baseline, and the first half of a distillation."""

from dataclasses import dataclass
from typing import Any

import torch

from stepwell.data.image_flags import Images
from stepwell.flags import Flags, Hidden, checked
from stepwell.methods import Supervised
from stepwell.recipes.flags import Data, Init, Net, Out, Stem, file_of
from stepwell.tasks.classification import (
    finish,
    open_task,
    prepare_images,
    read_splits,
    start_network,
    validator,
)
from stepwell.training import Loop, fit
from stepwell.training.optimisation import AnyOptimizer, Smoothed


@dataclass(frozen=True, kw_only=True)
class Training(AnyOptimizer, Smoothed):
    """A training on labels by an optimizer of choice."""


@dataclass(frozen=True, kw_only=True)
class SupervisedAblation:
    """Options for studies.

    Attributes:
        ema_teacher: decay of a moving average of the network that teaches it from half-way (0: none).
    """

    ema_teacher: float = 0.0


def supervised(
    *,
    data: Data,
    out: Out,
    net: Net = "resnet20",
    stem: Stem = "auto",
    init: Init = None,
    images: Flags[Images] = Images(),
    training: Flags[Training] = Training(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[SupervisedAblation] = SupervisedAblation(),
) -> dict[str, Any]:
    """Train one network on labels alone.

    Examples:
        stepwell train supervised --data digits --out runs/alone --net resnet20
    """
    init = file_of(init)
    arguments = checked(locals())
    torch.manual_seed(training.seed)
    splits = read_splits(data, out, images)
    nested, start = start_network(splits, net, stem=stem, init=init)
    inputs = prepare_images(splits, images, training, start=start, init=init)
    with open_task("supervised", out, loop, arguments, inputs) as task:
        fit(
            Supervised(
                nested.module,
                label_smoothing=training.label_smoothing,
                ema_teacher=ablation.ema_teacher,
            ),
            task.train,
            training.optim(),
            task.run,
            phase="train",
            epochs=training.epochs,
            validate=validator(nested, task),
            loop=loop,
        )
        return finish(task, nested)
