"""Losses in full precision, whatever precision the networks use."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def in_full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Compute a loss of half-precision tensors in 32 bits, also under autocast.

    A loss is a small difference of large sums: with bfloat16's 8 bits of mantissa, a third of the
    divergence between similar attention maps is rounding error. 32 and 64 bits are unchanged. The
    gradient has the precision of the input.
    """

    @wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        # autocast would turn 32 bits into bfloat16 again at every matrix product
        kind = tensors[0].device.type
        kind = kind if torch.amp.is_autocast_available(kind) else "cpu"
        with torch.autocast(kind, enabled=False):
            return loss(
                *(_full(x) for x in args),  # type: ignore[arg-type]
                **{name: _full(x) for name, x in kwargs.items()},  # type: ignore[arg-type]
            )

    return wrapped


def _full(x: object) -> object:
    if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16):
        return x.float()
    return x
