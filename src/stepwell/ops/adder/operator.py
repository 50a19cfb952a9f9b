"""The adder layer as an operator of torch's: seen by autograd, compile, export and the FLOP counter."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from stepwell.ops.adder import cpu, gpu, reference
from stepwell.ops.adder.compiled import library
from stepwell.ops.adder.reference import Filters, Gradient, Maps, out_size
from stepwell.ranges import check_choice

#: Largest stride and padding; sizes then fit into 32 bits.
LARGEST = 1 << 15


def adder_conv2d(
    input: Maps,
    weight: Filters,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    *,
    gradient: Gradient = "clipped",
) -> Maps:
    """Minus the L1 distance of each patch of `input` and each filter: a convolution that only adds.

    Sums are float32 (float64 for float64), also under autocast. The output has the wider of both dtypes
    and lies with channels last. Padding is with zeros, whose distance to a filter is not zero. The
    gradients are not the derivative: see `stepwell.ops.adder.reference`.

    Args:
        gradient: "clipped" as in AdderNet; "difference" without the clip, or "sign", for studies.

    Raises:
        ValueError: shapes do not fit, as with groups; stride or padding is out of range; there would be
            no output pixel, or nothing to sum; the tensors hold no floating-point numbers; no such
            gradient.
        NotImplementedError: a derivative in forward mode is asked for (`torch.func.jvp`).
    """
    stride, padding = checked(input, weight, stride, padding, gradient)
    for name, tensor in (("maps", input), ("filters", weight)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} of {tensor.dtype}: adder layers take floating-point numbers")
        if not torch.compiler.is_compiling() and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError("adder layers have no forward-mode derivative: use backward()")
    output: Tensor = torch.ops.stepwell.adder_conv2d(input, weight, stride, padding, gradient)
    return output


def checked(
    input: Tensor, weight: Tensor, stride: int | Sequence[int], padding: int | Sequence[int],
    gradient: str,
) -> tuple[tuple[int, int], tuple[int, int]]:  # fmt: skip
    """Stride and padding of a layer; ValueError for whatever a kernel could not compute."""
    strides, paddings = checked_pair("stride", stride, 1), checked_pair("padding", padding, 0)
    check_choice("gradient", gradient, Gradient)
    checked_shapes(input, weight, strides, paddings)
    return strides, paddings


def checked_pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """A number for height and width as two; ValueError outside of `least` to `LARGEST`."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, Integral) and v >= least for v in pair):
        raise ValueError(f"{name} is a whole number of {least} or more, or two of them, not {value!r}")
    if max(pair) > LARGEST:
        raise ValueError(f"{name} {value!r}: at most {LARGEST:,}")
    return int(pair[0]), int(pair[1])


def checked_shapes(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> None:
    """Raise ValueError for what is no tensor, shapes that do not fit, or tensors on two devices."""
    for name, given in (("maps", x), ("filters", weight)):
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} must be a tensor of torch's, not {type(given).__name__}")
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            "an adder layer takes maps (batch, channels, height, width) and filters of four "
            f"dimensions, not {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if x.device != weight.device:
        raise ValueError(f"maps on {x.device}, and filters on {weight.device}: move one of them")
    if x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"filters for {weight.shape[1]} channels, and maps of {x.shape[1]}: adder layers have no "
            "groups"
        )
    if 0 in (*x.shape[1:], *weight.shape):
        raise ValueError(
            f"maps of {tuple(x.shape[1:])} (channels, height, width) and filters of "
            f"{tuple(weight.shape)}: there is nothing to sum"
        )
    if min(out_size(x.shape[2:], weight.shape[2:], stride, padding)) < 1:
        raise ValueError(
            f"maps of {x.shape[2]}×{x.shape[3]} with padding {tuple(padding)} are smaller than filters "
            f"of {weight.shape[2]}×{weight.shape[3]}"
        )


@torch.library.custom_op("stepwell::adder_conv2d", mutates_args=())
def _forward(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], gradient: str
) -> Tensor:
    checked(input, weight, stride, padding, gradient)  # the operator may be called by its own name
    kernels = _kernels(input, weight)
    output = (reference if kernels is None else kernels).forward(input, weight, stride, padding)
    dtype = torch.promote_types(input.dtype, weight.dtype)
    return output.to(dtype).contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("stepwell::adder_conv2d_backward", mutates_args=())
def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
    gradient: str, needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of input and filters; an empty tensor for one that is not needed."""
    checked(input, weight, stride, padding, gradient)
    size = out_size(input.shape[2:], weight.shape[2:], stride, padding)
    if grad.shape != (len(input), len(weight), *size):
        raise ValueError(f"a gradient of {tuple(grad.shape)} is not that of these maps and filters")
    kernels = _kernels(input, weight)
    options: Any = (stride, padding, gradient)
    of_input = of_weight = None
    if needed[0]:
        fast = kernels is not None and gradient in kernels.GRADIENTS
        of_input = (kernels if fast else reference).input_gradient(grad, input, weight, *options)
    if needed[1] and isinstance(kernels, cpu.Kernels) and gradient == "sign":
        of_weight = kernels.sign_weight_gradient(grad, input, weight, *options[:2])
    elif needed[1]:
        of_weight = reference.weight_gradient(grad, input, weight, *options)
    return _like(of_input, input), _like(of_weight, weight)


def _kernels(input: Tensor, weight: Tensor) -> Any:
    """The kernels that compute for these tensors; None if plain torch does."""
    if torch.float64 in (input.dtype, weight.dtype):
        return None
    if input.device.type == "cpu":
        compiled = library()
        return None if compiled is None else cpu.Kernels(compiled)
    return gpu.kernels() if input.device.type == "cuda" else None


def _like(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    if gradient is None:
        return tensor.new_empty(0)
    return gradient.to(tensor.dtype).contiguous(memory_format=_layout(tensor))


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@_forward.register_fake
def _(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], gradient: str
) -> Tensor:
    size = out_size(input.shape[2:], weight.shape[2:], stride, padding)
    dtype = torch.promote_types(input.dtype, weight.dtype)
    output = input.new_empty((input.shape[0], weight.shape[0], *size), dtype=dtype)
    return output.contiguous(memory_format=torch.channels_last)


@_backward.register_fake
def _(
    grad: Tensor, input: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
    gradient: str, needed: Sequence[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    of_input, of_weight = (
        torch.empty_like(t, memory_format=_layout(t)) if need else t.new_empty(0)
        for t, need in zip((input, weight), needed, strict=True)
    )
    return of_input, of_weight


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, *ctx.options = inputs
    ctx.save_for_backward(input, weight)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    needed = [*ctx.needs_input_grad[:2]]
    gradients = torch.ops.stepwell.adder_conv2d_backward(grad, input, weight, *ctx.options, needed)
    of_input, of_weight = (g if need else None for g, need in zip(gradients, needed, strict=True))
    return of_input, of_weight, None, None, None


_forward.register_autograd(_gradients, setup_context=_remember)


@register_flop_formula(torch.ops.stepwell.adder_conv2d)
def _flops(
    input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """Two additions for each pair of numbers, as a convolution has a multiplication and an addition."""
    batch, filters, *size = out_shape
    return 2 * batch * filters * size[0] * size[1] * weight[1] * weight[2] * weight[3]
