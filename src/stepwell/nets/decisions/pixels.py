"""Residual blocks that run at some positions of a map, after DynConv (Verelst and Tuytelaars 2020).

y = relu(shortcut(x) + m · branch(x)),  m in {0, 1} for each position of the output

The last convolution of the branch runs on the mask m, and what lies before its 3×3 convolution on the
mask dilated by one position, so that every value that it reads is there.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from stepwell.nets.decisions.estimators import Draw, Scores
from stepwell.nets.decisions.executor import Positions, at_positions, limit, with_added_rows
from stepwell.nets.decisions.skipping import Gated, GatedBasicBlock, GatedBottleneck, Maps

#: A mask of positions; true where the branch runs.
Mask = Bool[Tensor, "batch height width"]
#: The same at the resolution of what lies before the 3×3 convolution.
Wide = Bool[Tensor, "batch tall broad"]
#: The bias of the scores at first: 88 % of the positions run.
OPEN = 2.0


class MaskUnit(nn.Module):
    """The scores "run" of all positions: a 3×3 convolution of the map, plus a layer on its mean.

    Both are one matrix product here, whose parts are shifted and added: torch's convolutions to a
    single channel take 3 to 6 times as long.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.place = nn.Conv2d(channels, 1, 3, stride, padding=1, bias=False)
        self.scores = nn.Linear(channels, 1)
        nn.init.normal_(self.place.weight, std=0.01)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.constant_(self.scores.bias, OPEN)

    def forward(self, x: Maps) -> Float[Tensor, "batch height width"]:
        """Maps to one score a position; the branch runs where it is positive."""
        batch, channels, height, width = x.shape
        kernel = self.place.weight[0].flatten(1).t()  # (9, channels)
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        # in this order the product reads the maps as they lie in memory
        parts = (rows @ torch.cat([kernel, self.scores.weight]).t()).t()
        parts = parts.unflatten(1, (batch, height, width))
        mean = parts[9].mean((1, 2)) + self.scores.bias
        shifted, stride = F.pad(parts[:9], (1, 1, 1, 1)), self.place.stride[0]
        y = mean[:, None, None]
        for k in range(9):  # the part of a kernel's row and column, moved to the middle
            row, column = divmod(k, 3)
            y = y + shifted[k, :, row : row + height : stride, column : column + width : stride]
        return y


class Given(nn.Module):
    """Stands for a mask unit: it gives a mask that is there already, whatever the maps are."""

    def __init__(self, mask: Float[Tensor, "batch height width"]) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Maps) -> Float[Tensor, "batch height width"]:
        """Scores of the mask: positive where it is 1."""
        return self.get_buffer("mask") - 0.5


class Work(NamedTuple):
    """The convolutions of a branch: MACs at one position, by the mask that they run on.

    wide: before the 3×3 convolution that reads neighbours, on the dilated mask.
    narrow: on the mask itself.
    """

    wide: int
    narrow: int


class Masked(Gated):
    """A residual block behind a mask of positions; the base of the classes below.

    In training, and in eval with a `draw`, the branch runs everywhere and is multiplied by the mask. In
    eval without one, the sign of the scores decides, and the branch runs at the positions of the mask,
    or everywhere where `break_even` says that this is faster. Its shares are of the branch's MACs.
    """

    in_graphs = MappingProxyType({
        "onnx": "every position of every block", "pt2": "every position of every block"
    })  # fmt: skip

    stride: int

    def __init__(self, inplanes: int, planes: int, stride: int = 1, *args: Any, **options: Any) -> None:
        super().__init__(inplanes, planes, stride, *args, **options)
        self.gate = MaskUnit(inplanes, stride)

    @property
    def work(self) -> Work:
        """The MACs of the branch's convolutions, at a position of the output."""
        raise NotImplementedError

    def compacted(
        self, x: Maps, mask: Mask, wide: Wide
    ) -> tuple[Positions, Float[Tensor, "n channels"]]:
        """The positions of the mask, and the branch's values there."""
        raise NotImplementedError

    def widened(self, mask: Float[Tensor, "batch height width"], x: Maps) -> Tensor:
        """The mask dilated by one position, at the resolution of what the dilated mask is for."""
        return F.max_pool2d(mask[:, None], 3, 1, 1)[:, 0]

    def counted(
        self, mask: Float[Tensor, "batch height width"], x: Maps
    ) -> tuple[Float[Tensor, " batch"], float]:
        """The share of the branch's MACs that runs, of each image, and the MACs of all positions.

        The share has the mask's gradient.
        """
        dilated = self.widened(mask, x)
        wide = self.work.wide * dilated.shape[1:].numel()
        narrow = self.work.narrow * mask.shape[1:].numel()
        open = wide * dilated.mean((1, 2)) + narrow * mask.mean((1, 2))
        return open / (wide + narrow), wide + narrow

    def some(self, x: Maps, share: float) -> Mask:
        """A mask of about this share of the positions: a square in the middle of each map."""
        height, width = (-(-side // self.stride) for side in x.shape[2:])
        mask = torch.zeros(len(x), height, width, dtype=torch.bool, device=x.device)
        tall, broad = (max(1, round(side * share**0.5)) for side in (height, width))
        top, left = (height - tall) // 2, (width - broad) // 2
        mask[:, top : top + tall, left : left + broad] = True
        return mask

    def share_of(self, decision: Mask, x: Maps) -> float:
        """The share of the branch's MACs of a mask."""
        return float(self.counted(decision.float(), x)[0].mean())

    def run(
        self, base: Maps, x: Maps, decision: Mask, break_even: Mapping[int, float] | None = None
    ) -> Maps:
        """Add the branch to `base` where the mask is true; above the break-even all is computed."""
        if not decision.any():
            return base
        most = limit(break_even, len(x))
        if bool(decision.all()):
            return self.branch(x).add_(base)  # no further memory, as torchvision's block
        if most < 1 and self.share_of(decision, x) > most:
            return torch.addcmul(base, decision[:, None].to(base.dtype), self.branch(x))
        wide = self.widened(decision.to(x.dtype), x) > 0
        positions, values = self.compacted(x, decision, wide)
        return with_added_rows(base, positions, values)

    def forward(
        self, x: Maps, extras: Collection[str] = (), draw: Draw | None = None
    ) -> Maps | tuple[Maps, Mapping[str, Tensor]]:
        """The block's output; with `extras`, also what its mask decided, by name.

        "mask" and "scores" have a number for each position; "open" is the share of the branch's MACs
        that runs, of each image, and "macs" all of its MACs.
        """
        base = x if self.downsample is None else self.downsample(x)
        static = torch.compiler.is_compiling() or x.is_meta
        if draw is not None and draw.estimator == "always":  # the block without its mask
            y = base + self.branch(x)
            mask = scores = y.new_ones(y[:, 0].shape)
        else:
            scores = self.gate(x)
            if self.training or draw is not None or static:
                default = Draw() if self.training else Draw("threshold")
                mask = chosen(scores, default if draw is None else draw)
                y = base + mask[:, None].to(base.dtype) * self.branch(x)
            else:
                decision = scores > 0
                mask = decision.float()
                y = self.run(base, x, decision, self.break_even)
        y = F.relu(y, inplace=y is not base)  # a mask without positions may give the block's input
        if not extras:
            return y
        open, macs = self.counted(mask, x)
        return y, {"open": open, "macs": open.new_full((), macs), "scores": scores, "mask": mask}


def chosen(scores: Float[Tensor, "batch height width"], draw: Draw) -> Tensor:
    """The mask of some scores, with the gradient of an estimator of two choices.

    With "gumbel" it is the hard Gumbel-sigmoid of DynConv: a difference of two Gumbel variables.
    """
    flat = scores.float().flatten()
    pairs: Scores = torch.stack([torch.zeros_like(flat), flat], 1)
    return draw(pairs)[:, 1].view_as(scores)


class MaskedBasicBlock(Masked, GatedBasicBlock):
    """torchvision's basic block behind a mask; arguments as there."""

    @property
    def work(self) -> Work:
        """Two 3×3 convolutions; the second reads the neighbours of the first."""
        return Work(_macs(self.conv1), _macs(self.conv2))

    def compacted(
        self, x: Maps, mask: Mask, wide: Wide
    ) -> tuple[Positions, Float[Tensor, "n channels"]]:
        """The positions of the mask, and the branch's values there."""
        inner = Positions.of(wide)
        y = at_positions(x, inner, self.conv1, self.bn1, relu=True)
        outer = Positions.of(mask)
        return outer, at_positions(inner.spread(y), outer, self.conv2, self.bn2)


class MaskedBottleneck(Masked, GatedBottleneck):
    """torchvision's bottleneck behind a mask; arguments as there."""

    @property
    def work(self) -> Work:
        """A 1×1 convolution before the 3×3 one, at the input's resolution, and the two others."""
        return Work(_macs(self.conv1), _macs(self.conv2) + _macs(self.conv3))

    def widened(self, mask: Float[Tensor, "batch height width"], x: Maps) -> Tensor:
        """The positions of the input that the 3×3 convolution reads."""
        stride = self.stride
        if stride > 1:  # a position of the output lies on every stride-th of the input
            place = mask.new_zeros(stride, stride)
            place[0, 0] = 1
            mask = torch.kron(mask.contiguous(), place)[:, : x.shape[2], : x.shape[3]]
        return super().widened(mask, x)

    def compacted(
        self, x: Maps, mask: Mask, wide: Wide
    ) -> tuple[Positions, Float[Tensor, "n channels"]]:
        """The positions of the mask, and the branch's values there."""
        inner = Positions.of(wide)
        y = at_positions(x, inner, self.conv1, self.bn1, relu=True)
        outer = Positions.of(mask)
        y = at_positions(inner.spread(y), outer, self.conv2, self.bn2, relu=True)
        return outer, at_positions(y, outer, self.conv3, self.bn3)


def _macs(conv: nn.Module) -> int:
    assert isinstance(conv, nn.Conv2d)
    return conv.weight.numel()


#: The blocks by the class that they are without a mask.
MASKED: Mapping[type[nn.Module], type[Masked]] = {
    BasicBlock: MaskedBasicBlock,
    Bottleneck: MaskedBottleneck,
}


def has_masks(module: nn.Module) -> bool:
    """True if blocks of a network run at some positions, not for some images."""
    return any(isinstance(block, Masked) for block in module.modules())
