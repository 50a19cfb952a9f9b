"""Networks that glance at an image or a clip: `glance-RESNET/GLANCES`, `frames-RESNET/GLANCES`.

Every number of glances is a depth: "1" has seen the image scaled down, "3" two crops more, or frames.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from stepwell.nets.decisions.glances import Conclusion, FirstGlance, NextGlance, Policy, crops
from stepwell.nets.decisions.glances import frames as every_frame
from stepwell.nets.families.builder import Builder
from stepwell.types import Images

#: Begin the names of networks; without the hyphen, each is the recipe that trains them.
CROPS, FRAMES = "glance-", "frames-"
#: Glances of a network, at most; pixels of a glance, at least.
MOST, SMALLEST = 16, 8
#: Frames of a clip, where the caller does not say it.
USUAL_FRAMES = 16
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
        frames: number of frames of a clip, which stand in rows: glances are frames, not crops.

    Raises:
        ValueError: `side` is none of these, or there is none; the frames do not fill the image.
    """

    def __init__(
        self, encoder: Builder, glances: int, *, num_classes: int = 10,
        image_size: int = 96, side: int | None = None, frames: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if frames is not None:
            side = frame_side(frames, image_size, glances)
        side = usual_side(image_size) if side is None else side
        check_side(side, image_size)
        part, axes = (crops, 2) if frames is None else (every_frame, 1)
        stem = {"stem": "small" if side < SMALL_STEM else "imagenet"} if encoder.stems else {}
        first, later = (feature_maps(encoder.make(**stem)) for _ in range(2))
        with torch.no_grad():
            _, width, _, reduced = first.eval()(torch.zeros(1, 3, side, side)).shape
        first.train()
        cell = nn.GRUCell(width, width)
        blocks: list[nn.Module] = [FirstGlance(side, first, nn.Linear(width, num_classes), cell)]
        head = nn.Linear(width, num_classes)
        policy = Policy(width, reduced, axes)
        blocks += [NextGlance(i, side, part, later, head, cell, policy) for i in range(glances - 1)]
        self.glances = nn.ModuleList(blocks)
        self.conclusion = Conclusion(width, num_classes)

    def forward(self, images: Images) -> Tensor:
        """Logits after all glances."""
        value = images
        for glance in self.glances:
            value = glance(value)
        return self.conclusion(value)


def start_encoders(net: nn.Module, resnet: nn.Module, source: object) -> None:
    """Copy the layers of a ResNet into both encoders of a `GlanceNet`.

    ValueError, which begins with the `source`, if they do not fit.
    """
    layers = feature_maps(resnet).state_dict()
    first, later, *_ = (glance.encoder for glance in net.glances)  # type: ignore[union-attr]
    for encoder in (first, later):
        state = encoder.state_dict()
        if unlike := [n for n in state.keys() | layers.keys() if _shape(state, n) != _shape(layers, n)]:
            raise ValueError(
                f"{source} does not fit the encoders ({min(unlike)} differs): name a run of the same "
                "ResNet, with the stem that the glances have"
            )
        encoder.load_state_dict(layers)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def feature_maps(resnet: nn.Module) -> nn.Sequential:
    """The layers of a ResNet before its pooling."""
    layers = [(n, child) for n, child in resnet.named_children() if n not in ("avgpool", "fc")]
    return nn.Sequential(OrderedDict(layers))


def sides(size: int) -> list[int]:
    """The sides that a glance at an image of `size` pixels may have; ValueError if there is none.

    >>> sides(96), sides(56)
    ([8, 12, 16, 24, 32, 48], [8, 14, 28])
    """
    if divisors := [side for side in range(SMALLEST, size) if size % side == 0]:
        return divisors
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
    known = sides(size)
    if not isinstance(side, int) or side not in known:
        images = f"images of {size} pixels"
        larger = isinstance(side, int) and side > size
        problem = f"are larger than {images}" if larger else f"do not divide {images} into parts"
        raise ValueError(f"glances of {side} pixels {problem}: take {', '.join(map(str, known))}")


def frame_side(frames: int, size: int, glances: int) -> int:
    """Pixels of a frame of a clip; ValueError if they are too few or small, or do not fill it."""
    across = isqrt(frames)
    if across**2 != frames or across < 2 or size % across:
        raise ValueError(f"{frames} frames do not fill clips of {size} pixels in rows of {across}")
    if glances - 1 > frames:
        raise ValueError(f"{glances} glances see {glances - 1} frames, and a clip has {frames}")
    if size < SMALLEST * across:
        raise ValueError(
            f"{frames} frames in clips of {size} pixels have {size // across} each, and {SMALLEST} are "
            f"the least: use --size {SMALLEST * across} or more"
        )
    return size // across


def is_glance(name: str) -> bool:
    """Check whether a name is that of a network that glances, such as "glance-resnet20/4"."""
    return name.startswith((f"{CROPS}resnet", f"{FRAMES}resnet")) and "/" in name


def glance_builder(name: str, encoders: Callable[[str], Builder]) -> Builder:
    """The builder of a network that glances; ValueError for a number of glances that cannot be.

    Args:
        encoders: gives the builder of an encoder by name.
    """
    prefix = CROPS if name.startswith(CROPS) else FRAMES
    encoder, _, number = name.removeprefix(prefix).partition("/")
    count = int(number) if number.isdecimal() else 0
    if "@" in encoder:
        whole = encoder.partition("@")[0]
        raise ValueError(f"{encoder}: glances need a whole ResNet, such as {whole}")
    if not 1 < count <= MOST:
        raise ValueError(
            f"no network {name!r}: say how many glances, 2 to {MOST}, such as {prefix}{encoder}/4"
        )
    family = {str(i): (i,) for i in range(1, count + 1)}
    make = partial(_made, name, encoders(encoder), count)
    return Builder(
        make, ("glances",), str(count), family,
        size=96 if prefix == CROPS else 128, size_argument="image_size", recipe=prefix[:-1],
    )  # fmt: skip


def _made(
    name: str, encoder: Builder, count: int, *, frames: int | None = None, **arguments: Any
) -> GlanceNet:
    clips = name.startswith(FRAMES)
    if frames is not None and not clips:
        raise ValueError(f"{name}: its glances are crops; frames are of {FRAMES}RESNET/GLANCES")
    frames = USUAL_FRAMES if clips and frames is None else frames
    return GlanceNet(encoder, count, frames=frames, **arguments)
