"""What a family says of a network that `build` makes by name."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import nn

#: First layers for images of about 224 pixels, or of about 32 (at four times the resolution).
Stem = Literal["imagenet", "small"]


class Builder(NamedTuple):
    """A network by name: how to make it, where its stages are, and its family's usual depths.

    make: takes `num_classes` and other arguments to the full net.
    stages: as for `nets.reading.read`.
    full: the full net's own name in `family`, which has the blocks per stage of every known depth.
    stems: whether `make` takes `stem`.
    size: usual height and width of the input.
    size_argument: the argument of `make` that sets the input size, where a network is made for one.
    """

    make: Callable[..., nn.Module]
    stages: tuple[str, ...]
    full: str
    family: Mapping[str, tuple[int, ...]]
    stems: bool = False
    size: int = 224
    size_argument: str | None = None
