"""Losses in full precision, whatever the networks compute in."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def in_full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Let a loss compute in 32 bits on half-precision tensors, also under autocast.

    A loss is a small difference of large sums: bfloat16's 8 bits of mantissa leave a third of a
    divergence between near attention maps to chance. 32 and 64 bits stay what they are. The gradient
    comes back in the precision of the input.
    """

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        # autocast would make bfloat16 of 32 bits again wherever matrices are multiplied
        kind = tensors[0].device.type
        with torch.autocast(
            kind if torch.amp.is_autocast_available(kind) else "cpu", enabled=False
        ):
            return loss(
                *(_full(x) for x in args),  # type: ignore[arg-type]
                **{name: _full(x) for name, x in kwargs.items()},  # type: ignore[arg-type]
            )

    return wrapped


def _full(x: object) -> object:
    if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16):
        return x.float()
    return x
