"""Train a network whose blocks run at some positions of an image."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.flags import Flags, Hidden, Together, checked
from stepwell.methods.pixels import Pixels
from stepwell.nets.build import refuse_adders
from stepwell.recipes import flags
from stepwell.tasks import classification, gating
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.optimisation import Smoothed

KIND = "pixels"


@dataclass(frozen=True, kw_only=True)
class PixelsAblation(Together):
    """Options for studies.

    Attributes:
        estimator, temperature: of the masks: see `Draw`.
    """

    estimator: str = "gumbel"
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Masks of the positions that run a block.

    Attributes:
        target: share of the MACs of all blocks that runs, on average over images.
        sparsity_weight: weight of the distance from the target.
    """

    TITLE: ClassVar = "mask"
    target: float = 0.5
    sparsity_weight: float = 10.0


def pixels(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    masks: Flags[Masks] = Masks(),
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[PixelsAblation] = PixelsAblation(),
) -> dict[str, Any]:
    """Train a ResNet whose blocks run only where an image needs them (DynConv).

    With --init RUN of a plain ResNet, its weights are the start and the masks are fresh.

    Examples:
        stepwell train pixels --data digits --out runs/pixels
        stepwell train pixels --data photos/ --out runs/third --net resnet50 --target 0.3
    """
    init = flags.file_of(init)
    training = classification.settled(training)
    arguments = checked(locals())
    check_resumes("pixels", arguments)
    refuse_adders(net, "networks with masks")
    flags.require_resnet(net, "masks are for residual blocks")
    torch.manual_seed(training.seed)
    splits = classification.read_splits(data, out, images, net)
    nested, start = classification.start_network(splits, net, stem=stem, init=init, gates="pixels")
    inputs = classification.prepare(splits, images, training, start=start, init=init)
    objective = Pixels(
        nested, label_smoothing=training.label_smoothing, **vars(masks), **vars(ablation)
    )
    target = gating.Target(masks.target, by_macs=True)
    with classification.open_task("pixels", out, loop, arguments, inputs, nested) as task:
        fit(
            objective, task.train, training.optim(), task.run, phase="masks", epochs=training.epochs,
            validate=gating.validator(nested, task, target), loop=loop, patience=training.patience,
        )  # fmt: skip
        return gating.finish(task, nested, target, kind=KIND)
