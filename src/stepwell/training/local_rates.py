"""The adaptive local learning rate of adder layers (AdderNet, Chen et al. 2020, section 3.3)."""

import math
from functools import partial
from numbers import Real

import torch
from torch import nn

from stepwell.nets.adders.layers import adder_layers
from stepwell.training.optim import Optim

#: The default local rate of adder layers. AdderNet has 0.2, for 400 epochs; in trainings of 40 epochs,
#: 2 was more accurate than 0.2, 0.6 and 6 (benchmarks/results/pkkd_trials.jsonl).
LOCAL_RATE = 2.0


def with_local_rates(optim: Optim, rate: float = LOCAL_RATE, factor: float = 1.0) -> Optim:
    """`optim`, with the adaptive local learning rate of adder layers in the place of its `prepare`.

    Once a step, each adder layer's filter gradient g of n numbers becomes rate · √n · g / ||g||, so the
    root of its mean square is `rate`. That is before the optimizer adds weight decay and momentum, and
    after gradients were accumulated and averaged over processes. A zero gradient stays. With a
    rate of 0, all these gradients are multiplied by `factor` instead, for studies.

    Clipping leaves these filters out: their gradients have a norm of about 100 in a ResNet-20, and
    clipping all to 5 would divide the gradients of the other layers by 20.

    It sets the size of a step under SGD. Adam divides each gradient by its own size, whatever the rate.
    """
    return optim._replace(prepare=partial(scale_filter_gradients, rate=rate, factor=factor))


def suited(optim: Optim, objective: nn.Module) -> Optim:
    """`optim` with local rates if `objective` trains adder layers and nothing else is prepared."""
    return with_local_rates(optim) if optim.prepare is None and adder_layers(objective) else optim


@torch.no_grad()
def scale_filter_gradients(module: nn.Module, rate: float, factor: float = 1.0) -> list[nn.Parameter]:
    """Set the root mean square of each adder layer's filter gradient to `rate`, in place.

    With a rate of 0, multiply them by `factor`. Gives the filters. ValueError for a rate that is no
    finite number of 0 or more.
    """
    if not isinstance(rate, Real) or not 0 <= rate < math.inf:
        raise ValueError(f"local rate {rate!r}: a finite number of 0 or more is meant")
    filters = [layer.weight for layer in adder_layers(module).values()]
    for weight in filters:
        gradient = weight.grad
        if gradient is None:
            continue
        if not rate:
            gradient.mul_(factor)
            continue
        norm = gradient.norm()
        scale = rate * math.sqrt(gradient.numel()) / norm
        gradient.mul_(torch.where(norm > 0, scale, torch.ones_like(norm)))
    return filters
