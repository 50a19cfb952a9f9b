"""The description of a network that `build` makes by name."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import nn

#: First layers for images of about 224 pixels, or of about 32 pixels (a quarter of the stride).
Stem = Literal["imagenet", "small"]


class Builder(NamedTuple):
    """A network by name: how to make it, its stages, and its family's usual depths.

    make: makes the full net from `num_classes` and other arguments.
    stages: as for `nets.nested.reading.read`.
    full: the full net's own name in `family`, which has the blocks per stage of every known depth.
    stems: True if `make` takes `stem`.
    size: usual height and width of the input.
    size_argument: the argument of `make` that sets the input size, for a network made for one size.
    recipe: the one recipe that teaches the network's decisions; empty for a network without any.
    """

    make: Callable[..., nn.Module]
    stages: tuple[str, ...]
    full: str
    family: Mapping[str, tuple[int, ...]]
    stems: bool = False
    size: int = 224
    size_argument: str | None = None
    recipe: str = ""
