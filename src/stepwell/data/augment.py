"""Random changes of training images that keep their labels."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

Pixels = Shaped[Tensor, "batch 3 size size"]
Policy = Literal["none", "standard", "rotate", "vflip", "jitter", "combined"]


@dataclass(frozen=True)
class Augment:
    """Augmentation of whole batches of bytes (batch, 3, size, size), in the order below.

    jitter: change brightness, contrast and saturation by up to this factor, and the hue by up to this
        share of the colour circle.
    rotate: turn by up to so many degrees to either side; the corners become black.
    vflip: turn half of the images upside down.
    pad: crop at random from an image padded with this many black pixels on each side.
    flip: mirror half of the images.
    min_area: instead of `pad`, crop a random part of at least this share of the area and stretch it to
        the full size (for photographs of 64 pixels and more); 1 leaves the area whole.
    """

    pad: int = 4
    flip: bool = True
    min_area: float = 1.0
    rotate: float = 0.0
    vflip: bool = False
    jitter: float = 0.0

    @classmethod
    def standard(cls, size: int, flip: bool) -> "Augment":
        """Usual changes at this size: pad an eighth and crop, or crop 35 % of the area and more."""
        if size >= 64:
            return cls(pad=0, flip=flip, min_area=0.35)
        return cls(pad=size // 8, flip=flip)

    @classmethod
    def of(cls, policy: Policy, size: int, flip: bool) -> "Augment | None":
        """The augmentation of a policy, which comes on top of the standard one.

        The values are those of Stanton et al. 2021, appendix A.1: rotation by up to 20 degrees,
        vertical flips, jitter of 0.2, and `combined`: all three.
        """
        if policy == "none":
            return None
        every = policy == "combined"
        return replace(
            cls.standard(size, flip),
            rotate=20.0 if every or policy == "rotate" else 0.0,
            vflip=every or policy == "vflip",
            jitter=0.2 if every or policy == "jitter" else 0.0,
        )

    def __call__(self, images: Pixels, generator: torch.Generator) -> Pixels:
        """Augmented images; every image draws for itself."""
        if self.jitter:
            images = _jittered(images, self.jitter, generator)
        if self.rotate:
            images = _rotated(images, self.rotate, generator)
        if self.vflip:
            upside_down = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
            images = torch.where(upside_down, images.flip(2), images)
        if self.min_area < 1:
            return self._resized_crop(images, generator)
        n, size = len(images), images.shape[-1]
        top, left = torch.randint(0, 2 * self.pad + 1, (2, n, 1), generator=generator)
        rows, columns = top + torch.arange(size), left + torch.arange(size)  # (batch, size)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, (self.pad,) * 4)
        image, channel = torch.arange(n)[:, None, None, None], torch.arange(3)[:, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def _resized_crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Random crops of some area and aspect, stretched to the full size by bilinear sampling."""
        n = len(images)
        area, aspect, x, y, mirror = torch.rand(5, n, generator=generator)
        area = self.min_area + (1 - self.min_area) * area
        aspect = torch.exp((2 * aspect - 1) * torch.tensor(4 / 3).log())
        width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
        sign = torch.where(mirror < 0.5, -1.0, 1.0) if self.flip else torch.ones(n)
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 0, 2] = sign * width, (2 * x - 1) * (1 - width)
        theta[:, 1, 1], theta[:, 1, 2] = height, (2 * y - 1) * (1 - height)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)


def _rotated(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Floats: the images turned about their middle, by bilinear sampling."""
    angle = (2 * torch.rand(len(images), generator=generator) - 1) * math.radians(degrees)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos(), -angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), angle.cos()
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


def _jittered(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Bytes: the colours of each image changed as by torchvision, in an order of its own."""
    changes = (_brightness, _contrast, _saturation, _hue)
    n = len(images)
    drawn = (2 * torch.rand(n, len(changes), generator=generator) - 1) * strength
    values = drawn + torch.tensor([1.0, 1.0, 1.0, 0.0])  # a hue is turned, the others are factors
    orders = torch.rand(n, len(changes), generator=generator).argsort(1)
    images = images.clone()
    for place in orders.unbind(1):
        for i, change in enumerate(changes):
            rows = (place == i).nonzero().flatten()
            changed = change(images[rows].float(), values[rows, i, None, None, None])
            images[rows] = changed.clamp(0, 255).to(torch.uint8)
    return images


# Each change takes floats (batch, 3, height, width) in [0, 255] and numbers (batch, 1, 1, 1).


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return factor * x


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    return factor * x + (1 - factor) * _grey(x).mean((2, 3), keepdim=True)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return factor * x + (1 - factor) * _grey(x)


def _hue(x: Tensor, turn: Tensor) -> Tensor:
    """Value and chroma stay; a turn of 1 goes once round the colour circle."""
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    apart = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(  # in sixths of the circle
        value == red,
        (green - blue) / apart,
        torch.where(value == green, 2 + (blue - red) / apart, 4 + (red - green) / apart),
    )
    corner = torch.tensor([5.0, 3.0, 1.0])[:, None, None]  # from where each colour is measured
    k = (hue + 6 * turn + corner) % 6
    turned = value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
    return turned * (255.999 / 255)  # as torchvision rounds: each byte has an equal share of [0, 1]


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, 1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()
