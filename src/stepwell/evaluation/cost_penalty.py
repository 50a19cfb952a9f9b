"""The price of cost that makes a chooser's choices right most often within a budget."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: Prices that are tried, at most: evenly spaced over those at which some image changes its choice.
TRIED = 1000
#: Costs that differ by this share are the same: they are kept in 32 bits.
WITHIN = 1e-6


class Priced(NamedTuple):
    """A price, and what comes out at it on the images it was found on.

    accuracy: the share that is right; cost: the mean; shares: of the images, by choice.
    """

    price: float
    accuracy: float
    cost: float
    shares: tuple[float, ...]


def outcome_at(
    price: float,
    scores: Float[Tensor, "n choices"],
    right: Bool[Tensor, "n choices"],
    costs: Float[Tensor, " choices"],
) -> Priced:
    """What comes out where each image makes the choice of the highest score - price · cost.

    Args:
        right: whether an image's class would be right at each choice.
    """
    who = (scores - price * costs).argmax(1)
    accuracy = right.gather(1, who[:, None]).double().mean().item()
    shares = torch.bincount(who, minlength=len(costs)).double() / len(who)
    return Priced(price, accuracy, costs[who].double().mean().item(), tuple(shares.tolist()))


def outcomes(
    scores: Float[Tensor, "n choices"],
    right: Bool[Tensor, "n choices"],
    costs: Float[Tensor, " choices"],
) -> list[Priced]:
    """What comes out at no price, and at every other that makes a difference (at most `TRIED`).

    A price may be negative, which makes costly choices more frequent.

    Args:
        right: whether an image's class would be right at each choice.
    """
    scores, costs = scores.double(), costs.double()
    apart = costs[:, None] - costs
    turning = ((scores[:, :, None] - scores[:, None]) / apart)[:, apart > 0]
    edges = turning.flatten().unique()
    if len(edges) > TRIED:
        edges = edges[torch.linspace(0, len(edges) - 1, TRIED).long()]
    between = (edges[1:] + edges[:-1]) / 2
    prices = [0.0, float(edges[0]) - 1, *between.tolist(), float(edges[-1]) + 1]
    return [outcome_at(price, scores, right, costs) for price in prices]


def best_within(found: Sequence[Priced], target: float, images: int) -> Priced:
    """The outcome to take, of those whose mean cost is at most `target`.

    Which of many prices is most accurate on some images is chance in good part. So of those within a
    standard error of the best it is the one nearest to 0, which trusts the scores most, and of equals
    the cheapest.

    Args:
        target: no less than the cheapest choice's cost; less is an error of the caller.
        images: how many the accuracies are of.
    """
    fitting = [o for o in found if o.cost <= target * (1 + WITHIN)]
    best = max(o.accuracy for o in fitting)
    error = (best * (1 - best) / images) ** 0.5
    near = [o for o in fitting if o.accuracy >= best - error]
    return min(near, key=lambda o: (abs(o.price), o.cost))


def front(found: Sequence[Priced], most: int) -> list[Priced]:
    """The outcomes that none beats at equal cost or less, cheap to dear; of many, `most` evenly."""
    kept: list[Priced] = []
    for outcome in sorted(found, key=lambda o: (o.cost, -o.accuracy, abs(o.price))):
        if not kept or outcome.accuracy > kept[-1].accuracy:
            kept.append(outcome)
    if len(kept) <= most:
        return kept
    return [kept[round(i)] for i in torch.linspace(0, len(kept) - 1, most).tolist()]
