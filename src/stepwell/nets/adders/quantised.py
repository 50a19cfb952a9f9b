"""Adder layers of bytes: quantisation of a trained network, without training.

Inputs a and filters f of a layer have one scale s and one zero point, as |a - f| needs:

    a lies in [lo, hi], which holds 0 and all inputs but 0.03 % at each end
    s = (hi - lo) / (2^bits - 1)
    |a - f| = |a - c| + |f - c|  with c = f clipped to [lo, hi]
    y = -s · Σ |q(a) - q(c)| - Σ |f - c|  with q(v) = round(v / s) + zero, cut to 0 ... 2^bits - 1

The third line is exact for every a in the range, so wide filters take no bits: behind a ReLU, all
negative numbers of a filter are in the last sum, a constant of the filter. It is the weight clamp of
AdderQuant (Nie et al. 2022), with one group of filters and one scale for both sides in full range.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.nets.adders.layers import AdderConv2d, adder_layers, replace_layers
from stepwell.ops.adder import sum_of_absolute_differences

#: Share of the inputs within the range; numbers of a batch of which it is taken, at most.
WITHIN, SAMPLED = 0.9997, 1_000_000


class _Observed(nn.Module):
    """An adder layer that notes the range of its inputs: a mean over batches."""

    def __init__(self, layer: AdderConv2d) -> None:
        super().__init__()
        self.layer = layer
        self.ranges: list[Tensor] = []

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        _check_finite(x)
        if not x.numel():
            raise ValueError("a batch without an input sets no range")
        values = x.float().flatten()
        if len(values) > SAMPLED:  # drawn: an even step could keep to some columns
            order = torch.Generator().manual_seed(len(self.ranges))
            drawn = torch.randint(len(values), (SAMPLED,), generator=order)
            values = values[drawn.to(values.device)]
        self.ranges.append(values.quantile(values.new_tensor([1 - WITHIN, WITHIN])))
        y: Tensor = self.layer(x)
        return y

    def range(self) -> tuple[float, float]:
        """The lower and upper end; 0 lies between them, because padding is with zeros."""
        low, high = torch.stack(self.ranges).mean(0).tolist()
        return min(low, 0.0), max(high, 0.0)


class ByteAdderConv2d(nn.Module):
    """An adder layer whose inputs and filters are whole numbers of `bits` bits.

    Inputs beyond the range get its ends. ValueError for inputs that are not finite.

    Args:
        layer: the trained layer.
        low, high: the range of its inputs, with 0 in it.
        bits: 2 to 8.

    Raises:
        ValueError: a number of bits that bytes do not have.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    scale: float
    zero: int
    levels: int

    def __init__(self, layer: AdderConv2d, low: float, high: float, bits: int = 8) -> None:
        super().__init__()
        if not isinstance(bits, Integral) or not 2 <= bits <= 8:
            raise ValueError(f"bits {bits}: bytes hold 2 to 8")
        self.stride, self.padding, self.levels = layer.stride, layer.padding, 2**bits - 1
        self.scale = (high - low) / self.levels or 1.0  # all inputs may be 0
        self.zero = round(-low / self.scale)
        weight = layer.weight.detach().float()
        least, most = -self.zero * self.scale, (self.levels - self.zero) * self.scale
        clipped = weight.clamp(least, most if high > low else least)
        self.register_buffer("weight", self.quantised(clipped))
        self.register_buffer("bias", -(weight - clipped).abs().sum((1, 2, 3)))

    def quantised(self, values: Tensor) -> Tensor:
        """The bytes that stand for `values`."""
        return ((values / self.scale).round() + self.zero).clamp(0, self.levels).to(torch.uint8)

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Maps to maps as the trained layer gives them, up to rounding."""
        _check_finite(x)
        sums = sum_of_absolute_differences(
            self.quantised(x.float()), self.weight, self.stride, self.padding, zero=self.zero
        )
        return (self.bias.float()[:, None, None] - self.scale * sums).to(x.dtype)

    def get_extra_state(self) -> dict[str, float]:
        """Scale, zero point and levels, which a state_dict has beside the filters."""
        return {"scale": self.scale, "zero": self.zero, "levels": self.levels}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take scale, zero point and levels of a state_dict."""
        for name in ("scale", "zero", "levels"):
            setattr(self, name, state[name])


def _check_finite(x: Tensor) -> None:
    if not x.isfinite().all():
        raise ValueError("the inputs of an adder layer are not finite: bytes cannot hold them")


@torch.no_grad()
def quantise(
    module: nn.Module, batches: Iterable[Float[Tensor, "batch ..."]], bits: Sequence[int]
) -> dict[int, nn.Module]:
    """Copies of a trained network, one for each number of bits of its adder layers.

    All other layers stay as they are.

    Args:
        batches: inputs that set the ranges, such as some hundred training images.

    Raises:
        ValueError: the network has no adder layer; there is no batch, or one without an input or with
            numbers that are not finite; `bits` is no list, or one of its numbers is not 2 to 8.
    """
    if not isinstance(bits, Sequence) or isinstance(bits, str):
        raise ValueError(f"bits {bits!r}: a list of numbers is meant, such as [8, 4]")
    observed = deepcopy(module).eval()
    layers = adder_layers(observed)
    if not layers:
        raise ValueError("the network has no adder layer: bits are for adder networks")
    watched = {name: _Observed(layer) for name, layer in layers.items()}
    replace_layers(observed, {layers[name]: layer for name, layer in watched.items()})
    for batch in batches:
        observed(batch)
    if not all(layer.ranges for layer in watched.values()):
        raise ValueError("ranges of adder layers need at least one batch of inputs")
    made = {}
    for count in bits:
        made[count] = deepcopy(module).eval()
        of_bytes: dict[nn.Module, nn.Module] = {
            layer: ByteAdderConv2d(layer, *watched[name].range(), count)
            for name, layer in adder_layers(made[count]).items()
        }
        replace_layers(made[count], of_bytes)
    return made
