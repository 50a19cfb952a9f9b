"""Narrower widths of a network, whose layers keep their first channels (slimmable, Yu et al. 2019).

A layer of weight W computes with W[:outputs, :inputs] at each width. Norms are private to each width.
"""

from collections.abc import Sequence
from copy import deepcopy
from math import gcd
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from stepwell.nets.nested.plan import is_norm, join, with_children

#: Largest distance of a number of channels from a whole number.
WHOLE = 1e-6
#: Channels that a vector of the processor holds.
FEW = 8


class Narrow(nn.Module):
    """The first channels of a convolution or a linear layer, whose weights it shares.

    Where no gradient is needed, the weights are copied once, until the layer's own change. A change
    through `.data` goes unnoticed, as autograd does not notice it either.

    Args:
        layer: the full layer.
        outputs, inputs: numbers of channels that stay.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, outputs: int, inputs: int) -> None:
        super().__init__()
        self.layer, self.outputs, self.inputs = layer, outputs, inputs
        self._copy: tuple[tuple[object, ...], Tensor] | None = None

    @property
    def weight(self) -> Float[Tensor, "outputs inputs ..."]:
        """The weights that stay."""
        weight = self.layer.weight
        needed = torch.is_grad_enabled() and weight.requires_grad
        if needed or weight.is_inference() or torch.compiler.is_compiling():
            return weight[: self.outputs, : self.inputs]
        state = weight.data_ptr(), weight._version, weight.device, weight.dtype
        copy = self._copy
        if copy is None or copy[0] != state:
            with torch.inference_mode(False):  # the copy may be used where gradients are needed
                copy = state, weight.detach()[: self.outputs, : self.inputs].clone()
            self._copy = copy
        return copy[1]

    @property
    def bias(self) -> Float[Tensor, " outputs"] | None:
        """The bias that stays, if there is one."""
        return None if self.layer.bias is None else self.layer.bias[: self.outputs]

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The outputs that stay, of the inputs that stay."""
        if isinstance(self.layer, nn.Linear):
            return linear(x, self.weight, self.bias)
        layer = self.layer
        if self.inputs < FEW and layer.kernel_size == (1, 1) and layer.padding == (0, 0):
            # On processors without AVX-512, oneDNN's gradient of the weights of such a layer with a
            # stride writes beyond its memory (torch 2.13, channels last in memory).
            down, right = layer.stride
            return conv2d(x[:, :, ::down, ::right], self.weight, self.bias)
        return layer._conv_forward(x, self.weight, self.bias)

    def alone(self) -> nn.Module:
        """A plain layer with copies of these weights."""
        layer = self.layer
        twin = layer.__new__(type(layer))
        twin.__dict__.update(layer.__dict__)
        names = ("out_features", "in_features")
        if isinstance(layer, nn.Conv2d):
            names = ("out_channels", "in_channels")
        twin.__dict__.update(zip(names, (self.outputs, self.inputs), strict=True))
        parameters = {"weight": self.weight, "bias": self.bias}
        twin._parameters = {
            name: None if value is None else nn.Parameter(value.detach().clone())
            for name, value in parameters.items()
        }
        return twin


def narrowed(
    module: nn.Module, share: float, norms: dict[str, nn.Module], name: str, entry: nn.Module
) -> nn.Module:
    """`module` at a share of its channels: weights are shared, norms start as copies.

    Args:
        norms: gains the new norms under their dotted names.
        name: of `module`.
        entry: the convolution that takes the image, whose channels all stay.

    Raises:
        ValueError: a module that cannot be narrowed.
    """
    if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
        return _narrow_layer(module, share, norms, name, entry)
    if is_norm(module) or any(True for _ in module.parameters(recurse=False)):
        raise ValueError(
            f"{type(module).__name__} {name!r} has no narrower form: widths are for ResNets of "
            "convolutions and BatchNorm, such as resnet20"
        )
    children = {
        n: None if child is None else narrowed(child, share, norms, join(name, n), entry)
        for n, child in module._modules.items()
    }
    return with_children(module, children)


def _narrow_layer(
    layer: nn.Conv2d | nn.Linear | nn.BatchNorm2d, share: float, norms: dict[str, nn.Module],
    name: str, entry: nn.Module,
) -> nn.Module:  # fmt: skip
    if isinstance(layer, nn.Linear):
        return Narrow(layer, layer.out_features, round(share * layer.in_features))
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            raise ValueError(f"the grouped convolution {name!r} has no narrower form: name a ResNet")
        inputs = layer.in_channels if layer is entry else round(share * layer.in_channels)
        return Narrow(layer, round(share * layer.out_channels), inputs)
    norm = deepcopy(layer)
    norm.num_features = round(share * layer.num_features)
    for key, value in [*norm.named_parameters()]:
        setattr(norm, key, nn.Parameter(value.detach()[: norm.num_features].clone()))
    for key, statistic in [*norm.named_buffers()]:
        if statistic.dim():
            setattr(norm, key, statistic[: norm.num_features].clone())
    norms[name] = norm
    return norm


def alone(module: nn.Module) -> nn.Module:
    """A deep copy of a plain network, whose narrow layers become plain ones of their size."""
    twin = deepcopy(module)
    for parent in [*twin.modules()]:
        for name, child in parent._modules.items():
            if isinstance(child, Narrow):
                parent._modules[name] = child.alone()
    return twin


def width_name(share: float) -> str:
    """The name of a width as a depth of a nested net: "0.5", and "1" of the full net."""
    return f"{share:g}"


def check_widths(multipliers: Sequence[float], module: nn.Module) -> tuple[float, ...]:
    """The shares of a network's channels, narrow to wide, with 1 as the last one.

    ValueError for fewer than two, one that is not in (0, 1], a missing 1, one that is named twice, or
    one that gives no whole number of channels.
    """
    if wrong := [share for share in multipliers if not isinstance(share, Real)]:
        raise ValueError(f"a width of {wrong[0]!r}: must be a number, a share of the channels")
    multipliers = [float(share) for share in multipliers]
    shares = tuple(sorted(multipliers))
    listed = " ".join(width_name(share) for share in multipliers)
    if len(shares) < 2:
        raise ValueError(
            f"at least two widths are needed, got {listed or 'none'}: name some, such as 0.5 1"
        )
    if not all(0 < share <= 1 for share in shares) or shares[-1] != 1:
        raise ValueError(
            f"widths {listed}: each is a share of the channels, above 0, and the largest is 1"
        )
    if len({width_name(share) for share in shares}) < len(shares):
        raise ValueError(f"widths {listed}: one is named twice; drop it")
    if sum(isinstance(m, nn.Linear) for m in module.modules()) != 1:
        raise ValueError(
            f"{type(module).__name__} has not one linear layer, its head: widths are for ResNets, such "
            "as resnet20"
        )
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    unit = gcd(*(c.out_channels for c in convolutions))
    for share in shares:
        if not abs(share * unit - round(share * unit)) < WHOLE:
            raise ValueError(
                f"a width of {width_name(share)}: the layers' channels are multiples of {unit}, and "
                f"{width_name(share)} of {unit} is {share * unit:g}, no whole number; name multiples "
                f"of {1 / unit:g}"
            )
    return shares
