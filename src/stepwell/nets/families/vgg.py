"""VGG with BatchNorm: torchvision's networks as a family of nested depths."""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.vgg import VGG, make_layers

from stepwell.nets.families.builder import Stem

WIDTHS = (64, 128, 256, 512, 512)
FAMILY = {"13": (2, 2, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}


def vgg_bn(
    blocks: Sequence[int], *, num_classes: int = 1000, stem: Stem = "imagenet", dropout: float = 0.5
) -> VGG:
    """torchvision's VGG-BN; with `stem="small"` its classifier is one layer on the pooled features.

    This is the usual form for images of 32 pixels; five poolings need 32 pixels or more.
    """
    widths: list[str | int] = []
    for width, count in zip(WIDTHS, blocks, strict=True):
        widths += [width] * count + ["M"]
    features = make_layers(widths, batch_norm=True)
    if stem == "imagenet":
        return VGG(features, num_classes, dropout=dropout)
    with torch.device("meta"):  # the large classifier is never made
        net = VGG(features, num_classes, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Linear(WIDTHS[-1], num_classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(net.classifier.weight, std=0.01)
    nn.init.zeros_(net.classifier.bias)
    return net


def stages(blocks: Sequence[int]) -> tuple[str, ...]:
    """The stages in `features`: three modules a block, one pooling behind each stage."""
    names, start = [], 0
    for count in blocks:
        names.append(f"features[{start}:{start + 3 * count}:3]")
        start += 3 * count + 1
    return tuple(names)
