"""Train a network that looks at a small view of an image, then at crops of its choice."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.flags import Flags, Hidden, checked, flag
from stepwell.nets.families.glance import CROPS
from stepwell.recipes import flags
from stepwell.tasks import classification
from stepwell.tasks.looking import Looking, LookingAblation, learn_to_look, start_glances
from stepwell.training import Loop, check_resumes
from stepwell.training.optimisation import Smoothed


@dataclass(frozen=True, kw_only=True)
class Crops(Looking):
    """Glances at crops.

    Attributes:
        glance_size: height and width of a glance, a divisor of the image's.
    """

    glance_size: Annotated[int | None, flag("PIXELS", "a third")] = None


def glance(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    init: flags.Init = None,
    looking: Flags[Crops] = Crops(),
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[LookingAblation] = LookingAblation(),
) -> dict[str, Any]:
    """Train a network that looks at an image, then at parts of it, until it is sure (Glance and Focus).

    Every number of glances is a depth, so `eval --cascade`, budgets, `export` and `serve` work as for
    depths. The network learns from crops at random places, then a policy learns where to look, and
    last the network learns from what the policy looks at.

    Examples:
        stepwell train glance --data photos/ --size 96 --out runs/glances
        stepwell train glance --data photos/ --size 224 --net resnet18 --glances 5 --out runs/glances
    """
    init = flags.file_of(init)
    training = classification.settled(training)
    arguments = checked(locals())
    check_resumes("glance", arguments)
    flags.require_resnet(net, "a ResNet looks at each glance")
    torch.manual_seed(training.seed)
    name = f"{CROPS}{net}/{looking.glances}"
    splits = classification.read_splits(data, out, images, name)
    options: dict[str, Any] = {} if looking.glance_size is None else {"side": looking.glance_size}
    nested, start = start_glances(splits, name, looking.fewer, net, init, **options)
    inputs = classification.prepare(splits, images, training, start=start, init=init)
    return learn_to_look(
        "glance", out, loop, arguments, inputs, nested, looking, training, ablation.where
    )
