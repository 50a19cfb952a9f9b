"""Teachers: callables from inputs to an exit, without gradients."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stepwell.nets.nested.net import NestedNet
from stepwell.types import Exit

#: A teacher: inputs to an exit, without gradients.
Teacher = Callable[[Tensor], Exit]


class Frozen(nn.Module):
    """A teacher made of a module: always in eval mode, without gradients, in no checkpoint.

    It follows `.to()`, and enters no `parameters()`, `state_dict()` or `train()` call of the module
    that owns it.

    Args:
        net: gives logits or an `Exit`; a nested net gives its features, too.
        copy: take a deep copy, so that training `net` further does not change the teacher.
        depth: the depth of a nested net that teaches; the full net by default.
    """

    def __init__(self, net: nn.Module, *, copy: bool = True, depth: str | None = None) -> None:
        super().__init__()
        net = deepcopy(net) if copy else net
        self._net = [net.eval().requires_grad_(False)]  # the list hides it from nn.Module
        self._depth = () if depth is None else (depth,)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the features (see `stages_of`)."""
        return stages_of(self._net[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frozen":
        self._net[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, *args: Any, **keywords: Any) -> Exit:
        """The exit of the frozen net; `keywords` go to its forward (such as a nested net's `given`)."""
        return exit_of(self._net[0], *args, *self._depth, **keywords)


class MovingAverage(nn.Module):
    """A teacher that follows a network: the exponential moving average of weights and statistics.

    Unlike `Frozen` it changes, so it is in the state dict (a resumed run needs it). Its parameters
    need no gradient, so no optimizer takes them. The first `update` copies the network.

    Args:
        net: the network to follow; it is copied.
        decay: share of the average kept at each update, in [0, 1).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"the moving average's decay must lie in [0, 1), not {decay}")
        self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.average.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "MovingAverage":
        """Stay in eval mode, whatever mode the owner sets."""
        return super().train(False)

    def update(self, net: nn.Module) -> None:
        """Move towards the present weights of `net`."""
        self.average.update_parameters(net)

    @torch.no_grad()
    def forward(self, x: Shaped[Tensor, "batch ..."], **keywords: Any) -> Exit:
        """The exit of the averaged network; `keywords` go to its forward."""
        return as_exit(self.average(x, **keywords))


def check_teacher(teacher: Teacher) -> None:
    """Raise ValueError for a teacher whose parameters need a gradient: it would train, too."""
    if isinstance(teacher, nn.Module) and any(p.requires_grad for p in teacher.parameters()):
        raise ValueError(
            f"the teacher ({type(teacher).__name__}) has parameters that ask for a gradient, and its "
            "norms would follow the student's batches: give Frozen(teacher)"
        )


def as_exit(output: Float[Tensor, "..."] | Exit) -> Exit:
    """Logits or an exit, as an exit."""
    return output if isinstance(output, Exit) else Exit(output)


def exit_of(net: nn.Module, *args: Any, **keywords: Any) -> Exit:
    """The exit of a network for its arguments; with features, if it has any."""
    if isinstance(net, NestedNet):
        x, depth = args if len(args) == 2 else (*args, net.full)
        return net.forward_all(x, [depth], **keywords)[depth]
    return as_exit(net(*args, **keywords))


def stages_of(net: object) -> tuple[str, ...]:
    """The names of the features in the exit of a network or a teacher, in order.

    A nested net names its stages. A module of your own that gives an `Exit` names them in an attribute
    `stages`, a tuple of strings; without it there are no names.
    """
    names = getattr(net, "stages", ())  # which may be anything: timm has containers of that name
    return names if isinstance(names, tuple) else ()
