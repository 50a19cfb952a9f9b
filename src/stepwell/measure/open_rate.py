"""Set the mean share of its gates that a network opens."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from stepwell.nets import NestedNet
from stepwell.nets.decisions.skipping import gated_blocks
from stepwell.train_mode import in_eval_mode
from stepwell.types import Batch

#: Images to settle the open rate on; the largest shift of scores, and halvings of its range.
SETTLING, MOST_SHIFT, HALVINGS = 1024, 16.0, 14
#: Difference of an open rate from its target from which on a warning says so.
MISSED = 0.05


def settle_open_rate(
    net: NestedNet, batches: Iterable[Batch], target: float, costs: Sequence[float] | None = None,
    most: int = SETTLING,
) -> float:  # fmt: skip
    """Shift the scores of all gates by one number, so that their mean open rate is `target`.

    Gates that are drawn in training keep to a target that the better scores, which decide in use, do
    not keep. The shift goes into the biases of the gates. Equal scores open together: where many are
    equal, such as those of places without content, a warning says what was reached.

    Args:
        batches: images to open for; about the first `most` are used.
        costs: weights of the gates in the mean, such as the MACs of their blocks; equal by default.

    Returns:
        The shift of the scores "run".
    """
    shift, *reached = _settled(net, batches, target, costs, most)
    best = min(reached, key=lambda rate: abs(rate - target))
    if abs(best - target) > MISSED:
        shares = " and ".join(f"{rate:.2f}" for rate in sorted({*reached}))
        warnings.warn(
            f"the share of open gates is {best:.2f}, not {target:.2f}: many of their scores are equal, "
            f"and open together. The nearest shares are {shares}; set one of them as --target",
            stacklevel=2,
        )
    return shift


@torch.no_grad()
def _settled(
    net: NestedNet, batches: Iterable[Batch], target: float, costs: Sequence[float] | None, most: int
) -> tuple[float, float, float]:
    """Set the shift whose open rate is nearest to `target`; gives it, and the two nearest rates."""
    images, count = [], 0
    for batch in batches:
        images.append(batch.images.to(next(net.parameters()).device))
        if (count := count + len(batch.images)) >= most:
            break
    biases = _biases(net)
    trained = [bias[-1].clone() for bias in biases]

    def rate(shift: float) -> float:
        for bias, value in zip(biases, trained, strict=True):
            bias[-1] = value + shift
        exits = (net.forward_all(x, [net.full], extras=("open",))[net.full] for x in images)
        open = torch.cat([torch.stack(e.extras["open"], 1) for e in exits])
        if costs is None:
            return float(open.mean())
        weights = open.new_tensor(costs)
        return float(open.mean(0) @ weights / weights.sum())

    low, high = -MOST_SHIFT, MOST_SHIFT
    with in_eval_mode(net):
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if rate(middle) < target else (low, middle)
        rates = {shift: rate(shift) for shift in (high, low)}
        best = min(rates, key=lambda shift: abs(rates[shift] - target))
        rate(best)
    return best, rates[low], rates[high]


@contextmanager
def at_open_rate(
    net: NestedNet, batches: Iterable[Batch], target: float, costs: Sequence[float] | None = None,
    most: int = SETTLING,
) -> Iterator[None]:  # fmt: skip
    """Let the mean open rate be `target`, as by `settle_open_rate`; then the gates are as before."""
    biases = _biases(net)
    trained = [bias.detach().clone() for bias in biases]
    try:
        _settled(net, batches, target, costs, most)
        yield
    finally:
        with torch.no_grad():
            for bias, value in zip(biases, trained, strict=True):
                bias.copy_(value)


def _biases(net: NestedNet) -> list[nn.Parameter]:
    """The biases of the gates' scores; the last number of each is of "run"."""
    return [block.gate.get_parameter("scores.bias") for _, block in gated_blocks(net.module)]
