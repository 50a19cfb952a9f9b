"""How often predictions are right by how sure they claim to be."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepwell.evaluation.accuracy import BINS


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
    confidence: Float[Tensor, "n"], right: Bool[Tensor, "n"], bins: int = BINS
) -> Reliability:
    """The reliability curve of predictions (Guo et al. 2017): bins are closed below, open above."""
    place = (confidence.double() * bins).long().clamp_max(bins - 1)
    held = torch.bincount(place, minlength=bins).double()
    sums = (
        torch.bincount(place, weights=values.double(), minlength=bins)
        for values in (confidence, right)
    )
    return Reliability(held, *(total / held.clamp_min(1) for total in sums))
