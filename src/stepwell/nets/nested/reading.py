"""Read any module as a path of plain steps around the blocks of its stages.

`torch.fx` traces the forward of the modules around the blocks, not the blocks. A call of one module
becomes that module; other code between two modules becomes a small step (`Calls`).
"""

import inspect
import re
import traceback
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import fx, nn

from stepwell.nets.nested.example import line_of
from stepwell.nets.nested.plan import Calls, Code, Holder, Plan, join
from stepwell.nets.nested.tracing import Around, Whole
from stepwell.train_mode import keeping_modes

#: A stage that is some children of a container.
SLICE = re.compile(r"(?P<name>.*)\[(?P<start>\d+):(?P<stop>\d+)(:(?P<step>[1-9]\d*))?\]")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def read(module: nn.Module, stages: Sequence[str]) -> Plan:
    """Read `module` as a path around the blocks of `stages`.

    Args:
        stages: in the order they run. "layer1" or "stages.0.blocks": each child of that module is a
            block. "features[2:4]": the children 2 and 3 of `features` are blocks ("[2:4]": of the
            module itself). "features[0:6:3]": three children (convolution, norm, activation) make a
            block.

    Raises:
        ValueError: a stage does not exist; the forward cannot be traced, runs the blocks in another
            order, or hands more than one value from block to block.
    """
    if not stages:
        raise ValueError(f"no stage was named; {_candidates(module)}")
    blocks = tuple(_blocks(module, stage) for stage in stages)
    names = [name for stage in blocks for block in stage for name in block]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"block {twice[0]!r} is in two stages: name each stage once")
    with keeping_modes(module):
        in_train = _Trace.of(module.train(), names)
        in_eval = _Trace.of(module.eval(), names)
    sizes = [sum(len(block) for block in stage) for stage in blocks]
    gaps = tuple(
        tuple(_steps(module, a, b))
        for a, b in zip(in_train.gaps(sizes), in_eval.gaps(sizes), strict=True)
    )
    return Plan(tuple(stages), blocks, gaps)


def find_stages(module: nn.Module) -> tuple[str, ...]:
    """The usual stages: innermost containers of children of one class that have children, too."""
    return tuple(_find(module, ""))


def _find(module: nn.Module, name: str) -> Iterator[str]:
    children = {n: child for n, child in module._modules.items() if child is not None}
    inner = [stage for n, child in children.items() for stage in _find(child, join(name, n))]
    kinds = {type(child) for child in children.values()}
    like = len(kinds) == 1 and all(child._modules for child in children.values())
    contains = isinstance(module, _CONTAINERS) or len(children) > 1
    if not inner and like and contains and not any(issubclass(k, _CONTAINERS) for k in kinds):
        yield name
    yield from inner


def _candidates(module: nn.Module) -> str:
    """The end of an error message: possible stages of `module`."""
    names = [f"{s} ({len(module.get_submodule(s)._modules)} blocks)" for s in find_stages(module)]
    kind = type(module).__name__
    if not names:
        return f"{kind} has no container whose children are blocks of one class: name yours"
    return f"possible stages in {kind}: {', '.join(names)}"


def _blocks(module: nn.Module, stage: str) -> tuple[tuple[str, ...], ...]:
    """The names of the modules that each block of `stage` runs."""
    sliced = SLICE.fullmatch(stage)
    name = sliced["name"] if sliced else stage
    try:
        container = module.get_submodule(name) if name or sliced else None
    except AttributeError:
        container = None
    if container is None:
        raise ValueError(f"no module {name!r} to be a stage; {_candidates(module)}")
    children = [n for n, child in container._modules.items() if child is not None]
    size = 1
    if sliced:
        start, stop, size = int(sliced["start"]), int(sliced["stop"]), int(sliced["step"] or 1)
        if stop > len(children) or start >= stop or (stop - start) % size:
            raise ValueError(
                f"stage {stage!r}: {name or 'the module'} has {len(children)} children, and blocks of "
                f"{size} must fill the slice"
            )
        children = children[start:stop]
    elif not isinstance(container, _CONTAINERS):
        inside = [n for n in children if isinstance(container._modules[n], _CONTAINERS)]
        if inside or not children:
            kind = type(container).__name__
            names = ", ".join(repr(f"{name}.{n}") for n in inside)
            hint = f"name the container of its blocks: {names}" if inside else "it has no children"
            raise ValueError(f"stage {name!r} is a {kind}, not a container of blocks; {hint}")
    if not children:
        raise ValueError(f"stage {name!r} has no block")
    full = [join(name, n) for n in children]
    return tuple(tuple(full[i : i + size]) for i in range(0, len(full), size))


class _Code(NamedTuple):
    """Nodes of a trace that take one tensor to another."""

    nodes: tuple[fx.Node, ...]
    source: fx.Node
    result: fx.Node

    @property
    def module(self) -> str | None:
        """The name of the module, if it is called on the tensor and nothing else is done."""
        if len(self.nodes) == 1 and _calls_one(self.nodes[0], self.source):
            return _name(self.nodes[0])
        return None

    def graph(self) -> fx.Graph:
        """A graph of its own, whose targets are the full net's names."""
        graph = fx.Graph()
        copies = {self.source: graph.placeholder("x")}

        def copy(node: fx.Node) -> fx.Node:
            if node not in copies:  # parameters are read where they are used
                copies[node] = graph.node_copy(node, copy)
                if node.op in ("get_attr", "call_module"):
                    copies[node].target = _name(node)
            return copies[node]

        for node in self.nodes:
            copy(node)
        graph.output(copies[self.result])
        return graph


class _Trace(NamedTuple):
    """The calls of a network in order; `nodes` has no reads of parameters."""

    nodes: list[fx.Node]
    source: fx.Node
    result: fx.Node
    blocks: list[fx.Node]

    @staticmethod
    def of(module: nn.Module, names: Sequence[str]) -> "_Trace":
        """The trace of `module` in its present mode; `names` are the blocks' modules in order."""
        whole = Whole(module)
        parents = {".".join(n.split(".")[:i]) for n in names for i in range(n.count(".") + 1)}
        around = {id(whole)} | {id(module.get_submodule(p)) for p in parents}
        kind = type(module).__name__
        try:
            graph, again = (Around(around).trace(whole) for _ in range(2))
        except Exception as error:  # whatever the network's own code raises when it meets a proxy
            raise ValueError(
                f"{kind} cannot be read as a path: {_reason(error)}; the forward around the blocks "
                f"may not depend on the input's values or sizes ({_candidates(module)})"
            ) from error
        for node, other in zip(_constants(graph), _constants(again), strict=True):
            node.meta["constant"] = getattr(whole, str(node.target))
            if not torch.equal(node.meta["constant"], getattr(whole, str(other.target))):
                raise ValueError(
                    f"{kind} cannot be read as a path: around its blocks the forward makes a tensor "
                    "that differs from call to call; make it of the input (torch.randn_like(x)) or in "
                    "a module"
                )
        nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
        source, output = next(iter(graph.nodes)), next(iter(reversed(graph.nodes)))
        result = output.args[0]
        if not isinstance(result, fx.Node):
            gives = f"{kind} gives a {type(result).__name__}"
            raise ValueError(f"{gives}, not a tensor of logits: wrap it so that it does")
        wanted = set(names)
        run = [n for n in nodes if n.op == "call_module" and _name(n) in wanted]
        called = [_name(n) for n in run]
        if called != list(names):
            block = next((n for n in names if called.count(n) != 1), None)
            problem = (
                "runs its blocks in another order than the stages name them"
                if block is None
                else f"calls block {block!r} {called.count(block)} times where a path runs it once"
            )
            raise ValueError(f"{kind} {problem} ({_candidates(module)})")
        trace = _Trace(nodes, source, result, run)
        trace.check()
        return trace

    def check(self) -> None:
        """Raise ValueError for blocks that take or leave more than one tensor."""
        for node in self.blocks:
            name, before = _name(node), node.args[0] if node.args else None
            if not isinstance(before, fx.Node) or not _calls_one(node, before):
                raise ValueError(
                    f"block {name!r} takes more than the tensor before it: {node.args} {node.kwargs}"
                )
            i = self.nodes.index(node)
            for at, single in ((i - 1, before), (i, node)):
                if others := self.live(at) - {single}:
                    others_ = ", ".join(sorted(str(n) for n in others))
                    raise ValueError(
                        f"beside the tensor that block {name!r} takes or gives, the forward still "
                        f"needs {others_}: a path hands one tensor from step to step"
                    )

    def live(self, at: int) -> set[fx.Node]:
        """The nodes that are computed by the end of node `at` and needed after it."""
        done = {self.source, *self.nodes[: at + 1]}
        needed = {n for node in self.nodes[at + 1 :] for n in node.all_input_nodes}
        return done & (needed | {self.result})

    def gaps(self, sizes: Sequence[int]) -> Iterator[_Code]:
        """The code before the first stage, between two, and after the last; `sizes` of the stages."""
        at, source, run = 0, self.source, 0
        for size in sizes:
            first, last = self.blocks[run], self.blocks[run + size - 1]
            stop = self.nodes.index(first)
            (before,) = first.all_input_nodes
            yield _Code(tuple(self.nodes[at:stop]), source, before)
            inside = self.nodes[stop : self.nodes.index(last) + 1]
            if others := [n for n in inside if n not in self.blocks]:
                raise ValueError(
                    f"between the blocks of one stage, behind {_name(first)!r}, the forward runs "
                    f"{others[0]}: a stage is a plain sequence of blocks, so name two stages"
                )
            at, source, run = stop + len(inside), last, run + size
        yield _Code(tuple(self.nodes[at:]), source, self.result)


def _calls_one(node: fx.Node, source: fx.Node) -> bool:
    """Check whether a node calls a module on `source` alone; arguments of None are left out."""
    rest = (*node.args[1:], *node.kwargs.values())
    return (
        node.op == "call_module" and node.args[:1] == (source,) and not any(r is not None for r in rest)
    )


def _constants(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that read a tensor made by the forward itself; the trace stores its value."""
    return [n for n in graph.nodes if n.op == "get_attr" and str(n.target).startswith("_tensor_c")]


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("net.")


def _steps(module: nn.Module, in_train: _Code, in_eval: _Code) -> Iterator[str | nn.Module]:
    """The steps of one gap; code that differs between the modes stays one step."""
    if _function(in_train.graph()).source != _function(in_eval.graph()).source:
        yield _calls(module, in_train.graph(), in_eval.graph())
        return
    for code in _parts(in_eval):
        name = code.module
        yield _calls(module, code.graph(), code.graph()) if name is None else name


def _parts(code: _Code) -> Iterator[_Code]:
    """The parts of a gap: calls of one module, and the code between them."""
    done, source, nodes = 0, code.source, code.nodes
    trace = _Trace(list(nodes), code.source, code.result, [])
    for i, node in enumerate(nodes):
        if node.op != "call_module" or trace.live(i) != {node}:
            continue
        before = next(iter(trace.live(i - 1)))
        if trace.live(i - 1) == {before} and _calls_one(node, before):
            if done < i:
                yield _Code(nodes[done:i], source, before)
            yield _Code((node,), before, node)
            done, source = i + 1, node
    if done < len(nodes):
        yield _Code(nodes[done:], source, code.result)


def _function(graph: fx.Graph) -> Code:
    code = graph.python_code("self")
    return Code(code.src, code.globals)


def _calls(module: nn.Module, in_train: fx.Graph, in_eval: fx.Graph) -> Calls:
    """A step that runs the graphs on the modules and parameters of `module`."""
    step = Calls(_function(in_train), _function(in_eval))
    nodes = [*in_train.nodes, *in_eval.nodes]
    for node in [n for n in nodes if "constant" in n.meta]:
        setattr(step, str(node.target), node.meta["constant"])
        nodes.remove(node)
    for op in ("call_module", "get_attr"):
        for name in dict.fromkeys(str(n.target) for n in nodes if n.op == op):
            _hang(step, module, name.split("."), whole=op == "call_module")
    return step


def _hang(step: Holder, module: nn.Module, path: Sequence[str], whole: bool) -> None:
    """Give `step` the module, or the tensor, at `path` in `module` under the same path."""
    *parents, last = path
    for name in parents:
        child = module._modules[name]
        assert child is not None
        here = step._modules.setdefault(name, Holder())
        if not isinstance(here, Holder):  # the whole module is there already
            return
        step, module = here, child
    if whole:
        step._modules[last] = module._modules[last]
    else:
        step._parameters, step._buffers = module._parameters, module._buffers


def _reason(error: Exception) -> str:
    """The error's first line, and its place in the network's own code."""
    text = line_of(error)
    inside = inspect.getfile(fx.Tracer).rsplit("/", 1)[0]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    places = [f for f in frames if not f.filename.startswith((inside, __file__))]
    return f"{text} (line {places[-1].lineno} of {places[-1].filename})" if places else text
