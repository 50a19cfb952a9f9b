"""A small U-Net that maps an image and a time to an image (Ronneberger et al. 2015; Ho et al. 2020)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.types import Images


class UNet(nn.Module):
    """One residual block a level on the way down, two at the bottom, one a level on the way up.

    Every block takes an embedding of the time. The last convolution starts at zero. `widths` are the
    channels of each level; each level has half the resolution of the one before.
    """

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (32, 64)) -> None:
        super().__init__()
        embedding = 4 * widths[0]
        self.frequencies = widths[0]
        self.time = nn.Sequential(
            nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Block(width, width, embedding) for width in widths)
        strided = (nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.shrink = nn.ModuleList(strided)
        self.bottom = nn.ModuleList(_Block(widths[-1], widths[-1], embedding) for _ in range(2))
        upwards = list(reversed(widths))
        below = [widths[-1], *upwards[:-1]]
        pairs = zip(below, upwards, strict=True)
        self.up = nn.ModuleList(_Block(under + width, width, embedding) for under, width in pairs)
        self.out = nn.Conv2d(widths[0], channels, 3, padding=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Images, time: Float[Tensor, " batch"]) -> Images:
        """Images (batch, channels, height, width) at times in [0, 1] to images of the same shape."""
        embedding = self.time(_waves(time, self.frequencies))
        x, levels = self.stem(x), []
        for i, block in enumerate(self.down):
            x = block(self.shrink[i - 1](x) if i else x, embedding)
            levels.append(x)
        for block in self.bottom:
            x = block(x, embedding)
        for block in self.up:
            level = levels.pop()
            x = F.interpolate(x, size=level.shape[-2:])  # nearest; an odd size halves to more
            x = block(torch.cat([x, level], 1), embedding)
        return self.out(F.silu(x))


class _Block(nn.Module):
    """Two convolutions with a norm each, with the time added between them, and a shortcut."""

    def __init__(self, width_in: int, width: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.told = nn.Linear(embedding, width)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.told(F.silu(embedding))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


def _waves(time: Tensor, count: int) -> Tensor:
    """Times (batch,) as sines and cosines (batch, count) of periods from 2 pi / 1000 to about 60."""
    rates = torch.exp(torch.linspace(math.log(1e3), math.log(0.1), count // 2, device=time.device))
    angles = time[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
