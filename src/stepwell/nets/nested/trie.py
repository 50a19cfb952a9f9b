"""A trie of paths: every common prefix runs once."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from stepwell.nets.nested.paths import Path
from stepwell.nets.nested.steps import (
    Request,
    Value,
    each,
    feature_of,
    overwrites,
    same_memory,
    tensors_of,
    versions,
)
from stepwell.types import Exit

Tensors = Mapping[str, tuple[Tensor, ...]]


class State(NamedTuple):
    """The values after some step of a path.

    value: the output of the step.
    features: by depth, the outputs of its stages so far.
    extras: by requested name, the tensors that the steps have given so far.
    """

    value: Value
    features: Tensors
    extras: Tensors


class Node(NamedTuple):
    """Consecutive steps that `depths` share, and the nodes that follow.

    ends: for each step, the depths that complete a stage with it.
    keywords: for each step, the names of the constants that its forward takes.
    copies: the steps that run on a copy of their input, because they would overwrite a feature or the
        input of other steps.
    channels_last: maps are (batch, height, width, channels); an `Exit` has channels first.
    """

    depths: tuple[str, ...]
    steps: tuple[nn.Module, ...]
    ends: tuple[frozenset[str], ...]
    keywords: tuple[frozenset[str], ...]
    children: tuple["Node", ...]
    copies: frozenset[int] = frozenset()
    channels_last: bool = False

    def run(self, state: State, request: Request | None = None) -> State:
        """The state after the last step."""
        x, extras = state.value, state.extras
        features = {depth: state.features[depth] for depth in self.depths}
        for i, (step, ends) in enumerate(zip(self.steps, self.ends, strict=True)):
            if i in self.copies:
                x = each(Tensor.clone, x)
            if request is None:
                x = step(x)
            else:
                x, more = request.call(step, x, self.keywords[i])
                extras = {k: (*v, more[k]) if k in more else v for k, v in extras.items()}
                handed_on = any(same_memory(t, v) for t in more.values() for v in tensors_of(x))
                if handed_on and overwrites(self.steps[i + 1 :]):
                    x = each(Tensor.clone, x)
            for depth in ends:
                features[depth] = (*features[depth], feature_of(x))
        return State(x, features, extras)

    @property
    def last(self) -> tuple[str, ...]:
        """The depths whose paths end with this node, deepest first."""
        onward = {depth for child in self.children for depth in child.depths}
        return tuple(depth for depth in self.depths if depth not in onward)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the node's own steps that need a gradient, each once."""
        yield from {p: None for step in self.steps for p in step.parameters() if p.requires_grad}

    def all_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of this node and of all nodes below it; some may repeat."""
        yield from self.parameters()
        for child in self.children:
            yield from child.all_parameters()


def trie_of(paths: Mapping[str, Path], shared: int = 0, *, channels_last: bool) -> Node:
    """Build the trie of `paths` (deepest first), from their first step after the `shared` ones."""
    names, (first, *_) = tuple(paths), paths.values()
    stop = shared
    while all(stop < len(p.steps) and p.steps[stop] is first.steps[stop] for p in paths.values()):
        stop += 1
    branches: dict[int, dict[str, Path]] = {}
    for name, path in paths.items():
        if stop < len(path.steps):
            branches.setdefault(id(path.steps[stop]), {})[name] = path
    ends = tuple(frozenset(n for n in names if i in paths[n].ends) for i in range(shared, stop))
    children = tuple(trie_of(p, stop, channels_last=channels_last) for p in branches.values())
    # features, and what other branches run on, must not be overwritten
    needed = [i for i in range(stop - shared) if (ends[i - 1] if i else shared)]
    copies = frozenset(i for i in needed if overwrites(first.steps[shared + i :]))
    span = slice(shared, stop)
    return Node(names, first.steps[span], ends, first.keywords[span], children, copies, channels_last)


class Fork(NamedTuple):
    """A node that has run, and the state that it gives to its children."""

    node: Node
    state: State

    @classmethod
    def at_root(cls, root: Node, x: Value, request: Request | None) -> "Fork":
        """Run the root of a trie on an input."""
        names = () if request is None else request.extras
        state = State(x, dict.fromkeys(root.depths, ()), dict.fromkeys(names, ()))
        return cls(root, root.run(state, request))

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the state, each once."""
        value, features, extras = self.state
        of_depths = (t for given in (features, extras) for ts in given.values() for t in ts)
        return tuple({id(t): t for t in (*tensors_of(value), *of_depths)}.values())

    def cut(self) -> tuple["Fork", tuple[Tensor, ...]]:
        """The same values as leaves of a new autograd graph, and the leaves in order of `tensors`."""
        leaves = {id(t): t.detach().requires_grad_(t.requires_grad) for t in self.tensors()}
        value, features, extras = self.state
        features = {d: tuple(leaves[id(t)] for t in ts) for d, ts in features.items()}
        extras = {name: tuple(leaves[id(t)] for t in ts) for name, ts in extras.items()}
        state = State(each(lambda t: leaves[id(t)], value), features, extras)
        return Fork(self.node, state), tuple(leaves.values())

    def exits(self, request: Request | None = None) -> Iterator[tuple[str, Exit]]:
        """The exits of all paths from here, deepest first; errors as for `check`."""
        for child in self.node.children:
            before = versions(self.state.value)
            yield from Fork(child, child.run(self.state, request)).exits(request)
            self.check(child, before)
        for depth in self.node.last:
            yield depth, self.exit(depth)

    def check(self, child: Node, before: tuple[int, ...]) -> None:
        """Raise ValueError if a child changed the value that the others run on, by its versions."""
        if versions(self.state.value) != before:
            kind = type(child.steps[0]).__name__
            raise ValueError(
                f"the {kind} behind the fork of {' and '.join(self.node.depths)} overwrites its input, "
                "which the other depths run on: make it work out of place"
            )

    def exit(self, depth: str) -> Exit:
        """The exit of a path that ends here."""
        value, features, extras = self.state
        of_depth = features[depth]
        if self.node.channels_last:
            of_depth = tuple(f.movedim(-1, 1) if f.dim() == 4 else f for f in of_depth)
        assert isinstance(value, Tensor), f"depth {depth!r} ends with several tensors, not with logits"
        return Exit(value, of_depth, extras)
