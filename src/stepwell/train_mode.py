"""Train and eval mode, changed for a while."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def keeping_modes(*modules: nn.Module) -> Iterator[None]:
    """Afterwards every module inside `modules` is in its own mode of before.

    A user who froze some norms by `.eval()` finds them so, which `module.train(was_training)` undoes.
    A module that runs others which it does not register gives them by a method `hidden_modules`.
    """
    modes = [(inner, inner.training) for module in modules for inner in _inner(module)]
    try:
        yield
    finally:
        # First as each class would, as some (LoRA's layers) do more than note it; then to the letter,
        # as each has set the mode of its children, too.
        for inner, mode in modes:
            inner.train(mode)
        for inner, mode in modes:
            inner.training = mode


@contextlib.contextmanager
def in_eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Eval mode for `modules`; afterwards every module inside them is in its own mode of before."""
    with keeping_modes(*modules):
        for module in modules:
            module.eval()
        yield


def train_unfrozen(module: nn.Module) -> None:
    """Train mode for `module`, but for what was frozen by `.eval()` inside a network in train mode.

    A network that is in eval mode itself, as one that was just loaded, trains as a whole. Networks are
    the children of `module` (and of lists among them), and every nested net, whatever wraps it.
    """
    networks = [*_children(module), *(m for m in _inner(module) if hasattr(m, "hidden_modules"))]
    whole = {id(m) for network in networks if not network.training for m in _inner(network)}
    frozen = [
        inner
        for network in networks
        if network.training
        for inner in _inner(network)
        if not inner.training and id(inner) not in whole
    ]
    module.train()  # as its class would: it may keep some parts in eval mode, too
    for inner in frozen:
        inner.training = False


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):  # which never runs itself
            yield from _children(child)
        else:
            yield child


def _inner(module: nn.Module) -> Iterator[nn.Module]:
    for inner in module.modules():
        yield inner
        if hidden := getattr(inner, "hidden_modules", None):
            yield from hidden()
