"""1×1 convolutions merged into the layers that read their output, or kept where that cannot be."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.plan import Calls, is_norm
from stepwell.nets.nested.reading import read

#: Layers that give the same before and after a 1×1 convolution, in eval mode.
_PASSING = (
    nn.Identity, nn.Flatten, nn.modules.dropout._DropoutNd, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
_PASSING_CALLS = {
    "flatten", "mean", "contiguous", torch.flatten, torch.mean,
    nn.functional.adaptive_avg_pool2d, nn.functional.avg_pool2d, nn.functional.dropout,
}  # fmt: skip
#: A layer that a 1×1 convolution before it can become a part of.
Reader = nn.Conv2d | nn.Linear
#: What merging may change an output by, relative to its largest entry; rounding changes it by less.
TOLERANCE = 1e-4


class _Evaluated(nn.Module):
    """The code of `Calls` in eval mode, for `torch.fx`."""

    def __init__(self, step: Calls) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Any) -> Any:
        """As the step's; `x` may be a proxy."""
        return self.step.in_eval(self.step, x)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or super().is_leaf_module(m, module_qualified_name)


@torch.no_grad()
def absorb(steps: Iterable[nn.Module], weight: Tensor, shape: Sequence[int], *, last: bool) -> bool:
    """Merge a 1×1 convolution without bias that stands before `steps` into their first layers.

    It can be where convolutions and linear layers alone read its output, maybe behind an average or a
    flattening; where a shortcut or a norm does, it cannot. A convolution that pads with zeros gives
    the same at the borders, too, because nothing is added to the zeros.

    Args:
        steps: modules that run one after the other; in eval mode.
        weight: (channels, channels): output by input.
        shape: of what stands before `steps`, with the batch; used to check on random values.
        last: whether channels are its last axis, not its second.

    Returns:
        Whether it was merged; if not, no weight has changed.
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
    kept = [layer.weight.clone() for layer in readers]
    for layer in readers:
        layer.weight.copy_(_merged(layer.weight, weight))
    apart = (run(x) - before).abs().max()
    if apart <= TOLERANCE * before.abs().max().clamp_min(1e-6):
        return True
    for layer, old in zip(readers, kept, strict=True):
        layer.weight.copy_(old)
    return False


def _merged(reader: Tensor, weight: Tensor) -> Tensor:
    """A reader's weight (out, channels, ...) or (out, channels · positions) behind `weight`."""
    parts = reader.reshape(reader.shape[0], weight.shape[0], -1)
    return torch.einsum("ocp,cd->odp", parts, weight).reshape(reader.shape)


def _can_absorb(layer: Reader, channels: int) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.in_channels == channels
    return layer.in_features % channels == 0


def _readers(steps: Iterable[nn.Module]) -> list[Reader]:
    """The layers with weights that read the input of `steps`; none if other things do, too."""
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
        found = _of(given, step)
        if any(node.users for node in others) or found is None:
            return []
        layers = [layer for layer in found if layer is not None]
        if len(layers) == len(found):
            return layers
        if layers:  # one way leads on, another ends here
            return []
    return []


def _of(node: fx.Node, step: nn.Module) -> list[Reader | None] | None:
    """The layers that read `node`, None in it for the output of `step`; none at all if others do."""
    found: list[Reader | None] = []
    for user in node.users:
        if user.op == "output":
            found.append(None)
            continue
        layer = step.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(layer, nn.Conv2d | nn.Linear):
            found.append(layer)
        elif isinstance(layer, _PASSING) or (layer is None and user.target in _PASSING_CALLS):
            behind = _of(user, step)
            if behind is None:
                return None
            found += behind
        else:
            return None
    return found


class Kept(NamedTuple):
    """A 1×1 convolution without bias that stays behind a module, or before it.

    weight: (channels, channels), output by input.
    last: whether channels are the last axis.
    before: whether it stands before the module.
    """

    weight: Tensor
    last: bool
    before: bool = False


def with_adaptions(module: nn.Module, adaptions: Mapping[str, Sequence[int]]) -> nn.Module:
    """`module`, changed, with 1×1 convolutions beside some of its modules.

    Args:
        adaptions: by the name of the module that each stands behind, its channels and whether they are
            the last axis (1) or not (0); with a third number, 1, it stands before that module.

    Raises:
        ValueError: there is no such module.
    """
    for name, (channels, last, *ahead) in adaptions.items():
        parent, _, child = name.rpartition(".")
        try:
            holder, own = module.get_submodule(parent), module.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"no module {name!r} for an adaption to stand beside") from error
        layer = (
            nn.Linear(channels, channels, bias=False)
            if last
            else nn.Conv2d(channels, channels, 1, bias=False)
        )
        holder._modules[child] = nn.Sequential(*((layer, own) if any(ahead) else (own, layer)))
    return module


def keep_adaptions(net: NestedNet, kept: Mapping[str, Kept]) -> NestedNet:
    """A network like `net` with 1×1 convolutions beside some of its modules, by their names.

    Args:
        net: has no sub-nets.
    """
    if not kept:
        return net
    adaptions = {
        name: [len(k.weight), int(k.last), *([1] if k.before else [])] for name, k in kept.items()
    }
    module = with_adaptions(copy.deepcopy(net.module), adaptions)
    for name, (weight, last, before) in kept.items():
        layer = module.get_submodule(f"{name}.{0 if before else 1}")
        layer.load_state_dict({"weight": weight if last else weight[:, :, None, None]})
    grown = NestedNet(module, read(module, net.stages), {}, net.full)
    if net.builder is not None:
        grown.builder = (net.builder[0], net.builder[1] | {"adaptions": adaptions})
    grown.card = net.card
    grown.train(net.training)
    return grown
