"""Sums of absolute differences of bytes: the adder layer of a quantised network."""

from numbers import Integral

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor
from torch.nn.functional import pad, unfold

from stepwell.ops.adder.compiled import library
from stepwell.ops.adder.cpu import Kernels
from stepwell.ops.adder.operator import checked_pair, checked_shapes
from stepwell.ops.adder.reference import out_size


def sum_of_absolute_differences(
    x: UInt8[Tensor, "batch channels height width"],
    weight: UInt8[Tensor, "filters channels window_height window_width"],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    *,
    zero: int = 0,
) -> Int32[Tensor, "batch filters out_height out_width"]:
    """Sum |x - f| over each patch, for bytes of a common scale and zero point.

    Args:
        zero: the byte that stands for 0, with which the maps are padded.

    Raises:
        ValueError: shapes do not fit, the tensors are no bytes on one device, `zero` is no byte, or a
            sum could exceed an int32.
    """
    stride, padding = checked_pair("stride", stride, 1), checked_pair("padding", padding, 0)
    checked_shapes(x, weight, stride, padding)
    if (x.dtype, weight.dtype) != (torch.uint8, torch.uint8):
        raise ValueError(f"maps of {x.dtype}, filters of {weight.dtype}: both must be torch.uint8")
    if not isinstance(zero, Integral) or not 0 <= zero <= 255:
        raise ValueError(f"zero is a byte, 0 to 255, not {zero}")
    if weight[:1].numel() * 255 >= 2**31:
        raise ValueError(f"filters of {weight[:1].numel():,} bytes: a sum could exceed an int32")
    compiled = library() if x.device.type == "cpu" else None
    if compiled is not None:
        return Kernels(compiled).sad(x, weight, stride, padding, int(zero))
    high, wide = padding
    patches = unfold(
        pad(x.float(), (wide, wide, high, high), value=zero), weight.shape[2:], stride=stride
    )
    flat = weight.flatten(1).float()  # whole numbers up to 2^24 are exact
    rows = [(patches - f[:, None]).abs().sum(1, dtype=torch.float64) for f in flat]
    size = out_size(x.shape[2:], weight.shape[2:], stride, padding)
    return torch.stack(rows, 1).to(torch.int32).unflatten(2, size)
