"""Train an adder network by its convolutional twin, which trains at the same time."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.flags import Flags, Hidden, Together, checked, flag
from stepwell.methods.pkkd import Features, ProgressiveKernelKD
from stepwell.nets.build import ADDER
from stepwell.ops.adder import Gradient
from stepwell.recipes import flags
from stepwell.tasks import adders, classification
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.local_rates import LOCAL_RATE, with_local_rates
from stepwell.training.optimisation import Optimisation


@dataclass(frozen=True, kw_only=True)
class Twin:
    """Teaching by the twin.

    Attributes:
        alpha: share of the labels; the rest is the twin's soft targets.
        beta: weight of the layers' features.
        features: what is compared: kernels and linear maps, kernels, raw outputs, or nothing.
    """

    TITLE: ClassVar = "twin"
    alpha: float = 0.5
    beta: Annotated[float | None, flag("X", "0.1 / number of layers")] = None
    features: Features = "mapped"


@dataclass(frozen=True, kw_only=True)
class AdderLayers:
    """Training of the adder layers.

    Attributes:
        local_rate: root mean square of each layer's filter gradient (AdderNet: 0.2), or 0 for the
            gradient itself.
    """

    TITLE: ClassVar = "adder layer"
    local_rate: Annotated[float, flag("X")] = LOCAL_RATE


@dataclass(frozen=True, kw_only=True)
class PkkdAblation(Together):
    """Options for studies.

    Attributes:
        gradient_factor: of the adder layers' filter gradients, where the local rate is 0.
        gradient: of the adder layers, as for `adder_conv2d`.
        normed_logits: normalise the logits over the batch.
        everywhere: the first layer adds, too.
        convolutional: the student is a convolutional network like the twin, from another random start.
    """

    gradient_factor: float = 1.0
    gradient: Gradient = "clipped"
    normed_logits: bool = True
    everywhere: bool = False
    convolutional: bool = False


def pkkd(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    stem: flags.Stem = "auto",
    twin: Flags[Twin] = Twin(),
    adding: Flags[AdderLayers] = AdderLayers(),
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Optimisation] = Optimisation(),
    loop: Flags[Loop] = Loop(clip=0.0),
    ablation: Hidden[PkkdAblation] = PkkdAblation(),
) -> dict[str, Any]:
    """Train an adder network, whose convolutions only add, by its convolutional twin (PKKD).

    By default gradients are not clipped, as in AdderNet's code; --clip leaves the filters of adder
    layers out, whose local rate sets their size.

    Examples:
        stepwell train pkkd --data digits --out runs/adder --net resnet8
        stepwell train pkkd --data cifar10 --out runs/adder --net resnet20 --epochs 100
    """
    training = classification.settled(training)
    arguments = checked(locals())
    check_resumes("pkkd", arguments)
    if adding.local_rate and ablation.gradient_factor != 1:
        raise ValueError("gradient_factor is for local_rate=0: the local rate sets the gradients' size")
    if adding.local_rate not in (0, LOCAL_RATE) and training.optimizer != "sgd":
        raise ValueError(
            f"--local-rate {adding.local_rate:g} has no effect with --optimizer {training.optimizer}, "
            "which divides each gradient by its own size: use sgd, or set --lr"
        )
    torch.manual_seed(training.seed)
    splits = classification.read_splits(data, out, images, net)
    net = net.removeprefix(ADDER)
    adder = {n: getattr(ablation, n) for n in ("gradient", "normed_logits", "everywhere")}
    parts: dict[str, Any] = {} if ablation.convolutional else {"adder": adder}
    nested, _ = classification.start_network(splits, net, stem=stem, **parts)
    other, _ = classification.start_network(splits, net, stem=stem)
    inputs = classification.prepare(splits, images, training)
    objective = ProgressiveKernelKD(nested, other, convolutional=ablation.convolutional, **vars(twin))
    optim = with_local_rates(training.optim(), adding.local_rate, ablation.gradient_factor)
    with classification.open_task("pkkd", out, loop, arguments, inputs, nested) as task:
        fit(
            objective, task.train, optim, task.run, phase="train", loop=loop, epochs=training.epochs,
            validate=classification.validator(nested, task), patience=training.patience,
        )  # fmt: skip
        measure = partial(adders.measure_twins, objective=objective, task=task)
        return classification.finish(task, nested, measure=measure)
