"""Paths that share steps, as a trie: every common prefix runs once, forward and backward.

`walk` gives the exits of all paths. `joint_loss` trains them: it runs the suffixes behind a fork one
after the other, each forward and backward at once, so that a single suffix's activations are in memory
at a time. The gradients that the suffixes leave on the fork are added up there, and the prefix runs
backward once.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stepwell.types import Exit

LossOf = Callable[[str, Exit, Mapping[str, Exit]], tuple[Tensor, Mapping[str, Tensor]]]
Features = Mapping[str, tuple[Tensor, ...]]
#: Steps that may hand on their very input, or a view of it.
_PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


class Node(NamedTuple):
    """A run of steps that `depths` share, and what follows it.

    A path ends with a node that no child goes on from; others that it is a prefix of may.

    ends: for each step, the depths that have a whole stage behind them after it.
    copies: the steps that run on a copy of their input, which they would overwrite: others run on it,
        or it is a feature.
    channels_last: maps are (batch, height, width, channels); exits have them as all others do.
    """

    depths: tuple[str, ...]
    steps: tuple[nn.Module, ...]
    ends: tuple[frozenset[str], ...]
    children: tuple["Node", ...]
    copies: frozenset[int] = frozenset()
    channels_last: bool = False

    def run(self, x: Tensor, features: Features) -> tuple[Tensor, Features]:
        """The output of the last step, and each depth's features so far."""
        mine = {depth: features[depth] for depth in self.depths}
        for i, (step, ends) in enumerate(zip(self.steps, self.ends, strict=True)):
            x = step(x.clone() if i in self.copies else x)
            for depth in ends:
                mine[depth] = (*mine[depth], x)
        return x, mine

    @property
    def last(self) -> tuple[str, ...]:
        """The depths whose paths end with it, deepest first."""
        onward = {depth for child in self.children for depth in child.depths}
        return tuple(depth for depth in self.depths if depth not in onward)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of its own steps that ask for a gradient, each once."""
        found = {p: None for step in self.steps for p in step.parameters() if p.requires_grad}
        yield from found


def grow(
    paths: Mapping[str, Sequence[nn.Module]],
    ends: Mapping[str, frozenset[int]],
    start: int = 0,
    *,
    channels_last: bool = False,
) -> Node:
    """The trie of `paths` (deepest first) from position `start`, up to which they agree.

    Args:
        ends: for each path, the positions after which a stage is complete.
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
        grow(branch, ends, stop, channels_last=channels_last) for branch in branches.values()
    )
    kept = [i for i in range(stop - start) if (at[i - 1] if i else start)]  # inputs others need
    copies = frozenset(i for i in kept if overwrites(first[start + i :]))
    return Node(names, tuple(first[start:stop]), at, children, copies, channels_last)


def overwrites(steps: Sequence[nn.Module]) -> bool:
    """Whether steps say that they work in place on their input, such as ReLU(inplace=True) the first.

    A block whose code does so without saying is refused when it runs, see `_Fork.exits`.
    """
    for step in steps:
        if getattr(step, "inplace", False):
            return True
        if isinstance(step, nn.Sequential) and overwrites([*step]):
            return True
        if not isinstance(step, _PASSING):
            return False
    return False


def walk(node: Node, x: Tensor, features: Features | None = None) -> Iterator[tuple[str, Exit]]:
    """Exits of all paths, in the trie's order (deepest first); a common prefix runs once."""
    return _Fork(node, *node.run(x, features or dict.fromkeys(node.depths, ()))).exits()


def joint_loss(
    root: Node,
    x: Tensor,
    loss_of: LossOf,
    scale: float | None = None,
    *,
    keep_features: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the losses of all paths, and its detached parts under "depth/part".

    Behind the first fork everything has run backward when this returns; `backward()` of the sum hands
    the gradients on and runs the prefix backward. The sum may be scaled and added to other losses,
    but differentiated once only. The gradients equal those of the naive sum to rounding, and a hook on
    a parameter (`register_hook`) applies once, to its whole gradient.

    Args:
        scale: what the gradients behind the fork are computed times; `backward()` divides by it. A
            factor on the sum itself comes too late for them: what vanished in float16 is gone. With
            a `GradScaler`, give its `get_scale()`.
        keep_features: whether the exits in `done` have their features, which live until all is done.

    Raises:
        ValueError: a loss depends on parameters that its depth does not run behind the fork: they
            would get no gradient; `scale` is not positive and finite, or missing under float16.
    """
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale {scale}: must be above 0 and finite")
    judge = _Judge(loss_of, 1.0 if scale is None else scale, keep_features)
    fork = _Fork(root, *root.run(x, dict.fromkeys(root.depths, ())))
    if root.children and torch.is_grad_enabled():
        if scale is None and _in_float16(x):
            raise ValueError(
                "in float16 the gradients of a joint loss need their scale before it is returned: give "
                "joint_loss(..., scale=scaler.get_scale()), or scale=1.0 to go without"
            )
        parameters = {p: None for child in root.children for p in _all_parameters(child)}
        total: Tensor = _Suffixes.apply(fork, judge, *fork.tensors(), *parameters)
    else:
        total = _sum([judge.loss(depth, exit) for depth, exit in fork.exits()])
    return total, judge.logs


class _Fork(NamedTuple):
    """A node that has run, and what it gives to its children."""

    node: Node
    y: Tensor
    features: Features

    def tensors(self) -> tuple[Tensor, ...]:
        """The output and the features, each tensor once."""
        given = [self.y, *(f for fs in self.features.values() for f in fs)]
        return tuple({id(t): t for t in given}.values())

    def cut(self) -> tuple["_Fork", tuple[Tensor, ...]]:
        """The same values as leaves of a new graph, and these in the order of `tensors`."""
        leaves = {id(t): t.detach().requires_grad_(t.requires_grad) for t in self.tensors()}
        features = {d: tuple(leaves[id(f)] for f in fs) for d, fs in self.features.items()}
        return _Fork(self.node, leaves[id(self.y)], features), tuple(leaves.values())

    def exits(self) -> Iterator[tuple[str, Exit]]:
        """The exits of all paths from here, deepest first.

        Raises:
            ValueError: a path overwrote what the others run on.
        """
        for child in self.node.children:
            before = _version(self.y)
            yield from walk(child, self.y, self.features)
            self.check(child, before)
        for depth in self.node.last:
            yield depth, self.exit(depth)

    def check(self, child: Node, before: int) -> None:
        """Refuse a child that changed the output since it had the version `before`."""
        if _version(self.y) != before:
            kind = type(child.steps[0]).__name__
            raise ValueError(
                f"the {kind} behind the fork of {' and '.join(self.node.depths)} overwrites its input, "
                "which the other depths run on: let it not work in place"
            )

    def exit(self, depth: str) -> Exit:
        """The exit of a path that ends here."""
        features = self.features[depth]
        if self.node.channels_last:
            features = tuple(f.movedim(-1, 1) if f.dim() == 4 else f for f in features)
        return Exit(self.y, features)


def _version(tensor: Tensor) -> int:
    """Counts the changes in place; a tensor of `inference_mode` or of a compiled graph does not."""
    return 0 if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


def _in_float16(x: Tensor) -> bool:
    """Whether a network that is given `x` computes in float16."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind) == torch.float16 or x.dtype == torch.float16
    return x.dtype == torch.float16


class _Judge:
    """Asks for the loss of each exit in turn; keeps the parts, and the exits already done.

    scale: what the gradients of the losses are times.
    """

    def __init__(self, loss_of: LossOf, scale: float, keep_features: bool) -> None:
        self.loss_of = loss_of
        self.scale = scale
        self.keep_features = keep_features
        self.logs: dict[str, Tensor] = {}
        self.done: dict[str, Exit] = {}

    def loss(self, depth: str, exit: Exit) -> Tensor:
        """One depth's loss, with its graph."""
        loss, parts = self.loss_of(depth, exit, self.done)
        self.logs |= {f"{depth}/{part}": value.detach() for part, value in parts.items()}
        kept = exit if self.keep_features else Exit(exit.logits)
        self.done[depth] = kept.detach()
        return loss


class _Gradients:
    """Gradients of tensors, added up."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def backward(
        self, outputs: Sequence[Tensor], given: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> None:
        """Add what `inputs` get when `outputs` have the gradients `given`.

        Each gradient is added as soon as it is there, and something without memory handed on in its
        place: all gradients of a suffix at once would be in memory twice. Hooks that others registered
        on parameters wait for the whole gradient, which the outer backward brings.
        """
        waiting = [
            (own, dict(own))
            for t in inputs
            if isinstance(t, nn.Parameter) and (own := t._backward_hooks)
        ]
        for own, _ in waiting:  # torch runs what is in this very dict
            own.clear()
        hooks = [t.register_hook(partial(self._take, id(t))) for t in inputs]
        try:
            torch.autograd.grad(outputs, inputs, given, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
            for own, theirs in waiting:
                own.update(theirs)

    def _take(self, key: int, gradient: Tensor) -> Tensor:
        if key in self._sums:
            self._sums[key].add_(gradient)
        else:
            # A copy, as autograd may give the same memory to two tensors: made now, when most of the
            # suffix's activations are gone, and not with the next sum, when the next suffix's are live.
            self._sums[key] = gradient.clone()
        return gradient.new_zeros(()).expand_as(gradient)

    def pop(self, tensor: Tensor) -> Tensor | None:
        """The sum for `tensor`, given away."""
        return self._sums.pop(id(tensor), None)


class _Suffixes(torch.autograd.Function):
    """Everything behind a fork: it runs backward within `forward`; `backward` hands on."""

    @staticmethod
    def forward(ctx: Any, fork: _Fork, judge: _Judge, *tensors: Tensor) -> Tensor:
        """The sum of the losses. `tensors`: those of the fork, then all parameters behind it."""
        gradients = _Gradients()
        with torch.enable_grad():
            total, of_fork = _behind(fork, judge, gradients)
        ctx.gradients = [*of_fork, *(gradients.pop(p) for p in tensors[len(of_fork) :])]
        ctx.scale = judge.scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sum: Tensor) -> tuple[Tensor | None, ...]:
        """What `forward` found, times the gradient of the sum, without the scale."""
        gradients: list[Tensor | None] | None = ctx.gradients
        ctx.gradients = None
        if gradients is None:
            raise RuntimeError("a joint loss runs backward once: its activations are gone")
        factor = of_sum / ctx.scale  # 1 where the sum has just this scale: nothing vanishes between
        if factor.device.type != "cpu" or factor != 1:  # to ask elsewhere would wait for the device
            for i, gradient in enumerate(gradients):
                gradients[i] = None if gradient is None else gradient * factor
        return (None, None, *gradients)


def _behind(
    fork: _Fork, judge: _Judge, gradients: _Gradients
) -> tuple[Tensor, list[Tensor | None]]:
    """Run the children of `fork` one by one, forward and backward, then the paths that end there.

    Returns:
        The sum of their losses, detached, and the gradients of `fork.tensors()`.
    """
    cut, leaves = fork.cut()
    losses = []
    for child in fork.node.children:
        before = _version(cut.y)
        losses.append(_suffix(child, cut, judge, gradients))
        cut.check(child, before)
    if fork.node.last:
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        losses.append(_exits(cut, judge, gradients, inputs))
    return _sum(losses), [gradients.pop(leaf) for leaf in leaves]


def _suffix(node: Node, fork: _Fork, judge: _Judge, gradients: _Gradients) -> Tensor:
    """Run one child of `fork` forward and backward; its detached loss."""
    given = {d: fork.features[d] for d in node.depths}
    inputs = [t for t in _Fork(node, fork.y, given).tensors() if t.requires_grad]
    inputs += node.parameters()
    here = _Fork(node, *node.run(fork.y, given))
    if node.children:
        total, of_outputs = _behind(here, judge, gradients)
        pairs = [(t, g) for t, g in zip(here.tensors(), of_outputs, strict=True) if g is not None]
        if pairs and inputs:
            gradients.backward([t for t, _ in pairs], [g for _, g in pairs], inputs)
    else:
        total = _exits(here, judge, gradients, inputs)
    return total


def _exits(fork: _Fork, judge: _Judge, gradients: _Gradients, inputs: Sequence[Tensor]) -> Tensor:
    """Run the losses of the paths that end at `fork` backward to `inputs`; their detached sum."""
    loss = _sum([judge.loss(depth, fork.exit(depth)) for depth in fork.node.last])
    _check_parameters(loss, fork, inputs)
    if loss.requires_grad:
        gradients.backward([loss], [torch.ones_like(loss) * judge.scale], inputs)
    return loss.detach()


def _check_parameters(loss: Tensor, fork: _Fork, inputs: Sequence[Tensor]) -> None:
    """Refuse a loss with parameters that are not behind the fork: they would get no gradient."""
    known = {id(t) for t in inputs}
    seen = {t.grad_fn for t in fork.tensors()}  # the network's own graph need not be searched
    ahead = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise ValueError(
                f"the loss of depth {fork.node.last[0]!r} depends on a parameter of shape "
                f"{tuple(variable.shape)} that the depth does not run behind the fork (others share "
                "it, or it is none of the network's), so it would get no gradient: add that part of "
                "the loss outside joint_loss"
            )
        ahead += [following for following, _ in node.next_functions]


def _all_parameters(node: Node) -> Iterator[nn.Parameter]:
    yield from node.parameters()
    for child in node.children:
        yield from _all_parameters(child)


def _sum(losses: list[Tensor]) -> Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
