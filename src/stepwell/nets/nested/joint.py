"""The joint loss of all paths of a trie.

The suffixes behind a fork run one after the other, each forward and backward at once, so only the
activations of one suffix are in memory. Their gradients are added up at the fork, and the prefix runs
backward once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stepwell.nets.nested.steps import Request, versions
from stepwell.nets.nested.trie import Fork, Node, State
from stepwell.types import Exit

LossOf = Callable[[str, Exit, Mapping[str, Exit]], tuple[Tensor, Mapping[str, Tensor]]]


def joint_loss(
    root: Node,
    x: Shaped[Tensor, "batch ..."],
    loss_of: LossOf,
    *,
    keep_features: bool = True,
    also: Iterable[nn.Parameter] = (),
    request: Request | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """The sum of the losses of all paths, and its detached parts under "depth/part".

    Everything behind the first fork has run backward when this returns; `backward()` of the sum hands
    the gradients on and runs the prefix backward. The sum may be scaled and added to other losses, but
    differentiated only once. The gradients equal those of the naive sum to rounding. A hook on a
    parameter (`register_hook`) applies once, to its whole gradient.

    Args and errors as for `NestedNet.joint_loss`.
    """
    shared = tuple(p for p in also if p.requires_grad)
    losses = _Losses(loss_of, keep_features, shared, request)
    fork = Fork.at_root(root, x, request)
    if root.children and torch.is_grad_enabled():
        if _in_float16(x):
            raise ValueError(
                "float16 is not supported by joint losses: gradients behind a fork vanish before "
                "a GradScaler scales them: use bfloat16 or float32"
            )
        behind = {p: None for child in root.children for p in child.all_parameters()}
        behind |= dict.fromkeys(shared)
        total: Tensor = _Suffixes.apply(fork, losses, *fork.tensors(), *behind)
    else:
        total = _sum([losses.loss(depth, exit) for depth, exit in fork.exits(request)])
    return total, losses.logs


def check_extras(exit: Exit, request: Request | None) -> None:
    """Raise ValueError for a requested extra that the deepest path does not give."""
    for name in () if request is None else request.extras:
        if not exit.extras[name]:
            raise ValueError(f"extras {name!r}: no step of the deepest path gives it")


def _in_float16(x: Tensor) -> bool:
    """Check whether a network computes in float16 on the input `x`."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind) == torch.float16 or x.dtype == torch.float16
    return x.dtype == torch.float16


@dataclass
class _Losses:
    """Computes the loss of each exit in turn; keeps the parts, and the exits already done.

    shared: parameters outside the paths that the losses share.
    """

    loss_of: LossOf
    keep_features: bool
    shared: tuple[nn.Parameter, ...]
    request: Request | None
    logs: dict[str, Tensor] = field(default_factory=dict)
    done: dict[str, Exit] = field(default_factory=dict)

    def loss(self, depth: str, exit: Exit) -> Tensor:
        """One depth's loss, with its graph."""
        if not self.done:
            check_extras(exit, self.request)
        loss, parts = self.loss_of(depth, exit, self.done)
        self.logs |= {f"{depth}/{part}": value.detach() for part, value in parts.items()}
        self.done[depth] = (exit if self.keep_features else Exit(exit.logits)).detach()
        return loss


class _Gradients:
    """Gradients of tensors, added up."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def backward(
        self, outputs: Sequence[Tensor], given: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> None:
        """Add the gradients of `inputs` when `outputs` have the gradients `given`.

        Each gradient is added as soon as it is computed, and replaced by a tensor without memory:
        otherwise all gradients of a suffix would be in memory twice. The caller's hooks on parameters
        wait for the whole gradient, in the outer backward.
        """
        parameters = (t for t in inputs if isinstance(t, nn.Parameter))
        waiting = [(registry, dict(registry)) for t in parameters if (registry := t._backward_hooks)]
        for registry, _ in waiting:  # torch runs what is in this very dict
            registry.clear()
        hooks = [t.register_hook(partial(self._take, id(t))) for t in inputs]
        try:
            torch.autograd.grad(outputs, inputs, given, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
            for registry, theirs in waiting:
                registry.update(theirs)

    def _take(self, key: int, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:  # a custom backward may give none
            return None
        if key in self._sums:
            self._sums[key].add_(gradient)
        else:
            # Autograd may give the same memory to two tensors. Copied now, when most activations of
            # this suffix are gone, and not at the next sum, when those of the next suffix are live.
            self._sums[key] = gradient.clone()
        return gradient.new_zeros(()).expand_as(gradient)

    def pop(self, tensor: Tensor) -> Tensor | None:
        """The sum for `tensor`, which is then forgotten."""
        return self._sums.pop(id(tensor), None)


class _Suffixes(torch.autograd.Function):
    """Everything behind a fork: runs backward inside `forward`; `backward` hands the gradients on."""

    @staticmethod
    def forward(ctx: Any, fork: Fork, losses: _Losses, *tensors: Tensor) -> Tensor:
        """The sum of the losses. `tensors` are the fork's, then all parameters behind it."""
        gradients = _Gradients()
        with torch.enable_grad():
            total, of_fork = _behind(fork, losses, gradients)
        ctx.gradients = [*of_fork, *(gradients.pop(p) for p in tensors[len(of_fork) :])]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sum: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that `forward` computed, times the gradient of the sum."""
        gradients: list[Tensor | None] | None = ctx.gradients
        ctx.gradients = None
        if gradients is None:
            raise RuntimeError("a joint loss runs backward once: its activations are gone")
        if of_sum.device.type != "cpu" or of_sum != 1:  # to ask elsewhere would wait for the device
            for i, gradient in enumerate(gradients):
                gradients[i] = None if gradient is None else gradient * of_sum
        return (None, None, *gradients)


def _behind(fork: Fork, losses: _Losses, gradients: _Gradients) -> tuple[Tensor, list[Tensor | None]]:
    """Run the children of `fork` one by one, forward and backward, then the paths that end there.

    Gives the detached sum of their losses, and the gradients of `fork.tensors()`.
    """
    cut, leaves = fork.cut()
    sums = []
    for child in fork.node.children:
        before = versions(cut.state.value)
        sums.append(_suffix(child, cut, losses, gradients))
        cut.check(child, before)
    if fork.node.last:
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        sums.append(_exits(cut, losses, gradients, inputs))
    return _sum(sums), [gradients.pop(leaf) for leaf in leaves]


def _suffix(node: Node, fork: Fork, losses: _Losses, gradients: _Gradients) -> Tensor:
    """Run one child of `fork` forward and backward; its detached loss."""
    features = {d: fork.state.features[d] for d in node.depths}
    state = State(fork.state.value, features, fork.state.extras)
    inputs = [t for t in Fork(node, state).tensors() if t.requires_grad]
    inputs += node.parameters()
    here = Fork(node, node.run(state, losses.request))
    if node.children:
        total, of_outputs = _behind(here, losses, gradients)
        pairs = [(t, g) for t, g in zip(here.tensors(), of_outputs, strict=True) if g is not None]
        if pairs and inputs:
            gradients.backward([t for t, _ in pairs], [g for _, g in pairs], inputs)
    else:
        total = _exits(here, losses, gradients, inputs)
    return total


def _exits(fork: Fork, losses: _Losses, gradients: _Gradients, inputs: Sequence[Tensor]) -> Tensor:
    """Run the losses of the paths that end at `fork` backward to `inputs`; their detached sum."""
    inputs = tuple({id(t): t for t in (*inputs, *losses.shared)}.values())
    loss = _sum([losses.loss(depth, fork.exit(depth)) for depth in fork.node.last])
    _check_parameters(loss, fork, inputs)
    if loss.requires_grad:
        gradients.backward([loss], [torch.ones_like(loss)], inputs)
    return loss.detach()


def _check_parameters(loss: Tensor, fork: Fork, inputs: Sequence[Tensor]) -> None:
    """Raise ValueError for a loss with parameters before the fork: they would get no gradient."""
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
                "it, or it is outside the network), so it would get no gradient: name it in "
                "joint_loss(..., also=[...]), or add that part of the loss outside joint_loss"
            )
        ahead += [following for following, _ in node.next_functions]


def _sum(losses: list[Tensor]) -> Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
