"""The price of cost that makes a chooser's choices right most often within a budget."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: Prices that are tried, at most: evenly spaced over those at which some image changes its choice.
TRIED = 1000


class Priced(NamedTuple):
    """A price, and the share that is right and the mean cost at it, on the images it was found on."""

    price: float
    accuracy: float
    cost: float


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
    return Priced(price, accuracy, costs[who].double().mean().item())


def best_price(
    scores: Float[Tensor, "n choices"],
    right: Bool[Tensor, "n choices"],
    costs: Float[Tensor, " choices"],
    target: float,
) -> Priced:
    """The price at which most images are right, of those whose mean cost is at most `target`.

    It may be negative, which makes costly choices more frequent. Of equals it is the one that costs
    less, then the one nearest to 0.

    Args:
        costs: of each choice; no cheaper one than the target is an error of the caller.
    """
    scores, costs = scores.double(), costs.double()
    apart = costs[:, None] - costs
    turning = ((scores[:, :, None] - scores[:, None]) / apart)[:, apart > 0]
    edges = turning.flatten().unique()
    if len(edges) > TRIED:
        edges = edges[torch.linspace(0, len(edges) - 1, TRIED).long()]
    between = (edges[1:] + edges[:-1]) / 2
    prices = [0.0, float(edges[0]) - 1, *between.tolist(), float(edges[-1]) + 1]
    outcomes = [outcome_at(price, scores, right, costs) for price in prices]
    fitting = [o for o in outcomes if o.cost <= target * (1 + 1e-9)]
    return max(fitting, key=lambda o: (o.accuracy, -o.cost, -abs(o.price)))
