"""The layers of an adder network."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.functional import linear

from stepwell.ops.adder import Gradient, adder_conv2d
from stepwell.ops.adder.reference import by_taps

# torch.fx traces no further: the operator checks its tensors, which a trace does not have
fx.wrap("adder_conv2d")


class AdderConv2d(nn.Module):
    """A layer that gives minus the L1 distance of patches and filters, in place of a convolution.

    Its filters begin as normal numbers of variance 1 (AdderNet's code), have the shape of the
    convolution's, and stand under the same name. A bias would be lost in the norm behind it.

    Args:
        conv: the convolution that it replaces.
        gradient: as for `adder_conv2d`.

    Raises:
        ValueError: groups, dilation, hooks, or a padding that adder layers do not have; `conv` is of a
            class derived from nn.Conv2d.
    """

    def __init__(self, conv: nn.Conv2d, *, gradient: Gradient = "clipped") -> None:
        super().__init__()
        if type(conv) is not nn.Conv2d:
            raise ValueError(f"a {type(conv).__name__} is no plain nn.Conv2d, so it has no adder layer")
        if has_hooks(conv):
            raise ValueError("a convolution with hooks, such as pruning's, would lose them")
        if special := peculiarity(conv):
            raise ValueError(f"a convolution of {special} has no adder layer")
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, pair_of(conv.stride)
        self.padding = padding_of(conv)
        self.gradient: Gradient = gradient
        self.weight = nn.Parameter(torch.empty_like(conv.weight))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filters."""
        nn.init.normal_(self.weight)

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        """Maps (batch, channels, height, width) to maps, none of whose values is positive."""
        if torch.onnx.is_in_onnx_export():  # which has no such operator
            return by_taps(x, self.weight, self.stride, self.padding)
        return adder_conv2d(x, self.weight, self.stride, self.padding, gradient=self.gradient)

    def extra_repr(self) -> str:
        """The sizes, as torch prints a convolution's."""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return f"{sizes}, stride={self.stride}, padding={self.padding}"


def has_hooks(layer: nn.Module) -> bool:
    """Check whether anything is called before or after a layer, in either direction."""
    hooks = (
        layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
        layer._backward_pre_hooks,
    )  # fmt: skip
    return any(hooks)


def peculiarity(conv: nn.Conv2d) -> str:
    """Groups, dilation or a padding mode, which no adder layer has; "" for a plain convolution."""
    if conv.groups != 1:
        return f"{conv.groups} groups"
    if conv.dilation != (1, 1):
        return f"dilation {conv.dilation}"
    return f"padding mode {conv.padding_mode!r}" if conv.padding_mode != "zeros" else ""


def pair_of(numbers: tuple[int, ...] | str) -> tuple[int, int]:
    """A stride or padding of two numbers, as torch's layers hold it."""
    assert not isinstance(numbers, str)
    return numbers[0], numbers[1]


def padding_of(conv: nn.Conv2d) -> tuple[int, int]:
    """The rows and columns of zeros on each side; ValueError where the sides differ."""
    if not isinstance(conv.padding, str):
        return pair_of(conv.padding)
    high, wide = conv.kernel_size
    if conv.padding == "valid":
        return 0, 0
    if high % 2 and wide % 2:
        return high // 2, wide // 2
    raise ValueError(f'padding="same" of a kernel of {high}×{wide} is uneven: no adder layer has it')


class NormedLinear(nn.Linear):
    """A classifier whose logits are normalised over the batch, as in AdderNet's code.

    The norm takes the place of the bias, so depths have one of their own where they have norms.

    Raises:
        ValueError: `layer` is of a class derived from nn.Linear, has hooks, or computes its weight, as
            with weight norm; in use, the logits are not (batch, classes).
    """

    def __init__(self, layer: nn.Linear) -> None:
        if type(layer) is not nn.Linear or has_hooks(layer) or "weight" not in layer._parameters:
            raise ValueError(
                f"a {type(layer).__name__} that is no plain nn.Linear, or has hooks such as pruning's, "
                "cannot normalise its logits"
            )
        like: Any = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        super().__init__(layer.in_features, layer.out_features, bias=False, **like)
        self.weight = layer.weight
        self.norm = nn.BatchNorm1d(layer.out_features, **like)

    def forward(self, input: Float[Tensor, "..."]) -> Float[Tensor, "batch classes"]:
        """Features to logits."""
        logits = linear(input, self.weight)
        if isinstance(logits, Tensor) and logits.ndim != 2:  # a trace has no shapes
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} cannot be normalised over a batch: convert the "
                "network with normed_logits=False"
            )
        normed: Tensor = self.norm(logits)
        return normed


def replace_layers(module: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    """Put other layers in the place of some, under every name that these have."""
    for name, layer in [*module.named_modules(remove_duplicate=False)]:
        if layer in others:
            module.set_submodule(name, others[layer])


def adder_layers(module: nn.Module) -> dict[str, AdderConv2d]:
    """The adder layers of a network by name, in order."""
    return {n: m for n, m in module.named_modules() if isinstance(m, AdderConv2d)}
