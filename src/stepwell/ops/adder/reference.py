"""The adder layer in plain torch (Chen et al. 2020, AdderNet: arXiv 1912.13200).

For patches X of the input (positions p, K = channels · height · width numbers each) and filters F:

    Y[m,p]  = -sum_k |X[k,p] - F[m,k]|

The true gradient has signs alone and trains badly. AdderNet replaces it:

    gF[m,k] = sum_p (X[k,p] - F[m,k]) · g[m,p]               the gradient of -½ |X - F|²
    gX[k,p] = sum_m clip(F[m,k] - X[k,p], -1, 1) · g[m,p]    the clip is HardTanh

gF is two matrix products: g Xᵀ, a convolution's own weight gradient, minus F[m,k] · sum_p g[m,p].

Everything here works on every device and in float64; half precision is summed in float32.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import fold, pad, unfold

#: clipped: the two formulas above. difference: without the clip. sign: the true gradient.
Gradient = Literal["clipped", "difference", "sign"]
#: (batch, channels, height, width) and (filters, channels, height, width)
Maps = Float[Tensor, "batch _ _ _"]
Filters = Float[Tensor, "_ _ _ _"]
Pair = Sequence[int]


def out_size(size: Sequence[Any], kernel: Sequence[Any], stride: Pair, padding: Pair) -> list[Any]:
    """Height and width of the output; symbols in a graph of torch's.

    >>> out_size((8, 9), (3, 3), (2, 2), (1, 1))
    [4, 5]
    """
    axes = zip(size, kernel, stride, padding, strict=True)
    return [(s + 2 * p - k) // step + 1 for s, k, step, p in axes]


def layer_sizes(
    shape: Sequence[int], kernel: Sequence[int], stride: Pair, padding: Pair
) -> tuple[int, ...]:
    """The sizes of a layer as kernels take them, for maps and filters of these shapes.

    Images, height, width, channels, filters, window, stride, padding and output; the last four as
    height and width each.
    """
    images, channels, *size = shape
    filters, _, *window = kernel
    after = out_size(size, window, stride, padding)
    return (images, *size, channels, filters, *window, *stride, *padding, *after)


def nhwc(maps: Shaped[Tensor, "batch _ _ _"]) -> Shaped[Tensor, "batch _ _ _"]:
    """Maps with channels last, as kernels read them; those that lie so already are not copied."""
    # a view with channels last that is contiguous: torch's own check passes maps of one pixel
    return maps.permute(0, 2, 3, 1).contiguous()


def wide(*tensors: Tensor) -> list[Tensor]:
    """Give tensors as float64 if one is, else as float32."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [t.to(dtype) for t in tensors]


def _patches(
    x: Maps, weight: Filters, stride: Pair, padding: Pair
) -> Float[Tensor, "batch _ positions"]:
    return unfold(x, weight.shape[2:], padding=tuple(padding), stride=tuple(stride))


def forward(x: Maps, weight: Filters, stride: Pair, padding: Pair) -> Maps:
    """Minus the L1 distance of each patch and each filter, in float32 or float64."""
    x, weight = wide(x, weight)
    size = out_size(x.shape[2:], weight.shape[2:], stride, padding)
    if x.device.type == "cpu":
        return _distances(x, weight, stride, padding).unflatten(2, size)
    patches = _patches(x, weight, stride, padding)  # (batch, K, positions)
    rows = [-(patches - f[:, None]).abs().sum(1) for f in weight.flatten(1)]
    return torch.stack(rows, 1).unflatten(2, size)


def by_taps(x: Maps, weight: Filters, stride: Pair, padding: Pair) -> Maps:
    """`forward` by operators that exported graphs have, a position of the window at a time."""
    (top, side), (down, across) = padding, stride
    height, width = out_size(x.shape[2:], weight.shape[2:], stride, padding)
    padded, total = pad(x, (side, side, top, top)), None
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            rows, columns = slice(i, i + down * height, down), slice(j, j + across * width, across)
            apart = padded[:, None, :, rows, columns] - weight[None, :, :, i, j, None, None]
            part = apart.abs().sum(2)  # (batch, filters, height, width)
            total = part if total is None else total + part
    assert total is not None
    return -total


def _distances(
    x: Maps, weight: Filters, stride: Pair, padding: Pair
) -> Float[Tensor, "batch _ positions"]:
    """`forward` by `torch.cdist`, the fastest of torch's own on a CPU, a few images at a time."""
    flat = weight.flatten(1)
    numbers = flat.shape[1] * x.shape[2] * x.shape[3]
    distances = []
    for some in x.split(max(1, 4_000_000 // max(1, numbers))):
        patches = _patches(some, weight, stride, padding).mT
        distances.append(-torch.cdist(patches.contiguous(), flat, p=1.0).mT)
    return torch.cat(distances)


def weight_gradient(
    grad: Maps, x: Maps, weight: Filters, stride: Pair, padding: Pair, gradient: Gradient
) -> Filters:
    """gF of the module's docstring, in the shape of the filters.

    On a GPU its first product has the precision that torch's convolutions have there (TF32 by default).
    """
    grad, x, weight = wide(grad, x, weight)
    if gradient != "sign":
        mask = [False, True, False]
        gradients = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, mask
        )
        products: Tensor = gradients[1]
        return products - weight * grad.sum((0, 2, 3))[:, None, None, None]
    patches = _patches(x, weight, stride, padding)
    pairs = zip(grad.flatten(2).unbind(1), weight.flatten(1), strict=True)
    rows = [((patches - f[:, None]).sign() * g[:, None]).sum((0, 2)) for g, f in pairs]
    return torch.stack(rows).view_as(weight)


def input_gradient(
    grad: Maps, x: Maps, weight: Filters, stride: Pair, padding: Pair, gradient: Gradient
) -> Maps:
    """gX of the module's docstring, in the shape of the maps."""
    grad, x, weight = wide(grad, x, weight)
    patches = _patches(x, weight, stride, padding)
    total = torch.zeros_like(patches)
    for g, f in zip(grad.flatten(2).unbind(1), weight.flatten(1), strict=True):
        distance = f[:, None] - patches
        if gradient == "clipped":
            distance = distance.clamp_(-1, 1)
        elif gradient == "sign":
            distance = distance.sign_()
        total += distance.mul_(g[:, None])
    options: Any = {"padding": tuple(padding), "stride": tuple(stride)}
    return fold(total, x.shape[2:], weight.shape[2:], **options)
