"""Turn the convolutions of a network into adder layers."""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import fx, nn

from stepwell.nets.adders.layers import AdderConv2d, NormedLinear, replace_layers
from stepwell.nets.decisions.deciding import deciding_parts
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.plan import is_norm
from stepwell.ops.adder import Gradient
from stepwell.ranges import check_choice


class NoAdderFormError(ValueError):
    """A convolution that has no adder form; `reason` says why, without the remedy."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason


def to_adder(
    module: nn.Module,
    *,
    keep: Collection[str] = (),
    everywhere: bool = False,
    normed_logits: bool = True,
    gradient: Gradient = "clipped",
) -> nn.Module:
    """Replace the convolutions of `module` by adder layers with fresh filters, in place.

    The first convolution and the last layer stay, as in AdderNet: to replace them costs accuracy. The
    norms behind adder layers begin at one, also where the network had them begin at zero.

    Args:
        keep: names of further convolutions that stay, such as those of groups.
        everywhere: replace the first convolution, too (and the last layer if it is one).
        normed_logits: normalise the logits over the batch, in place of the classifier's bias.
        gradient: as for `adder_conv2d`.

    Returns:
        `module` itself; nest it with `stepwell.nest`.

    Raises:
        ValueError: there is no convolution to convert; one has groups, dilation or a padding that adder
            layers do not have, or is of a class derived from nn.Conv2d; its outputs meet another layer,
            a sum or the end of the network before a norm; the network is nested already, or decides by
            example; `keep` names no convolution; no such gradient. The module is unchanged.
    """
    if isinstance(module, NestedNet):
        raise ValueError(
            "this network is nested already: build it with adder=True, or convert its module before "
            "stepwell.nest"
        )
    check_choice("gradient", gradient, Gradient)
    if isinstance(keep, str):
        raise ValueError(f"keep is a list of names: [{keep!r}], not {keep!r}")
    for name, part in deciding_parts(module):
        raise ValueError(
            f"{name} is a {type(part).__name__}: networks with such parts have no adder form"
        )
    layers = {n: m for n, m in module.named_modules() if not m._modules}
    names = [n for n, m in layers.items() if isinstance(m, nn.Conv2d | nn.Linear)]
    convolutions = [n for n in names if isinstance(layers[n], nn.Conv2d)]
    if unknown := [n for n in keep if n not in convolutions]:
        raise ValueError(f"keep {unknown[0]!r}: no convolution has this name")
    fixed = set(keep) if everywhere else {*keep, *convolutions[:1], *names[-1:]}
    chosen = [n for n in convolutions if n not in fixed]
    if not chosen:
        raise ValueError(
            f"{type(module).__name__} has no convolution to convert: first and last layer stay as they "
            "are, and adder layers replace nn.Conv2d alone"
        )
    behind = _norms_behind(module, chosen)
    made = {}
    for name in sorted(chosen, key=lambda n: n == convolutions[0]):  # the others' filters stay the same
        conv = layers[name]
        assert isinstance(conv, nn.Conv2d)
        try:
            made[name] = AdderConv2d(conv, gradient=gradient)
        except ValueError as error:
            raise NoAdderFormError(
                f"{name}: {error}", f"keep it as it is with keep=[{name!r}]"
            ) from None
    replace_layers(module, {layers[name]: layer for name, layer in made.items()})
    for name, layer in made.items():
        layer.train(module.training)
        for norm in behind[name]:
            if isinstance(weight := norm.weight, nn.Parameter):
                nn.init.ones_(weight)
    last = layers[names[-1]]
    if normed_logits and isinstance(last, nn.Linear):
        module.set_submodule(names[-1], NormedLinear(last).train(module.training))
    return module


class _Tracer(fx.Tracer):
    """Do not trace into norms; those of other libraries may have parts."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or super().is_leaf_module(m, module_qualified_name)


def _norms_behind(module: nn.Module, names: Collection[str]) -> dict[str, list[nn.Module]]:
    """The norms that take the outputs of each convolution; ValueError where an output meets none.

    They are found where the network's own code passes the outputs on. If torch.fx cannot follow that
    code, the next norm by name counts.
    """
    try:
        nodes = [*_Tracer().trace(module).nodes]
    except Exception:  # whatever the network's own code raises when it meets a proxy
        nodes = []
    calls = {n: [node for node in nodes if (node.op, node.target) == ("call_module", n)] for n in names}
    return {
        name: _norms_in_graph(name, uses, module) if uses else [_norm_by_name(name, module)]
        for name, uses in calls.items()
    }


def _norms_in_graph(name: str, calls: Sequence[fx.Node], module: nn.Module) -> list[nn.Module]:
    """The norms behind the calls of a convolution, with nothing but pooling and the like between."""
    norms: dict[str, nn.Module] = {}
    ahead, seen = [user for call in calls for user in call.users], set[fx.Node]()
    while ahead:
        node = ahead.pop()
        if node in seen or _tells_sizes(node):
            continue
        seen.add(node)
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if layer is not None and is_norm(layer):
            norms[str(node.target)] = layer
            continue
        if _loses_negatives(layer if layer is not None else partial(_call, node)):
            raise _between(_words_of(node, layer), name)
        mixes = len(node.all_input_nodes) > 1 and node.target is not torch.cat
        learns = layer is not None and any(True for _ in layer.parameters())
        if node.op == "output" or mixes or learns:
            raise _without_norm(name)
        ahead += node.users
    if not norms:
        raise _without_norm(name)
    return [*norms.values()]


def _tells_sizes(node: fx.Node) -> bool:
    """Check for a node that reads sizes or the like, and no values."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    return node.op == "call_method" and node.target in ("size", "dim", "numel")


def _norm_by_name(name: str, module: nn.Module) -> nn.Module:
    """The norm that follows a convolution, in the order in which a module names its layers.

    Within an nn.Sequential this is the order in which they run, so nothing before the norm may lose the
    outputs.
    """
    layers = {n: m for n, m in module.named_modules() if not m._modules or is_norm(m)}
    names, parent = [*layers], name.rpartition(".")[0]
    ordered = isinstance(module.get_submodule(parent), nn.Sequential)
    for other in names[names.index(name) + 1 :]:
        layer = layers[other]
        if is_norm(layer):
            return layer
        if any(True for _ in layer.parameters()):
            break
        if ordered and other.rpartition(".")[0] == parent and _loses_negatives(layer):
            raise _between(f"{other}, a {type(layer).__name__},", name)
    raise _without_norm(name)


def _without_norm(name: str) -> NoAdderFormError:
    return NoAdderFormError(
        f"no norm follows the convolution {name!r}: its outputs would be large and negative, so "
        "without a BatchNorm behind it the network cannot train", f"keep it with keep=[{name!r}]",
    )  # fmt: skip


def _between(noun: str, name: str) -> NoAdderFormError:
    return NoAdderFormError(
        f"{noun} stands behind the convolution {name!r}, before a norm, and would lose all outputs of "
        "an adder layer, which are negative",
        f"put it behind the norm, or keep the convolution with keep=[{name!r}]",
    )


def _words_of(node: fx.Node, layer: nn.Module | None) -> str:
    if layer is not None:
        return f"{node.target}, a {type(layer).__name__},"
    return f"a call of {getattr(node.target, '__name__', node.target)}"


def _call(node: fx.Node, value: torch.Tensor) -> object:
    """The result of a node of a graph for a value in the place of its first input."""
    rest = node.args[1:]
    if callable(node.target):
        return node.target(value, *rest, **node.kwargs)
    return getattr(value, node.target)(*rest, **node.kwargs)


def _loses_negatives(call: Callable[[torch.Tensor], object]) -> bool:
    """Check for an activation that gives all large negative numbers one value, as ReLU does."""
    if isinstance(call, nn.Module) and type(call).__module__ != nn.ReLU.__module__:
        return False
    values = torch.arange(-200.0, -100.0, device="cpu")  # many: a dropout may lose some
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = call(values)
    except Exception:  # a function of several values of the graph
        return False
    if not isinstance(outputs, torch.Tensor) or outputs.shape != values.shape:
        return False
    return bool(outputs.max() - outputs.min() < 1e-3)
