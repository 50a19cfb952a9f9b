"""ConvNeXt: torchvision's small network, which holds the tiny one."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from stepwell.nets.families.builder import Stem

WIDTHS = (96, 192, 384, 768)
FAMILY = {"tiny": (3, 3, 9, 3), "small": (3, 3, 27, 3)}
STAGES = ("features.1", "features.3", "features.5", "features.7")


def convnext(
    blocks: Sequence[int],
    *,
    num_classes: int = 1000,
    stem: Stem = "imagenet",
    stochastic_depth_prob: float = 0.0,
) -> ConvNeXt:
    """torchvision's ConvNeXt; with `stem="small"` a 3×3 stem of stride 1.

    Stochastic depth is off, unlike in torchvision: it would drop blocks of every depth alike.
    """
    settings = [
        CNBlockConfig(width, following, count)
        for (width, following), count in zip(pairwise([*WIDTHS, None]), blocks, strict=True)
    ]
    net = ConvNeXt(settings, stochastic_depth_prob, num_classes=num_classes)
    if stem == "small":
        net.features[0][0] = nn.Conv2d(3, WIDTHS[0], kernel_size=3, padding=1)
        nn.init.trunc_normal_(net.features[0][0].weight, std=0.02)
        nn.init.zeros_(net.features[0][0].bias)
    return net
