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


def _inner(module: nn.Module) -> Iterator[nn.Module]:
    for inner in module.modules():
        yield inner
        if hidden := getattr(inner, "hidden_modules", None):
            yield from hidden()
