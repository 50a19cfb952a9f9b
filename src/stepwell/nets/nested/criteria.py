"""Criteria of a cascade: how sure a depth is of an image, by its logits and the depths before it.

A depth answers the images whose score reaches its threshold.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepwell.ranges import SHARE, Range
from stepwell.types import Logits

Scores = Float[Tensor, " batch"]
#: Number of earlier depths in a row that give the class of this one.
Agreed = Int[Tensor, " batch"]
#: Bias and one weight a feature of a learned criterion.
Weights = Sequence[float]


def top_probability(logits: Logits) -> Scores:
    """The largest softmax probability of each row."""
    return logits.softmax(1).amax(1)


def certainty(logits: Logits) -> Scores:
    """One minus the entropy as a share of its largest value, log(classes).

    "Leave if the entropy is below T" (BranchyNet, Teerapittayanon et al. 2016) is "leave if the
    certainty is above 1 - T / log(classes)".
    """
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
    return 1 - entropy / math.log(max(2, logits.shape[1]))


#: Weights of a learned criterion: a bias, and one of each feature.
LEARNED = 5


def features_of(logits: Logits, agreed: Agreed) -> Float[Tensor, "batch 4"]:
    """The features of a learned criterion.

    They are the top probability, its lead over the second, the certainty, and 1 if the depth before
    gives the same class.
    """
    first, second = logits.softmax(1).topk(2).values.unbind(1)
    same = (agreed > 0).to(logits.dtype)
    return torch.stack([first, first - second, certainty(logits), same], 1)


def _learned(logits: Tensor, agreed: Tensor, weights: Weights) -> Tensor:
    bias, *slopes = weights
    return (features_of(logits, agreed) @ logits.new_tensor(slopes) + bias).sigmoid()


class Criterion(NamedTuple):
    """A criterion by name.

    score: of logits at the depth's temperature, from the agreement of earlier depths and weights.
    within: range of its thresholds.
    """

    score: Callable[[Logits, Agreed, Weights], Scores]
    within: Range


#: patience: after PABEE (Zhou et al. 2020), which counts depths that agree. learned: the probability
#: that the depth is right, by logistic regression on `features_of`.
CRITERIA: Mapping[str, Criterion] = {
    "confidence": Criterion(lambda logits, agreed, weights: top_probability(logits), SHARE),
    "entropy": Criterion(lambda logits, agreed, weights: certainty(logits), SHARE),
    "patience": Criterion(
        lambda logits, agreed, weights: agreed.to(logits.dtype),
        Range(
            "a whole number of earlier depths that agree, 1 or more", lambda v: v >= 1 and v == int(v)
        ),
    ),
    "learned": Criterion(_learned, SHARE),
}


def criterion_of(name: str) -> Criterion:
    """A criterion by name; ValueError if there is none."""
    if name not in CRITERIA:
        raise ValueError(f"no criterion {name!r} of a cascade; there are {', '.join(CRITERIA)}")
    return CRITERIA[name]


def agreement(classes: Int[Tensor, " batch"], before: Int[Tensor, " batch"], agreed: Agreed) -> Agreed:
    """Count the depths in a row that give these classes, from the classes and the count `before`."""
    return (agreed + 1) * (classes == before)
