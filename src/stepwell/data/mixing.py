"""Changes of training batches that take away or blend labels: what distillation can learn from.

A teacher labels whatever the student sees, so a student may also be taught by mixed images, noise and
composites. Each change maps pixels (batch, 3, size, size) in [0, 255] and labels, as `types.Batch` has
them, to new ones, and draws from the generator that it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Change = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Mix:
    """Each image blended with another of its batch, by one share l of U[0, 1] a batch.

    kind: `mixup`, l · image + (1 - l) · other (Zhang et al. 2018); `cutmix`, a box of 1 - l of the
        area is cut out and filled from the other (Yun et al. 2019).
    classes: how many; labels become shares of them, (batch, classes).
    """

    kind: Literal["mixup", "cutmix"]
    classes: int

    def __call__(
        self, pixels: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mixed pixels, and for each class its share; no share where an image has no label."""
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
    """Images replaced, each with probability `share`, by something without a label.

    kind: `noise`, every pixel and channel drawn for itself, uniform over all bytes; `composites`, four
        images of the batch that meet in a random point, each in its own quarter.
    """

    kind: Literal["noise", "composites"]
    share: float

    def __call__(
        self, pixels: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Pixels some of which are new; those images' labels are -1."""
        replaced = torch.rand(len(pixels), generator=generator) < self.share
        if self.kind == "noise":
            new = torch.randint(0, 256, pixels.shape, generator=generator, dtype=torch.uint8)
        else:
            new = _composites(pixels, generator)
        pixels = torch.where(replaced[:, None, None, None], new.to(pixels.dtype), pixels)
        return pixels, labels.masked_fill(replaced, -1)


def _shares(labels: Tensor, classes: int) -> Tensor:
    """Class indices (batch,) as (batch, classes) of ones and zeros; all zero where there is none."""
    return F.one_hot(labels + 1, classes + 1)[:, 1:].float()


def _box(size: int, area: float, generator: torch.Generator) -> Tensor:
    """Where a box of this share of the area lies that may reach over the edge, (size, size)."""
    half = size * area**0.5 / 2
    y, x = (size * torch.rand(2, generator=generator)).tolist()
    at = torch.arange(size) + 0.5
    return ((at - y).abs() < half)[:, None] & ((at - x).abs() < half)


def _composites(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """For each image, four of the batch around a point; (batch, 3, size, size)."""
    n, _, size, _ = pixels.shape
    sources = torch.randint(n, (4, n), generator=generator)
    point = torch.randint(1, size, (2, n, 1), generator=generator)
    below, right = torch.arange(size) >= point  # (batch, size) each
    quarter = 2 * below.long()[:, :, None] + right.long()[:, None, :]  # (batch, size, size)
    new = pixels[sources[0]]
    for i in range(1, 4):
        new = torch.where((quarter == i)[:, None], pixels[sources[i]], new)
    return new
