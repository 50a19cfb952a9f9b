"""Search for the cost penalty (in code: `price`) that is most accurate within a budget of cost."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Scores = Float[Tensor, "n choices"]
Right = Bool[Tensor, "n choices"]
#: Most penalties to try, evenly spaced over those at which some image changes its choice.
TRIED = 1000
#: Relative tolerance of costs, which are stored in 32 bits.
WITHIN = 1e-6


class Priced(NamedTuple):
    """A cost penalty, and its outcome on the images of the search.

    accuracy: share of images classified correctly; cost: mean cost; shares: of the images, by choice.
    """

    price: float
    accuracy: float
    cost: float
    shares: tuple[float, ...]


def outcome_at(price: float, scores: Scores, right: Right, costs: Float[Tensor, " choices"]) -> Priced:
    """The outcome if each image takes the choice of the highest score - price · cost.

    `right` is true where the network classifies an image correctly at a choice.
    """
    choice = (scores - price * costs).argmax(1)
    accuracy = right.gather(1, choice[:, None]).double().mean().item()
    shares = torch.bincount(choice, minlength=len(costs)).double() / len(choice)
    return Priced(price, accuracy, costs[choice].double().mean().item(), tuple(shares.tolist()))


def outcomes(scores: Scores, right: Right, costs: Float[Tensor, " choices"]) -> list[Priced]:
    """The outcomes at penalty 0 and at every other penalty that changes a choice (at most `TRIED`).

    A negative penalty favours costly choices. Arguments as for `outcome_at`.
    """
    scores, costs = scores.double(), costs.double()
    apart = costs[:, None] - costs
    edges = ((scores[:, :, None] - scores[:, None]) / apart)[:, apart > 0].flatten().unique()
    if len(edges) > TRIED:
        edges = edges[torch.linspace(0, len(edges) - 1, TRIED).long()]
    middles = (edges[1:] + edges[:-1]) / 2
    prices = [0.0, float(edges[0]) - 1, *middles.tolist(), float(edges[-1]) + 1]
    return [outcome_at(price, scores, right, costs) for price in prices]


def best_within(candidates: Sequence[Priced], target: float, images: int) -> Priced:
    """The outcome to use, among outcomes on `images` of mean cost at most `target`.

    The highest accuracy of many penalties is partly chance. So of the penalties within a standard error
    of it, this takes the one nearest to 0, which changes the scores least; of equals, the cheapest.
    `target` is at least the cheapest choice's cost.
    """
    fitting = [o for o in candidates if o.cost <= target * (1 + WITHIN)]
    best = max(o.accuracy for o in fitting)
    error = (best * (1 - best) / images) ** 0.5
    near = [o for o in fitting if o.accuracy >= best - error]
    return min(near, key=lambda o: (abs(o.price), o.cost))


def front(candidates: Sequence[Priced], most: int) -> list[Priced]:
    """The Pareto front of accuracy and cost, by rising cost; at most `most` outcomes, evenly spaced."""
    best: list[Priced] = []
    for outcome in sorted(candidates, key=lambda o: (o.cost, -o.accuracy, abs(o.price))):
        if not best or outcome.accuracy > best[-1].accuracy:
            best.append(outcome)
    if len(best) <= most:
        return best
    return [best[round(i)] for i in torch.linspace(0, len(best) - 1, most).tolist()]
