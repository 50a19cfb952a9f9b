"""Thresholds of a cascade, found on scores that are at hand."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Scores = Float[Tensor, "depths n"]
Right = Bool[Tensor, "depths n"]
#: The search ends sooner as a rule: when a round over all depths changes nothing.
ROUNDS = 20


class Outcome(NamedTuple):
    """What a cascade does: accuracy and the share answered by each depth; mean cost an example."""

    accuracy: float
    cost: float
    shares: tuple[float, ...]


class Thresholds(NamedTuple):
    """A threshold for each depth but the last, and what they do on the scores they were found on."""

    values: tuple[float, ...]
    outcome: Outcome


class Goal(NamedTuple):
    """At least this accuracy at the least cost, or at most this mean cost at the best accuracy."""

    accuracy: float | None = None
    cost: float | None = None

    def rank(self, accuracy: Tensor, cost: Tensor) -> Tensor:
        """The index of the best of many outcomes: one that meets the goal, or the nearest to it."""
        met = torch.as_tensor(self._met(accuracy, cost))
        if self.accuracy is not None:
            first, second = (cost, -accuracy) if met.any() else (-accuracy, cost)
        else:
            first, second = (-accuracy, cost) if met.any() else (cost, -accuracy)
        chosen = met.nonzero().flatten() if met.any() else torch.arange(len(cost))
        # of those that are equal in the first respect, the best in the second
        best = chosen[first[chosen] <= first[chosen].min() + 1e-12]
        return best[second[best].argmin()]

    def met(self, outcome: Outcome) -> bool:
        """Whether an outcome meets the goal."""
        return bool(self._met(outcome.accuracy, outcome.cost))

    def _met(self, accuracy: Tensor | float, cost: Tensor | float) -> Tensor | bool:
        if self.accuracy is not None:
            return accuracy >= self.accuracy - 1e-12
        return cost <= _cap(self.cost)


def _cap(cost: float | None) -> float:
    return math.inf if cost is None else cost * (1 + 1e-12)


def outcome_of(
    thresholds: Sequence[float], confidence: Scores, right: Right, costs: Sequence[float]
) -> Outcome:
    """What a cascade with these `thresholds` does.

    Args:
        thresholds: for each depth but the last, which answers the rest.
        confidence: of each depth in each example; the last row is not looked at.
        right: whether a depth's class is the label.
        costs: of an example that is answered at each depth, the depths before it included.
    """
    answered = _answered(thresholds, confidence)
    shares = [(answered == k).double().mean().item() for k in range(len(costs))]
    accuracy = right.gather(0, answered[None])[0].double().mean().item()
    return Outcome(
        accuracy, math.fsum(s * c for s, c in zip(shares, costs, strict=True)), tuple(shares)
    )


def find_thresholds(
    confidence: Scores, right: Right, costs: Sequence[float], goal: Goal
) -> Thresholds:
    """Thresholds that meet `goal` best on these scores; that may be short of it.

    For two depths the search is exact. For more, one threshold at a time is set to its best value
    while the others stay, round after round until nothing changes, from each depth answering all.

    Args:
        confidence, right, costs: as for `outcome_of`.
    """
    best: Thresholds | None = None
    last = len(costs) - 1
    for start in range(len(costs)):
        values = [math.inf] * start + [-math.inf] * (last - start)
        for _ in range(ROUNDS):
            before = list(values)
            for k in reversed(range(last)):
                values[k] = _best_value(k, values, confidence, right, costs, goal)
            if values == before:
                break
        found = Thresholds(tuple(values), outcome_of(values, confidence, right, costs))
        if best is None or better(found.outcome, best.outcome, goal):
            best = found
    assert best is not None
    return best


def better(a: Outcome, b: Outcome, goal: Goal) -> bool:
    """Whether outcome `a` serves `goal` better than `b`."""
    accuracy, cost = (torch.tensor([y, x]) for x, y in zip(a[:2], b[:2], strict=True))
    return int(goal.rank(accuracy.double(), cost.double())) == 1


def _answered(thresholds: Sequence[float], confidence: Tensor) -> Tensor:
    """The index of the depth that answers each example, (n,)."""
    answered = torch.full((confidence.shape[1],), len(thresholds))
    for k in reversed(range(len(thresholds))):
        answered[confidence[k] >= thresholds[k]] = k
    return answered


def _best_value(
    k: int,
    values: Sequence[float],
    confidence: Tensor,
    right: Tensor,
    costs: Sequence[float],
    goal: Goal,
) -> float:
    """The best threshold of depth `k`, the others given: all that its scores tell apart are tried."""
    cost_at = torch.tensor(costs, dtype=torch.float64)
    reach = _answered(values[:k], confidence) == k
    n = confidence.shape[1]
    # what happens to each example if depth k does not answer it
    later = k + 1 + _answered(values[k + 1 :], confidence[k + 1 :])
    accuracy_if = right.gather(0, torch.stack([later, torch.full_like(later, k)])).double()
    cost_if = torch.stack([cost_at[later], cost_at[k].expand(n)])
    before = _answered(values[:k], confidence)[~reach]
    fixed_right = right[:, ~reach].gather(0, before[None])[0].double().sum()
    fixed_cost = cost_at[before].sum()
    order = confidence[k, reach].argsort(descending=True, stable=True)
    scores = confidence[k, reach][order]
    accuracy = (fixed_right + _sums(accuracy_if[:, reach][:, order])) / n
    cost = (fixed_cost + _sums(cost_if[:, reach][:, order])) / n
    # depth k answers the first m; equal scores cannot be parted
    apart = torch.ones(len(scores) + 1, dtype=torch.bool)
    apart[1:-1] = scores[:-1] > scores[1:]
    allowed = apart.nonzero().flatten()
    m = int(allowed[goal.rank(accuracy[allowed], cost[allowed])])
    return math.inf if m == 0 else scores[m - 1].item()


def _sums(values: Tensor) -> Tensor:
    """Of rows "left to later depths" and "answered here": the sum when the first m are, m = 0...n."""
    later, here = values
    start = later.sum()
    return torch.cat([start[None], start + (here - later).cumsum(0)])
