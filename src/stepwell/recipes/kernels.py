"""Train a ResNet whose convolutions mix their kernel for each image."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from stepwell.data.image_flags import TrainingImages
from stepwell.flags import Flags, checked, flag
from stepwell.methods.kernels import ConditionalKernels
from stepwell.nets.build import refuse_adders
from stepwell.nets.decisions.kernels import Routing
from stepwell.recipes import flags
from stepwell.recipes.mixtures import train_mixture
from stepwell.tasks import classification
from stepwell.training import Loop, check_resumes
from stepwell.training.optimisation import Smoothed

#: The temperature falls in the first epochs, of a short training in this share of it.
EPOCHS, SHARE = 10, 0.1


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Kernels of each convolution.

    Attributes:
        method: dynamic: attention in all blocks (DY-CNN); condconv: sigmoids in the last stage.
        kernels: number of kernels that are mixed.
    """

    TITLE: ClassVar = "kernel"
    method: Annotated[Routing, flag("NAME")] = "dynamic"
    kernels: int = 4


def kernels(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    mixing: Flags[Kernels] = Kernels(),
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
) -> dict[str, Any]:
    """Train a ResNet that mixes the kernels of its convolutions by image (CondConv, DY-CNN).

    With --init RUN of a plain ResNet, copies of its kernels are the start.

    Examples:
        stepwell train kernels --data digits --out runs/kernels
        stepwell train kernels --data photos/ --out runs/cond --net resnet18 --method condconv
    """
    init = flags.file_of(init)
    training = classification.settled(training)
    arguments = checked(locals())
    check_resumes("kernels", arguments)
    refuse_adders(net, "networks that mix kernels")
    flags.require_resnet(net, "kernels are mixed in residual blocks")
    assert training.epochs is not None
    objective_of = partial(
        ConditionalKernels, anneal=min(SHARE, EPOCHS / training.epochs),
        label_smoothing=training.label_smoothing,
    )  # fmt: skip
    parts = {"kernels": mixing.kernels, "routing": mixing.method}
    return train_mixture(
        "kernels", arguments, data=data, out=out, net=net, stem=stem, init=init, images=images,
        training=training, loop=loop, parts=parts, objective_of=objective_of,
    )  # fmt: skip
