"""Networks that glance at an image by the name `glance-RESNET/GLANCES` (`glance-resnet20/4`).

Every number of glances is a depth: "1" has seen the image scaled down, "3" two crops more.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from stepwell.nets.decisions.glances import Conclusion, FirstGlance, NextGlance, Policy
from stepwell.nets.families.builder import Builder
from stepwell.types import Images

PREFIX = "glance-"
#: Glances of a network, at most; pixels of a glance, at least.
MOST, SMALLEST = 16, 8
#: Glances of fewer pixels get an encoder with the small stem, where there is a choice.
SMALL_STEM = 64


class GlanceNet(nn.Module):
    """Images (batch, 3, size, size) to logits, by glances of `side` pixels.

    The first glance has an encoder of its own, the others share one (as in the paper).

    Args:
        encoder: the builder of the encoders, ResNets.
        glances: number of glances, of which the first sees the whole image.
        image_size: pixels of an image.
        side: pixels of a glance, one of `sides`; by default the one nearest to a third of the image.

    Raises:
        ValueError: `side` is none of these, or there is none.
    """

    def __init__(
        self, encoder: Builder, glances: int, *, num_classes: int = 10,
        image_size: int = 96, side: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        side = usual_side(image_size) if side is None else side
        check_side(side, image_size)
        stem = {"stem": "small" if side < SMALL_STEM else "imagenet"} if encoder.stems else {}
        first, later = (feature_maps(encoder.make(**stem)) for _ in range(2))
        with torch.no_grad():
            _, width, _, reduced = first.eval()(torch.zeros(1, 3, side, side)).shape
        first.train()
        cell = nn.GRUCell(width, width)
        blocks: list[nn.Module] = [FirstGlance(side, first, nn.Linear(width, num_classes), cell)]
        own = nn.Linear(width, num_classes)
        policy = Policy(width, reduced)
        blocks += [NextGlance(i, side, later, own, cell, policy) for i in range(glances - 1)]
        self.glances = nn.ModuleList(blocks)
        self.conclusion = Conclusion(width, num_classes)

    def forward(self, images: Images) -> Tensor:
        """Logits after all glances."""
        value = images
        for glance in self.glances:
            value = glance(value)
        return self.conclusion(value)


def feature_maps(resnet: nn.Module) -> nn.Sequential:
    """The layers of a ResNet before its pooling."""
    layers = [(n, child) for n, child in resnet.named_children() if n not in ("avgpool", "fc")]
    return nn.Sequential(OrderedDict(layers))


def sides(size: int) -> list[int]:
    """The sides that a glance at an image of `size` pixels may have; ValueError if there is none.

    >>> sides(96), sides(56)
    ([8, 12, 16, 24, 32, 48], [8, 14, 28])
    """
    if found := [side for side in range(SMALLEST, size) if size % side == 0]:
        return found
    near = max(2 * SMALLEST, 8 * round(size / 8))
    raise ValueError(
        f"images of {size} pixels cannot be divided into glances of {SMALLEST} pixels or more: use "
        f"--size {near}"
    )


def usual_side(size: int) -> int:
    """The side that is nearest to a third of an image.

    >>> usual_side(96), usual_side(224)
    (32, 56)
    """
    return min(sides(size), key=lambda side: abs(3 * side - size))


def check_side(side: int, size: int) -> None:
    """Raise ValueError for glances that do not fit an image."""
    if side not in (known := sides(size)):
        raise ValueError(
            f"glances of {side} pixels do not divide images of {size} pixels into parts: take "
            f"{', '.join(map(str, known))}"
        )


def is_glance(name: str) -> bool:
    """Check whether a name is that of a network that glances, such as "glance-resnet20/4"."""
    return name.startswith(PREFIX + "resnet") and "/" in name


def glance_builder(name: str, encoders: Callable[[str], Builder]) -> Builder:
    """The builder of a network that glances; ValueError for a number of glances that cannot be.

    Args:
        encoders: gives the builder of an encoder by name.
    """
    encoder, _, number = name.removeprefix(PREFIX).partition("/")
    count = int(number) if number.isdecimal() else 0
    if not 1 < count <= MOST:
        raise ValueError(
            f"no network {name!r}: say how many glances, 2 to {MOST}, such as {PREFIX}{encoder}/4"
        )
    family = {str(i): (i,) for i in range(1, count + 1)}
    return Builder(
        partial(GlanceNet, encoders(encoder), count), ("glances",), str(count), family, size=96,
        size_argument="image_size",
    )  # fmt: skip
