"""How often predictions are right by how sure they claim to be."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepwell.evaluation.accuracy import BINS
from stepwell.evaluation.intervals import LEVEL, RESAMPLES, Interval, ends, resampled


class Reliability(NamedTuple):
    """Examples by confidence, in bins of equal width; all (bins,).

    examples: how many there are in a bin.
    confidence, accuracy: their means; 0 in an empty bin.
    """

    examples: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error: |accuracy - confidence|, weighted by examples."""
        gaps = (self.accuracy - self.confidence).abs()
        return ((self.examples * gaps).sum() / self.examples.sum()).item()


def reliability(
    confidence: Float[Tensor, " n"], right: Bool[Tensor, " n"], bins: int = BINS
) -> Reliability:
    """The reliability curve of predictions (Guo et al. 2017): bins are closed below, open above."""
    place = _place(confidence, bins)
    held = torch.bincount(place, minlength=bins).double()
    sums = (
        torch.bincount(place, weights=values.double(), minlength=bins)
        for values in (confidence, right)
    )
    return Reliability(held, *(total / held.clamp_min(1) for total in sums))


def calibration_error(
    confidence: Float[Tensor, " n"],
    right: Bool[Tensor, " n"],
    bins: int = BINS,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The expected calibration error, with a basic bootstrap interval over the examples.

    Chance moves the bins of a perfect network apart, too, so the error of few examples is too large,
    and that of a resample larger still. The basic interval (Davison & Hinkley 1997, section 5.2), which
    mirrors the resamples in the estimate, takes this off; the percentile interval would add it again,
    and lie above the truth. It is approximate: of a network that is calibrated perfectly the truth, 0,
    is at the very end of what an error can be, and such an interval easily misses it.

    Raises:
        ValueError: no examples; `level` or `resamples` is out of range.
    """
    gaps = torch.zeros(len(right), bins, dtype=torch.float64)
    gaps[torch.arange(len(right)), _place(confidence, bins)] = right.double() - confidence.double()
    drawn = resampled(gaps, resamples=resamples, seed=seed).abs().sum(1)
    value = gaps.mean(0).abs().sum().item()
    low, high = drawn.quantile(ends(level)).tolist()
    return Interval(value, min(value, max(0.0, 2 * value - high)), max(value, 2 * value - low))


def _place(confidence: Tensor, bins: int) -> Tensor:
    """The bin of every example."""
    return (confidence.double() * bins).long().clamp_max(bins - 1)
