"""Multi-scale dense networks with an exit behind every block (Huang et al. 2018, arXiv 1703.09844).

Layers of all scales run side by side, so a coarse map for a classifier is there from the first block
on. A step hands on a tuple of maps, fine to coarse; the last stands for the block.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.nets.nested.exits import ConvHead, conv_norm
from stepwell.types import Images, Logits

Maps = tuple[Float[Tensor, "batch _ _ _"], ...]
#: Layers of each block. A network of 24 layers is the paper's for anytime prediction, with a classifier
#: at every second layer from the fourth on; the others are those for budgets, where block k has k.
LAYERS = {
    "10": (1, 2, 3, 4), "15": (1, 2, 3, 4, 5), "21": (1, 2, 3, 4, 5, 6), "24": (4, *(2,) * 10),
}  # fmt: skip
#: Factors of channels at each scale, fine to coarse: of all layers, and inside their bottlenecks.
GROWTH, BOTTLENECK = (1, 2, 4), (1, 2, 4)


def stages_of(name: str) -> tuple[str, ...]:
    """Every block is a stage of its own, because no later block can run without it."""
    return tuple(f"blocks[{i}:{i + 1}]" for i in range(len(LAYERS[name])))


class FirstLayer(nn.Module):
    """The maps of all scales from an image, each from the next finer one by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [3, *(channels * factor for factor in GROWTH)]
        strides = (1, *(2,) * (len(GROWTH) - 1))
        pairs = zip(pairwise(widths), strides, strict=True)
        self.scales = nn.ModuleList(conv_norm(a, b, 3, stride) for (a, b), stride in pairs)

    def forward(self, x: Images) -> Maps:
        """Images to maps, fine to coarse."""
        maps = []
        for scale in self.scales:
            x = scale(x)
            maps.append(x)
        return tuple(maps)


class DenseScale(nn.Module):
    """Appends new channels to the map of one scale, half of them from the next finer map, if any.

    Args:
        width, finer: channels of the map, and of the finer one; 0 if there is none.
        growth: channels to append.
        inner: largest multiple of the new channels inside a bottleneck, here and at the finer scale.
    """

    def __init__(self, width: int, finer: int, growth: int, inner: tuple[int, int]) -> None:
        super().__init__()
        each = growth // 2 if finer else growth
        self.down = _bottleneck(finer, each, inner[1], stride=2) if finer else None
        self.same = _bottleneck(width, each, inner[0], stride=1)

    def forward(self, x: Float[Tensor, "batch _ _ _"], finer: Tensor | None) -> Tensor:
        """The map of this scale with the new channels behind its own."""
        new = [] if self.down is None else [self.down(finer)]
        return torch.cat([x, *new, self.same(x)], 1)


class DenseLayer(nn.Module):
    """One layer of all active scales; drops the finest maps that no later layer needs.

    Args:
        width: channels of the input at a factor of 1.
        growth: new channels at a factor of 1.
        scales: number of scales, coarsest last, of the input and of the output.
    """

    def __init__(self, width: int, growth: int, scales: tuple[int, int]) -> None:
        super().__init__()
        self.dropped = scales[0] - scales[1]
        first = len(GROWTH) - scales[1]
        self.scales = nn.ModuleList()
        for i in range(first, len(GROWTH)):
            finer = i - 1 if i > first or self.dropped else None
            inner = (BOTTLENECK[i], 0 if finer is None else BOTTLENECK[finer])
            below = 0 if finer is None else width * GROWTH[finer]
            self.scales.append(DenseScale(width * GROWTH[i], below, growth * GROWTH[i], inner))

    def forward(self, maps: Maps) -> Maps:
        """Maps, fine to coarse, to the next layer's."""
        finer = (None, *maps)[self.dropped :]
        pairs = zip(self.scales, maps[self.dropped :], finer, strict=False)
        return tuple(scale(x, below) for scale, x, below in pairs)


class Transition(nn.Module):
    """Reduces the channels of every scale, where a scale was dropped."""

    def __init__(self, width: int, reduced: int, scales: int) -> None:
        super().__init__()
        factors = GROWTH[len(GROWTH) - scales :]
        self.scales = nn.ModuleList(conv_norm(width * f, reduced * f, 1) for f in factors)

    def forward(self, maps: Maps) -> Maps:
        """Maps to narrower maps."""
        return tuple(scale(x) for scale, x in zip(self.scales, maps, strict=True))


class MSDNet(nn.Module):
    """MSDNet for images of about 32 pixels: three scales and dense blocks.

    The layers are split into as many equal parts as there are scales; behind each part the finest
    scale is dropped and half of the channels. The last classifier is the network's own; `add_exit`
    makes those behind the earlier blocks of the same kind.

    Args:
        layers: number of layers of each block.
        channels, growth: of the first layer, and new ones in each layer, at the finest scale.
    """

    def __init__(
        self, layers: Sequence[int], *, num_classes: int = 10, channels: int = 16, growth: int = 6
    ) -> None:
        super().__init__()
        self.stem = FirstLayer(channels)
        self.blocks = nn.Sequential()
        width, at, scales = channels, 0, len(GROWTH)
        part = ceil(sum(layers) / len(GROWTH))
        for count in layers:
            block: list[nn.Module] = []
            for _ in range(count):
                left = len(GROWTH) - at // part
                block.append(DenseLayer(width, growth, (scales, left)))
                width += growth
                if left < scales:
                    block.append(Transition(width, width // 2, left))
                    width //= 2
                at, scales = at + 1, left
            self.blocks.append(nn.Sequential(*block))
        self.classifier = self.exit_head(width * GROWTH[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def exit_head(self, channels: int, classes: int) -> ConvHead:
        """A head for an exit behind a block whose coarsest map has these channels."""
        return ConvHead(channels, classes)

    def forward(self, x: Images) -> Logits:
        """Images (batch, 3, height, width) to logits (batch, classes)."""
        return self.classifier(self.blocks(self.stem(x)))


def _bottleneck(width_in: int, width: int, factor: int, *, stride: int) -> nn.Sequential:
    inner = min(width_in, factor * width)
    return nn.Sequential(*conv_norm(width_in, inner, 1), *conv_norm(inner, width, 3, stride))
