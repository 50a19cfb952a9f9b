"""Turn the convolutions of a network into adder layers."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch
from torch import fx, nn

from stepwell.nets.adders.layers import AdderConv2d, NormedLinear, replace_layers
from stepwell.nets.decisions.deciding import deciding_parts
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.plan import is_norm
from stepwell.nets.nested.tracing import Tracer
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

    The first convolution and the last layer stay, as in AdderNet: to replace them costs accuracy. First
    and last are meant in the order in which the network runs them, or, if torch.fx cannot follow its
    code, defines them; a network of several outputs may have several last layers. The norms behind
    adder layers begin at one, also where the network had them begin at zero.

    Args:
        keep: names of further convolutions that stay, such as those of groups.
        everywhere: replace the first convolution, too (and a last layer if it is one).
        normed_logits: normalise the logits over the batch, in place of the classifier's bias.
        gradient: as for `adder_conv2d`.

    Returns:
        `module` itself; nest it with `stepwell.nest`.

    Raises:
        ValueError: `module` is none; there is no convolution to convert; one has groups, dilation,
            hooks or a padding that adder layers do not have, or is of a class derived from nn.Conv2d;
            it shares its filters with another; its outputs meet another layer, a sum or the end of the
            network before a norm; the last layer cannot normalise its logits; the network is nested
            already, or decides by example; `keep` names no convolution; no such gradient. The
            module is unchanged.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"to_adder takes an nn.Module, not {module!r:.60}")
    if isinstance(module, NestedNet):
        raise ValueError(
            "this network is nested already: build it with adder=True, or convert its module before "
            "stepwell.nest"
        )
    check_choice("gradient", gradient, Gradient)
    if isinstance(keep, str) or not isinstance(keep, Collection):
        raise ValueError(f"keep is a list of names, such as ['conv1'], not {keep!r:.60}")
    for name, part in deciding_parts(module):
        raise ValueError(
            f"{name} is a {type(part).__name__}: networks with such parts have no adder form"
        )
    layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    convolutions = [n for n, m in layers.items() if isinstance(m, nn.Conv2d)]
    if unknown := [n for n in keep if n not in convolutions]:
        raise ValueError(f"keep {unknown[0]!r}: no convolution has this name")
    graph = _graph(module)
    first, last = _ends(graph, layers)
    fixed = set(keep) if everywhere else {*keep, first, *last}
    chosen = [n for n in convolutions if n not in fixed]
    if not chosen:
        raise ValueError(
            f"{type(module).__name__} has no convolution to convert: first and last layer stay as they "
            "are, and adder layers replace nn.Conv2d alone"
        )
    behind, made, refused = {}, {}, {}
    for name in sorted(chosen, key=lambda n: n == first):  # the others' filters stay the same
        conv = layers[name]
        assert isinstance(conv, nn.Conv2d)
        if twin := next((n for n in convolutions if n != name and layers[n].weight is conv.weight), ""):
            refused[name] = f"{name} has the filters of {twin}, and adder layers share none"
            continue
        try:
            made[name] = AdderConv2d(conv, gradient=gradient)
        except ValueError as error:
            refused[name] = f"{name}: {error}"
            continue
        try:
            behind[name] = _norms_behind(name, graph, module)
        except ValueError as error:
            refused[name] = str(error)
    if refused:
        raise _no_adder_form(refused)
    heads = {name: layers[name] for name in last if normed_logits}
    normed: dict[nn.Module, nn.Module] = {}
    for name, head in heads.items():
        if isinstance(head, nn.Linear):
            try:
                normed[head] = NormedLinear(head).train(module.training)
            except ValueError as error:
                raise ValueError(f"{name}: {error}; convert with normed_logits=False") from None
    replace_layers(module, {layers[name]: layer for name, layer in made.items()})
    for name, layer in made.items():
        layer.train(module.training)
        for norm in behind[name]:
            if isinstance(weight := norm.weight, nn.Parameter):
                nn.init.ones_(weight)
    replace_layers(module, normed)
    return module


def _no_adder_form(refused: Mapping[str, str]) -> NoAdderFormError:
    """One error for all convolutions that have no adder form, by name."""
    reason, names = next(iter(refused.values())), [*refused]
    if len(names) == 1:
        return NoAdderFormError(reason, f"keep this convolution with keep={names}")
    return NoAdderFormError(
        reason, f"it is one of {len(names)} such convolutions; keep them with keep={names}"
    )


class _Tracer(Tracer):
    """Does not trace into norms and layers: those of other libraries may have parts or forms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            is_norm(m)
            or isinstance(m, nn.Conv2d | nn.Linear)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _graph(module: nn.Module) -> list[fx.Node]:
    """The operations of the network, in the order of its code; empty if torch.fx cannot trace it."""
    try:
        return [*_Tracer().trace(module).nodes]
    except Exception:  # whatever the network's own code raises when it meets a proxy
        return []


def _ends(graph: Sequence[fx.Node], layers: Mapping[str, nn.Module]) -> tuple[str, list[str]]:
    """The first convolution, and the layers behind which no other comes, by name; "" without any."""
    calls = [node for node in graph if node.op == "call_module" and node.target in layers]
    order = [str(node.target) for node in calls] or [*layers]
    first = next((name for name in order if isinstance(layers[name], nn.Conv2d)), "")
    inner = {node for call in calls for node in call.all_input_nodes}
    ahead = [*inner]
    while ahead:
        ahead += (new := {*ahead.pop().all_input_nodes} - inner)
        inner |= new
    return first, [str(c.target) for c in calls if c not in inner] if calls else order[-1:]


def _norms_behind(name: str, graph: Sequence[fx.Node], module: nn.Module) -> list[nn.Module]:
    """The norms that take the outputs of a convolution; ValueError where an output meets none.

    They are found where the network's own code passes the outputs on. If torch.fx cannot follow that
    code, the next norm by name counts.
    """
    calls = [node for node in graph if (node.op, node.target) == ("call_module", name)]
    return _norms_in_graph(name, calls, module) if calls else [_norm_by_name(name, module)]


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


def _without_norm(name: str) -> ValueError:
    return ValueError(
        f"no norm follows the convolution {name!r}, and without a BatchNorm behind it the network "
        "could not train, because the outputs of adder layers are large and negative"
    )


def _between(noun: str, name: str) -> ValueError:
    return ValueError(
        f"{noun} takes the outputs of the convolution {name!r} before any norm, and would lose those "
        "of an adder layer, which are all negative"
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
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that expect maps
            outputs = call(values)
    except Exception:  # a function of several values of the graph
        return False
    if not isinstance(outputs, torch.Tensor) or outputs.shape != values.shape:
        return False
    return bool(outputs.max() - outputs.min() < 1e-3)
