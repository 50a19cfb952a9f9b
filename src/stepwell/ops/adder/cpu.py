"""The compiled kernels on tensors: maps and filters with channels last in memory."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from stepwell.ops.adder.reference import (
    Filters,
    Gradient,
    Maps,
    Pair,
    input_gradient,
    layer_sizes,
    nhwc,
    out_size,
)

#: Fewer pairs of numbers than this are the work of one thread.
PARALLEL = 1_000_000
#: Rows of all images at most: the kernels count them in 32 bits.
MOST_ROWS = (1 << 31) - 1


class _Layer(ctypes.Structure):
    """`Layer` of kernel.c."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "images", "height", "width", "channels", "filters", "kernel_h", "kernel_w", "stride_h",
            "stride_w", "padding_h", "padding_w", "out_h", "out_w", "op", "zero",
        )
    ] + [(name, ctypes.c_void_p) for name in ("x", "weight", "grad", "out")]  # fmt: skip


def _call(
    name: str, library: ctypes.CDLL, shape: Sequence[int], kernel: Sequence[int], stride: Pair,
    padding: Pair, out: Tensor, *, x: Tensor, weight: Tensor, grad: Tensor | None = None, op: int = 0,
    zero: int = 0,
) -> None:  # fmt: skip
    """Call a kernel for an input of `shape` and filters of shape `kernel`, as torch has them."""
    sizes = layer_sizes(shape, kernel, stride, padding)
    pointers = [t.data_ptr() if t is not None else None for t in (x, weight, grad, out)]
    if not out.numel():
        return
    images, _, _, channels, filters, *window, _, _, _, _, high, wide = sizes
    if images * max(shape[2], high) > MOST_ROWS:
        raise ValueError(f"{images:,} images of {max(shape[2], high):,} rows: use a smaller batch")
    pairs = images * channels * filters * prod(window) * high * wide
    threads = torch.get_num_threads() if pairs >= PARALLEL else 1
    if getattr(library, f"adder_{name}")(ctypes.byref(_Layer(*sizes, op, zero, *pointers)), threads):
        raise MemoryError("no memory for the rows of an adder layer: use a smaller batch or images")


def _filled(tensor: Tensor, last: int) -> Tensor:
    """Fill the last dimension with zeros to a multiple of `last`."""
    return pad(tensor, (0, -tensor.shape[-1] % last))


@dataclass(frozen=True)
class Kernels:
    """The kernels of a compiled library."""

    library: ctypes.CDLL
    #: The gradients of the input that there are.
    GRADIENTS: ClassVar = ("clipped", "sign")

    def forward(self, x: Maps, weight: Filters, stride: Pair, padding: Pair) -> Maps:
        """Minus the L1 distance of each patch and each filter, in float32, with channels last."""
        lanes = self.library.adder_lanes()
        # (height, width, channels, filters) -> vectors of filters, (height, width, channels, lanes)
        packed = _filled(weight.float().permute(2, 3, 1, 0), lanes).unflatten(3, (-1, lanes))
        packed = packed.permute(3, 0, 1, 2, 4).contiguous()
        size = out_size(x.shape[2:], weight.shape[2:], stride, padding)
        # no view: autograd forbids changing a view of an operator's output in place
        out = torch.empty(
            (len(x), len(weight), *size), dtype=torch.float32, memory_format=torch.channels_last
        )
        _call(
            "forward", self.library, x.shape, weight.shape, stride, padding, out, x=nhwc(x.float()),
            weight=packed,
        )  # fmt: skip
        return out

    def input_gradient(
        self, grad: Maps, x: Maps, weight: Filters, stride: Pair, padding: Pair,
        gradient: Gradient,
    ) -> Maps:  # fmt: skip
        """Gradient of the input, in float32, with channels last; "clipped" or "sign"."""
        maps = nhwc(x.float())
        # a product with the zeros around `grad` could be NaN; a sum is NaN if a number is
        if not weight.isfinite().all() or maps.sum().isnan():
            return input_gradient(grad, x, weight, stride, padding, gradient)
        lanes = self.library.adder_lanes()
        # (filters, height, width, channels) -> vectors of channels, (height, width, filters, lanes)
        packed = _filled(weight.float().permute(0, 2, 3, 1), lanes).unflatten(3, (-1, lanes))
        packed = packed.permute(3, 1, 2, 0, 4).contiguous()
        out = torch.zeros_like(
            x.permute(0, 2, 3, 1), dtype=torch.float32, memory_format=torch.contiguous_format
        )
        _call(
            "input_gradient", self.library, x.shape, weight.shape, stride, padding, out,
            x=maps, weight=packed, grad=nhwc(grad.float()), op=int(gradient == "sign"),
        )  # fmt: skip
        return out.permute(0, 3, 1, 2)

    def sign_weight_gradient(
        self, grad: Maps, x: Maps, weight: Filters, stride: Pair, padding: Pair
    ) -> Filters:
        """The true gradient of the filters, in float32."""
        lanes = self.library.adder_lanes()
        packed = _filled(weight.float().permute(0, 2, 3, 1), lanes).contiguous()
        out = torch.zeros_like(packed)
        _call(
            "weight_gradient", self.library, x.shape, weight.shape, stride, padding, out,
            x=nhwc(x.float()), weight=packed, grad=nhwc(grad.float()), op=1,
        )  # fmt: skip
        return out[..., : weight.shape[1]].permute(0, 3, 1, 2)

    def sad(self, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, zero: int) -> Tensor:
        """Sums of absolute differences of uint8 maps and filters, in int32, with channels last."""
        packed = _filled(weight.permute(0, 2, 3, 1).flatten(1), 64)
        packed = pad(packed, (0, 0, 0, -len(packed) % 4)).contiguous()
        size = out_size(x.shape[2:], weight.shape[2:], stride, padding)
        out = x.new_empty((len(x), *size, len(weight)), dtype=torch.int32)
        _call(
            "sad", self.library, x.shape, weight.shape, stride, padding, out, x=nhwc(x), weight=packed,
            zero=zero,
        )  # fmt: skip
        return out.permute(0, 3, 1, 2)
