"""The Triton kernels on tensors: maps and filters with channels last in memory."""

import contextlib
import importlib.util
import warnings
from functools import cache
from typing import ClassVar

import torch

from stepwell.ops.adder import reference
from stepwell.ops.adder.reference import (
    Filters,
    Gradient,
    Maps,
    Pair,
    layer_sizes,
    nhwc,
    out_size,
)

#: Positions and filters (of the gradient: and channels) of a block, at most.
BLOCK = 64
#: Narrowest block: a narrower one leaves a part of a warp idle.
LEAST = 16


@cache
def kernels() -> "Kernels | None":
    """The kernels, if Triton is installed, as it is with torch for a GPU."""
    return Kernels() if importlib.util.find_spec("triton") is not None else None


class Kernels:
    """Kernels that Triton compiles at first use; where it fails, plain torch computes, with a note."""

    #: The gradients of the input that there are, with their numbers in `triton_kernels`.
    GRADIENTS: ClassVar = {"clipped": 0, "sign": 1, "difference": 2}

    def __init__(self) -> None:
        self._works = True

    def forward(self, x: Maps, weight: Filters, stride: Pair, padding: Pair) -> Maps:
        """Minus the L1 distance of each patch and each filter, in float32, with channels last."""
        size = out_size(x.shape[2:], weight.shape[2:], stride, padding)
        out = x.new_empty((len(x), *size, len(weight)), dtype=torch.float32)
        if not out.numel():
            return out.permute(0, 3, 1, 2)
        packed = weight.float().permute(2, 3, 1, 0).contiguous()  # (height, width, channels, filters)
        sizes = layer_sizes(x.shape, weight.shape, stride, padding)
        positions = out[..., 0].numel()
        if not self._run("forward", positions, len(weight), (nhwc(x.float()), packed, out, *sizes)):
            return reference.forward(x, weight, stride, padding)
        return out.permute(0, 3, 1, 2)

    def input_gradient(
        self, grad: Maps, x: Maps, weight: Filters, stride: Pair, padding: Pair, gradient: Gradient
    ) -> Maps:
        """Gradient of the input, in float32, with channels last."""
        out = torch.zeros_like(
            x.permute(0, 2, 3, 1), dtype=torch.float32, memory_format=torch.contiguous_format
        )
        if not out.numel() or not grad.numel():
            return out.permute(0, 3, 1, 2)
        packed = weight.float().permute(0, 2, 3, 1).contiguous()  # (filters, height, width, channels)
        sizes = layer_sizes(x.shape, weight.shape, stride, padding)
        tensors = nhwc(grad.float()), nhwc(x.float()), packed, out
        kind = self.GRADIENTS[gradient]
        if not self._run("input_gradient", out[..., 0].numel(), x.shape[1], (*tensors, *sizes, kind)):
            return reference.input_gradient(grad, x, weight, stride, padding, gradient)
        return out.permute(0, 3, 1, 2)

    def _run(self, name: str, rows: int, columns: int, arguments: tuple[object, ...]) -> bool:
        """Run a kernel on blocks of a table of `rows` and `columns`; says whether it could."""
        if not self._works:
            return False
        from stepwell.ops.adder import triton_kernels

        across = max(LEAST, min(BLOCK, 1 << (columns - 1).bit_length()))
        grid = -(-rows // BLOCK), -(-columns // across)
        # Triton starts kernels on the present device, whatever the tensors' is
        device = next(given.device for given in arguments if isinstance(given, torch.Tensor))
        on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        try:
            with on_device:
                getattr(triton_kernels, name)[grid](*arguments, BLOCK, across)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton and the compilers below it raise many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"Triton cannot compile the kernel of adder layers ({reason:.200}): plain torch "
                "computes them, which is slower", stacklevel=2,
            )  # fmt: skip
            self._works = False
        return self._works
