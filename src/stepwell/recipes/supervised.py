"""Train one network on labels alone: the baseline, and the first half of a distillation."""

from dataclasses import dataclass
from typing import Any

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.data.pictures.flags import Pictures
from stepwell.data.text_files import TextFiles
from stepwell.flags import Flags, Hidden, Together, checked
from stepwell.methods import Supervised
from stepwell.recipes import flags
from stepwell.tasks import task_of
from stepwell.training import Loop, check_resumes, fit
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
    data: flags.Labelled,
    out: flags.Out,
    net: flags.NetOrEncoder = "resnet20",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    images: Flags[TrainingImages] = TrainingImages(),
    texts: Flags[TextFiles] = TextFiles(),
    pictures: Flags[Pictures] = Pictures(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[SupervisedAblation] = SupervisedAblation(),
) -> dict[str, Any]:
    """Train one network on labels alone.

    Examples:
        stepwell train supervised --data digits --out runs/alone --net resnet20
    """
    init = flags.file_of(init)
    training = task_of(data, net).settled(training)
    arguments = checked(locals())
    check_resumes("supervised", arguments)
    kind = task_of(data, net)
    torch.manual_seed(training.seed)
    splits = kind.read_splits(data, out, images, net, texts, pictures)
    nested, start = kind.start_network(splits, net, stem=stem, init=init)
    inputs = kind.prepare(splits, images, training, start=start, init=init)
    with kind.open_task("supervised", out, loop, arguments, inputs, nested) as task:
        smoothing, average = training.label_smoothing, ablation.ema_teacher
        objective = Supervised(nested.module, label_smoothing=smoothing, ema_teacher=average)
        fit(
            objective, task.train, training.optim(), task.run, phase="train", loop=loop,
            epochs=training.epochs, validate=kind.validator(nested, task),
            patience=training.patience,
        )  # fmt: skip
        results: dict[str, Any] = kind.finish(task, nested)
        return results
