"""Merge 1×1 convolutions into the layers after them, or add them as layers."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.plan import Calls, is_norm
from stepwell.nets.nested.reading import read
from stepwell.nets.nested.tracing import Tracer

#: Layers that commute with a 1×1 convolution in eval mode.
_PASSING = (
    nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
_PASSING_CALLS = {
    "flatten", "mean", "contiguous", torch.flatten, torch.mean,
    nn.functional.adaptive_avg_pool2d, nn.functional.avg_pool2d, nn.functional.dropout,
}  # fmt: skip
#: A layer that can absorb a 1×1 convolution before it.
Reader = nn.Conv2d | nn.Linear
#: Largest change of an output by merging, relative to its largest entry; rounding stays below it.
TOLERANCE = 1e-4


class _Evaluated(nn.Module):
    """The code of `Calls` in eval mode, for `torch.fx`."""

    def __init__(self, step: Calls) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Any) -> Any:
        """The step's output; `x` may be a proxy."""
        return self.step.in_eval(self.step, x)


class _Tracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or super().is_leaf_module(m, module_qualified_name)


@torch.no_grad()
def absorb(
    steps: Iterable[nn.Module],
    weight: Float[Tensor, "channels channels"],
    shape: Sequence[int],
    *,
    last: bool,
) -> bool:
    """Merge a 1×1 convolution without bias before `steps` into their first layers.

    This works if only convolutions and linear layers read its output, maybe after averaging or
    flattening, but no shortcut or norm. Without bias it is exact at zero-padded borders.

    Args:
        steps: modules in sequence, in eval mode.
        weight: output by input channels.
        shape: of the input of `steps`, with the batch, for a check on random values.
        last: true if channels are the last axis, not the second.

    Returns:
        True if it was merged; otherwise no weight has changed.
    """
    run = nn.Sequential(*steps)
    readers = _readers(run)
    channels = weight.shape[0]
    if not readers or not all(_can_absorb(layer, channels) for layer in readers):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).to(weight.device, weight.dtype)
    mixed = x @ weight.T if last else (x.movedim(1, -1) @ weight.T).movedim(-1, 1)
    before = run(mixed)
    old_weights = [layer.weight.clone() for layer in readers]
    for layer in readers:
        parts = layer.weight.reshape(len(layer.weight), channels, -1)  # (out, channels, positions)
        merged = torch.einsum("ocp,cd->odp", parts, weight)
        layer.weight.copy_(merged.reshape(layer.weight.shape))
    apart = (run(x) - before).abs().max()
    if apart <= TOLERANCE * before.abs().max().clamp_min(1e-6):
        return True
    for layer, old in zip(readers, old_weights, strict=True):
        layer.weight.copy_(old)
    return False


def _can_absorb(layer: Reader, channels: int) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.in_channels == channels
    return layer.in_features % channels == 0


def _readers(steps: Iterable[nn.Module]) -> list[Reader]:
    """The layers with weights that read the input of `steps`; empty if anything else reads it."""
    for step in steps:
        if isinstance(step, nn.Conv2d | nn.Linear):
            return [step]
        if isinstance(step, _PASSING):
            continue
        step = _Evaluated(step) if isinstance(step, Calls) else step
        try:
            graph = _Tracer().trace(step)
        except Exception:  # code that torch.fx cannot follow
            return []
        (given, *others) = [node for node in graph.nodes if node.op == "placeholder"]
        users = _users(given, step)
        if any(node.users for node in others) or users is None:
            return []
        layers = [layer for layer in users if layer is not None]
        if layers or not users:  # unless one way leads on, and another ends here
            return layers if len(layers) == len(users) else []
    return []


def _users(node: fx.Node, step: nn.Module) -> list[Reader | None] | None:
    """The layers that read `node` (None: the output of `step`); None if anything else reads it."""
    users: list[Reader | None] = []
    for user in node.users:
        if user.op == "output":
            users.append(None)
            continue
        layer = step.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(layer, nn.Conv2d | nn.Linear):
            users.append(layer)
        elif isinstance(layer, _PASSING) or (layer is None and user.target in _PASSING_CALLS):
            behind = _users(user, step)
            if behind is None:
                return None
            users += behind
        else:
            return None
    return users


class Added(NamedTuple):
    """A 1×1 convolution without bias to add after a module, or before it.

    weight: (channels, channels), output by input.
    last: true if channels are the last axis.
    before: true if it runs before the module.
    """

    weight: Tensor
    last: bool
    before: bool = False


def with_adaptions(module: nn.Module, adaptions: Mapping[str, Sequence[int]]) -> nn.Module:
    """Add 1×1 convolutions to some modules of `module`, in place; ValueError for an unknown module.

    Args:
        adaptions: by module name: the channels, and 1 if they are the last axis (else 0). A third
            number, 1, puts the convolution before the module; it comes after it by default.
    """
    for name, (channels, last, *ahead) in adaptions.items():
        parent, _, child = name.rpartition(".")
        try:
            holder, inner = module.get_submodule(parent), module.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"no module {name!r} to add an adaption to") from error
        shape = (channels, channels)
        layer = nn.Linear(*shape, bias=False) if last else nn.Conv2d(*shape, 1, bias=False)
        holder._modules[child] = nn.Sequential(*((layer, inner) if any(ahead) else (inner, layer)))
    return module


def add_adaptions(net: NestedNet, added: Mapping[str, Added]) -> NestedNet:
    """A copy of `net`, which has no sub-nets, with 1×1 convolutions at some modules, by name."""
    if not added:
        return net
    adaptions = {n: [len(a.weight), int(a.last), *[1] * a.before] for n, a in added.items()}
    module = with_adaptions(copy.deepcopy(net.module), adaptions)
    for name, (weight, last, before) in added.items():
        layer = module.get_submodule(f"{name}.{0 if before else 1}")
        layer.load_state_dict({"weight": weight if last else weight[:, :, None, None]})
    grown = NestedNet(module, read(module, net.stages), {}, net.full)
    if net.builder is not None:
        grown.builder = (net.builder[0], net.builder[1] | {"adaptions": adaptions})
    grown.card = net.card
    grown.train(net.training)
    return grown
