"""Optimizers with their schedules, as plain values."""

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from stepwell.methods.objective import Objective

OptimizerName = Literal["sgd", "adam", "adamw"]
#: The default highest learning rate of each optimizer.
RATES: dict[OptimizerName, float] = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


class Optim(NamedTuple):
    """An optimizer and its schedule.

    make: maps a module to the optimizer of its parameters.
    factor: maps the share of training done, in [0, 1], to a factor of the learning rate. It is a closed
        form, so a resumed run needs no scheduler state.
    prepare: called with the objective once a step, after backward and before gradients are clipped; it
        may change the gradients in place. It gives the parameters that clipping leaves out, if any.
    """

    make: Callable[[nn.Module], Optimizer]
    factor: Callable[[float], float]
    prepare: Callable[[Objective], Collection[nn.Parameter] | None] | None = None


def sgd(lr: float, *, weight_decay: float = 5e-4, momentum: float = 0.9, warmup: float = 0.05) -> Optim:
    """SGD with Nesterov momentum, a linear warm-up and a cosine down to zero.

    Args:
        lr: the highest learning rate.
        weight_decay: of matrices and kernels; norms and biases have none.
        warmup: share of training over which the rate rises.
    """
    make = partial(torch.optim.SGD, lr=lr, momentum=momentum, nesterov=momentum > 0)
    return Optim(lambda net: make(_groups(net, weight_decay)), partial(cosine, warmup=warmup))


def optimizer_of(
    name: OptimizerName, lr: float | None = None, *, weight_decay: float = 5e-4,
    warmup: float = 0.05, fused: bool = False,
) -> Optim:  # fmt: skip
    """An optimizer by name, under the schedule of `sgd`.

    Args:
        name: `sgd`; `adam` (Kingma and Ba 2015), where the decay is a part of the gradient; `adamw`
            (Loshchilov and Hutter 2019), where it shrinks the weights by itself.
        lr: by default the optimizer's own in `RATES`.
        fused: for `adam` and `adamw`: update each parameter in one pass, which makes large embeddings
            faster. Training in bf16 refuses it with clipping.
    """
    lr = RATES[name] if lr is None else lr
    if name == "sgd":
        return sgd(lr, weight_decay=weight_decay, warmup=warmup)
    make = partial(torch.optim.Adam if name == "adam" else torch.optim.AdamW, lr=lr, fused=fused)
    return Optim(lambda net: make(_groups(net, weight_decay)), partial(cosine, warmup=warmup))


def cosine(progress: float, warmup: float) -> float:
    """Factor of the learning rate: linear up to 1 at `warmup`, then half a cosine down to 0.

    At progress 0 the factor is small but not zero, or the first step would be lost.
    """
    if progress < warmup:
        return max(progress / warmup, 1e-2)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
