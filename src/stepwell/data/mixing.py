"""Changes of training batches that remove or blend labels, for distillation.

A change maps pixels (batch, 3, size, size) in [0, 255] and labels (see `types.Batch`) to new ones. Its
random numbers come from the given generator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Pixels = Shaped[Tensor, "batch channels size size"]
Change = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Mix:
    """Blend each image with another of its batch, with one share l from U[0, 1] per batch.

    kind: `mixup`, l · image + (1 - l) · other (Zhang et al. 2018); `cutmix`, a box of 1 - l of the
        area is filled from the other image (Yun et al. 2019).
    classes: number of classes; labels become shares of the classes, (batch, classes).
    """

    kind: Literal["mixup", "cutmix"]
    classes: int

    def __call__(
        self, pixels: Pixels, labels: Int[Tensor, " batch"], generator: torch.Generator
    ) -> tuple[Pixels, Float[Tensor, "batch classes"]]:
        """Mixed pixels, and the shares of the classes; 0 for the part of an image without a label."""
        other = torch.randperm(len(pixels), generator=generator)
        share = float(torch.rand((), generator=generator))
        if self.kind == "mixup":
            mixed = share * pixels + (1 - share) * pixels[other]
        else:
            inside = _box(pixels.shape[-1], 1 - share, generator)
            mixed = torch.where(inside, pixels[other], pixels)
            share = 1 - float(inside.float().mean())  # what is left of the first image
        shares = _shares(labels, self.classes)
        return mixed, share * shares + (1 - share) * shares[other]


@dataclass(frozen=True)
class Replace:
    """Replace each image with probability `share` by an image without a label.

    kind: `noise`, independent uniform bytes; `composites`, four images of the batch that meet at a
        random point, each in its own quarter.
    """

    kind: Literal["noise", "composites"]
    share: float

    def __call__(
        self, pixels: Pixels, labels: Int[Tensor, " batch"], generator: torch.Generator
    ) -> tuple[Pixels, Int[Tensor, " batch"]]:
        """Pixels with some images replaced; their labels are -1."""
        replaced = torch.rand(len(pixels), generator=generator) < self.share
        if self.kind == "noise":
            new = torch.randint(0, 256, pixels.shape, generator=generator, dtype=torch.uint8)
        else:
            new = _composites(pixels, generator)
        pixels = torch.where(replaced[:, None, None, None], new.to(pixels.dtype), pixels)
        return pixels, labels.masked_fill(replaced, -1)


def _shares(labels: Tensor, classes: int) -> Tensor:
    """Class indices (batch,) as one-hot rows (batch, classes); rows of -1 are zero."""
    return F.one_hot(labels + 1, classes + 1)[:, 1:].float()


def _box(size: int, area: float, generator: torch.Generator) -> Tensor:
    """The mask (size, size) of a random box with this share of the area; it may exceed the edge."""
    half = size * area**0.5 / 2
    y, x = (size * torch.rand(2, generator=generator)).tolist()
    at = torch.arange(size) + 0.5
    return ((at - y).abs() < half)[:, None] & ((at - x).abs() < half)


def _composites(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A composite of four images of the batch for each image, (batch, 3, size, size)."""
    n, _, size, _ = pixels.shape
    sources = torch.randint(n, (4, n), generator=generator)
    point = torch.randint(1, size, (2, n, 1), generator=generator)
    below, right = torch.arange(size) >= point  # (batch, size) each
    quarter = 2 * below.long()[:, :, None] + right.long()[:, None, :]  # (batch, size, size)
    new = pixels[sources[0]]
    for i in range(1, 4):
        new = torch.where((quarter == i)[:, None], pixels[sources[i]], new)
    return new
