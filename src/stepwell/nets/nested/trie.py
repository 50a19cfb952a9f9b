"""Paths that share steps, as a trie: every common prefix runs once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

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
    """The values behind some step of a path.

    value: the output of the step.
    features: of each depth, the outputs of its stages so far.
    extras: of each name that a caller asked for, the tensors that the steps gave so far.
    """

    value: Value
    features: Tensors
    extras: Tensors


class Node(NamedTuple):
    """A run of steps that `depths` share, and the nodes that follow it.

    A path ends with a node that no child goes on from; other paths of the same node may go on.

    ends: for each step, the depths that complete a stage with it.
    keywords: for each step, the names that its forward takes beside its input.
    copies: the steps that run on a copy of their input. They would overwrite it, and other steps run
        on it, or it is a feature.
    channels_last: maps are (batch, height, width, channels); an exit has them channels first.
    """

    depths: tuple[str, ...]
    steps: tuple[nn.Module, ...]
    ends: tuple[frozenset[str], ...]
    keywords: tuple[frozenset[str], ...]
    children: tuple["Node", ...]
    copies: frozenset[int] = frozenset()
    channels_last: bool = False

    def run(self, state: State, request: Request | None = None) -> State:
        """The state behind the last step."""
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
        """The parameters of this node and of all below it; one may come several times."""
        yield from self.parameters()
        for child in self.children:
            yield from child.all_parameters()


def grow(
    paths: Mapping[str, Sequence[nn.Module]],
    ends: Mapping[str, frozenset[int]],
    keywords: Mapping[str, Sequence[frozenset[str]]],
    start: int = 0,
    *,
    channels_last: bool = False,
) -> Node:
    """The trie of `paths` (deepest first) from position `start`, up to which they agree.

    Args:
        ends: for each path, the positions after which a stage is complete.
        keywords: for each path, the names that each step's forward takes beside its input.
        channels_last: maps are (batch, height, width, channels).
    """
    names = tuple(paths)
    first = paths[names[0]]
    stop = start
    while all(stop < len(p) and p[stop] is first[stop] for p in paths.values()):
        stop += 1
    branches: dict[int, dict[str, Sequence[nn.Module]]] = {}
    for name, path in paths.items():
        if stop < len(path):
            branches.setdefault(id(path[stop]), {})[name] = path
    at = tuple(frozenset(n for n in names if i in ends[n]) for i in range(start, stop))
    children = tuple(
        grow(branch, ends, keywords, stop, channels_last=channels_last) for branch in branches.values()
    )
    needed = [i for i in range(stop - start) if (at[i - 1] if i else start)]  # inputs others need
    copies = frozenset(i for i in needed if overwrites(first[start + i :]))
    own = tuple(keywords[names[0]][start:stop])
    return Node(names, tuple(first[start:stop]), at, own, children, copies, channels_last)


def start(root: Node, x: Value, request: Request | None) -> "Fork":
    """The root of a trie after it has run on an input."""
    names = () if request is None else request.extras
    state = State(x, dict.fromkeys(root.depths, ()), dict.fromkeys(names, ()))
    return Fork(root, root.run(state, request))


def walk(root: Node, x: Value, request: Request | None = None) -> Iterator[tuple[str, Exit]]:
    """Exits of all paths, in the trie's order (deepest first); a common prefix runs once."""
    return start(root, x, request).exits(request)


class Fork(NamedTuple):
    """A node that has run, and the state that it gives to its children."""

    node: Node
    state: State

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors of the state, each once."""
        value, features, extras = self.state
        of_depths = (t for given in (features, extras) for ts in given.values() for t in ts)
        return tuple({id(t): t for t in (*tensors_of(value), *of_depths)}.values())

    def cut(self) -> tuple["Fork", tuple[Tensor, ...]]:
        """The same values as leaves of a new graph, and the leaves in the order of `tensors`."""
        leaves = {id(t): t.detach().requires_grad_(t.requires_grad) for t in self.tensors()}
        value, features, extras = self.state
        features = {d: tuple(leaves[id(t)] for t in ts) for d, ts in features.items()}
        extras = {name: tuple(leaves[id(t)] for t in ts) for name, ts in extras.items()}
        state = State(each(lambda t: leaves[id(t)], value), features, extras)
        return Fork(self.node, state), tuple(leaves.values())

    def exits(self, request: Request | None = None) -> Iterator[tuple[str, Exit]]:
        """The exits of all paths from here, deepest first.

        Raises:
            ValueError: a path overwrote what the others run on.
        """
        for child in self.node.children:
            before = versions(self.state.value)
            yield from Fork(child, child.run(self.state, request)).exits(request)
            self.check(child, before)
        for depth in self.node.last:
            yield depth, self.exit(depth)

    def check(self, child: Node, before: tuple[int, ...]) -> None:
        """Refuse a child that changed the value since it had the versions `before`."""
        if versions(self.state.value) != before:
            kind = type(child.steps[0]).__name__
            raise ValueError(
                f"the {kind} behind the fork of {' and '.join(self.node.depths)} overwrites its input, "
                "which the other depths run on: let it not work in place"
            )

    def exit(self, depth: str) -> Exit:
        """The exit of a path that ends here."""
        value, features, extras = self.state
        of_depth = features[depth]
        if self.node.channels_last:
            of_depth = tuple(f.movedim(-1, 1) if f.dim() == 4 else f for f in of_depth)
        assert isinstance(value, Tensor), f"depth {depth!r} ends with several tensors, not with logits"
        return Exit(value, of_depth, extras)
