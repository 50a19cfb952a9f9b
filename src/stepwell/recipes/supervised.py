"""Train one network on labels alone: the baseline, and the first half of a distillation."""

from dataclasses import dataclass
from typing import Any

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.flags import Flags, Hidden, Together, checked
from stepwell.methods import Supervised
from stepwell.recipes import flags
from stepwell.tasks import classification
from stepwell.training import Loop, fit
from stepwell.training.optimisation import Smoothed


@dataclass(frozen=True, kw_only=True)
class SupervisedAblation(Together):
    """Options for studies.

    Attributes:
        ema_teacher: decay of a moving average of the network that teaches it from half-way (0: none).
    """

    ema_teacher: float = 0.0


def supervised(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[SupervisedAblation] = SupervisedAblation(),
) -> dict[str, Any]:
    """Train one network on labels alone.

    Examples:
        stepwell train supervised --data digits --out runs/alone --net resnet20
    """
    init = flags.file_of(init)
    arguments = checked(locals())
    torch.manual_seed(training.seed)
    splits = classification.read_splits(data, out, images, net)
    nested, start = classification.start_network(splits, net, stem=stem, init=init)
    inputs = classification.prepare_images(splits, images, training, start=start, init=init)
    with classification.open_task("supervised", out, loop, arguments, inputs, nested) as task:
        smoothing, average = training.label_smoothing, ablation.ema_teacher
        objective = Supervised(nested.module, label_smoothing=smoothing, ema_teacher=average)
        fit(
            objective, task.train, training.optim(), task.run, phase="train", loop=loop,
            epochs=training.epochs, validate=classification.validator(nested, task),
            patience=training.patience,
        )  # fmt: skip
        return classification.finish(task, nested)
