"""Temporary changes of train and eval mode."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def keeping_modes(*modules: nn.Module) -> Iterator[None]:
    """Restore the mode of every module inside `modules` on exit.

    Norms that a user froze by `.eval()` stay frozen; `module.train(was_training)` would undo that. A
    module that runs unregistered modules returns them by a method `hidden_modules`.
    """
    modes = [(inner, inner.training) for module in modules for inner in _inner(module)]
    try:
        yield
    finally:
        # train() first, because some classes (LoRA's layers) do more than set the flag; then the flag
        # itself, because train() has also set the mode of the children.
        for inner, mode in modes:
            inner.train(mode)
        for inner, mode in modes:
            inner.training = mode


@contextlib.contextmanager
def in_eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Set eval mode for `modules`, and restore the mode of every module inside them on exit."""
    with keeping_modes(*modules):
        for module in modules:
            module.eval()
        yield


def check_eval_mode(module: nn.Module) -> None:
    """Raise ValueError if a module inside `module` is in train mode."""
    if any(inner.training for inner in _inner(module)):
        raise ValueError(
            "the network is in train mode, in which predictions are wrong and change its norms: call "
            "net.eval() first"
        )


def train_unfrozen(module: nn.Module) -> None:
    """Set train mode for `module`, except modules frozen by `.eval()` inside a network in train mode.

    A network in eval mode, such as one just loaded, trains as a whole. Networks are the children of
    `module` (and of lists among them), and every nested net, whatever wraps it.
    """
    networks = [*_children(module), *(m for m in _inner(module) if hasattr(m, "hidden_modules"))]
    whole = {id(m) for network in networks if not network.training for m in _inner(network)}
    training = [inner for network in networks if network.training for inner in _inner(network)]
    frozen = [inner for inner in training if not inner.training and id(inner) not in whole]
    module.train()  # its class may keep some parts in eval mode
    for inner in frozen:
        inner.training = False


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):  # these never run themselves
            yield from _children(child)
        else:
            yield child


def _inner(module: nn.Module) -> Iterator[nn.Module]:
    for inner in module.modules():
        yield inner
        if hidden := getattr(inner, "hidden_modules", None):
            yield from hidden()
