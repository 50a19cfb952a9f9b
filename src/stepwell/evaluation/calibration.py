"""Calibration: how often predictions of a confidence are right."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepwell.evaluation.intervals import LEVEL, RESAMPLES, Interval, ends, resampled

#: Bins of the expected calibration error.
BINS = 15
#: Largest temperature (and one over the smallest), and number of bisections for the best one.
COLDEST, HALVED = 100.0, 60


class Reliability(NamedTuple):
    """Examples by confidence, in bins of equal width.

    examples: number of examples in each bin.
    confidence, accuracy: means of each bin; 0 in an empty bin.
    """

    examples: Float[Tensor, " bins"]
    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]

    @property
    def ece(self) -> float:
        """Expected calibration error: |accuracy - confidence|, weighted by examples."""
        gaps = (self.accuracy - self.confidence).abs()
        return ((self.examples * gaps).sum() / self.examples.sum()).item()


def reliability(
    confidence: Float[Tensor, " n"], right: Bool[Tensor, " n"], bins: int = BINS
) -> Reliability:
    """The reliability curve of predictions (Guo et al. 2017): bins are closed below, open above."""
    place = bins_of(confidence, bins)
    examples = torch.bincount(place, minlength=bins).double()
    weights = (confidence.double(), right.double())
    sums = (torch.bincount(place, weights=values, minlength=bins) for values in weights)
    return Reliability(examples, *(total / examples.clamp_min(1) for total in sums))


def calibration_error(
    confidence: Float[Tensor, " n"], right: Bool[Tensor, " n"], bins: int = BINS, *,
    level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0,
) -> Interval:  # fmt: skip
    """The expected calibration error, with a basic bootstrap interval over the examples.

    Chance alone makes the error of few examples too large, and that of a resample larger still. The
    basic interval (Davison & Hinkley 1997, section 5.2) mirrors the resamples at the estimate, which
    subtracts this bias. It is approximate, and easily misses an error of 0, an end of the range.

    Raises:
        ValueError: no examples; `level` or `resamples` is out of range.
    """
    gaps = torch.zeros(len(right), bins, dtype=torch.float64)
    gaps[torch.arange(len(right)), bins_of(confidence, bins)] = right.double() - confidence.double()
    drawn = resampled(gaps, resamples=resamples, seed=seed).abs().sum(1)
    value = gaps.mean(0).abs().sum().item()
    low, high = drawn.quantile(ends(level)).tolist()
    return Interval(value, min(value, max(0.0, 2 * value - high)), max(value, 2 * value - low))


def best_temperature(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """The temperature that minimises the cross entropy of softmax(logits / T) (Guo et al. 2017).

    The loss is convex in 1/T, so it bisects its derivative; the result lies in [1/COLDEST, COLDEST].
    """
    logits = logits.double()
    margins = logits - logits.gather(1, labels[:, None])  # so that tiny slopes do not round to 0
    low, high = 1 / COLDEST, COLDEST  # of 1/T
    for _ in range(HALVED):
        middle = (low * high) ** 0.5
        slope = ((middle * margins).softmax(1) * margins).sum(1).mean()
        low, high = (middle, high) if slope <= 0 else (low, middle)
    return (low * high) ** -0.5


def bins_of(confidence: Float[Tensor, "*n"], bins: int) -> Int[Tensor, "*n"]:
    """The index of every confidence's bin; 1 falls into the last."""
    return (confidence.double() * bins).long().clamp_max(bins - 1)
