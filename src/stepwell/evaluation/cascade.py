"""Search for a cascade's thresholds on given scores."""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Scores = Float[Tensor, "depths n"]
Right = Bool[Tensor, "depths n"]
#: Most rounds over all depths; the search ends earlier once a round changes nothing.
ROUNDS = 20
#: Ratios of geometric series of target shares: below 1, more examples leave early.
SERIES = tuple(i / 20 for i in range(1, 40))


class Outcome(NamedTuple):
    """Accuracy of a cascade, mean cost per example, and the share answered by each depth."""

    accuracy: float
    cost: float
    shares: tuple[float, ...]


class Thresholds(NamedTuple):
    """A threshold for each depth but the last, and their outcome on the scores of the search."""

    values: tuple[float, ...]
    outcome: Outcome


class Goal(NamedTuple):
    """The least cost at this accuracy or more, or the best accuracy at this mean cost or less."""

    accuracy: float | None = None
    cost: float | None = None

    def best(
        self, accuracy: Float[Tensor, " outcomes"], cost: Float[Tensor, " outcomes"]
    ) -> Int[Tensor, ""]:
        """The index of the best outcome that meets the goal, or of the nearest to the goal."""
        met = torch.as_tensor(self._met(accuracy, cost))
        if self.accuracy is not None:
            first, second = (cost, -accuracy) if met.any() else (-accuracy, cost)
        else:
            first, second = (-accuracy, cost) if met.any() else (cost, -accuracy)
        chosen = met.nonzero().flatten() if met.any() else torch.arange(len(cost))
        # outcomes equal in `first` are ranked by `second`
        equal = chosen[first[chosen] <= first[chosen].min() + 1e-12]
        return equal[second[equal].argmin()]

    def met(self, outcome: Outcome) -> bool:
        """True if an outcome meets the goal."""
        return bool(self._met(outcome.accuracy, outcome.cost))

    def _met(self, accuracy: Tensor | float, cost: Tensor | float) -> Tensor | bool:
        if self.accuracy is not None:
            return accuracy >= self.accuracy - 1e-12
        return cost <= (math.inf if self.cost is None else self.cost * (1 + 1e-12))


def outcome_of(
    thresholds: Sequence[float], confidence: Scores, right: Right, costs: Sequence[float]
) -> Outcome:
    """The outcome of a cascade with these `thresholds`.

    Args:
        thresholds: for each depth but the last, which answers the rest.
        confidence: of each depth in each example; the last row is unused.
        right: true where a depth's class is the label.
        costs: cost of an example answered at each depth, including the depths before it.
    """
    answered = _answered(thresholds, confidence)
    shares = [(answered == k).double().mean().item() for k in range(len(costs))]
    accuracy = right.gather(0, answered[None])[0].double().mean().item()
    return Outcome(
        accuracy, math.fsum(s * c for s, c in zip(shares, costs, strict=True)), tuple(shares)
    )


def find_thresholds(confidence: Scores, right: Right, costs: Sequence[float], goal: Goal) -> Thresholds:
    """The thresholds nearest to `goal` on these scores; they may miss it.

    For two depths the search is exact. For more, it sets one threshold at a time to its best value, in
    rounds until nothing changes; it starts once from each depth answering all examples.

    Args:
        confidence, right, costs: as for `outcome_of`.
    """
    candidates: list[tuple[float, ...]] = []
    last = len(costs) - 1
    for start in range(len(costs)):
        values = [math.inf] * start + [-math.inf] * (last - start)
        for _ in range(ROUNDS):
            before = list(values)
            for k in reversed(range(last)):
                values[k] = _best_value(k, values, confidence, right, costs, goal)
            if values == before:
                break
        candidates.append(tuple(values))
    return _best(candidates, confidence, right, costs, goal)


def geometric_thresholds(confidence: Scores, q: float) -> tuple[float, ...]:
    """Thresholds that let each depth answer its target share of a geometric series (MSDNet).

    Depth k of K is to answer q^k / (q^1 + ... + q^K) of the examples: the most confident ones of those
    still unanswered. Examples that tie at a threshold are answered, too. inf where a share is no whole
    example, or too few examples remain.
    """
    n = confidence.shape[1]
    shares = q ** torch.arange(1, len(confidence) + 1, dtype=torch.float64)
    counts = (n * shares / shares.sum()).floor().long().tolist()
    remaining = torch.ones(n, dtype=torch.bool)
    values = []
    for scores, count in zip(confidence[:-1], counts, strict=False):
        ranked = scores[remaining].sort(descending=True).values.tolist()
        if 0 < count <= len(ranked):
            # between two scores, where rounding on another machine changes no answer
            values.append(fmean(ranked[count - 1 : count + 1]))
        else:
            values.append(math.inf)
        remaining &= ~(scores >= values[-1])
    return tuple(values)


def find_geometric(confidence: Scores, right: Right, costs: Sequence[float], goal: Goal) -> Thresholds:
    """The geometric thresholds nearest to `goal`, of the series in `SERIES`; args as `find_thresholds`.

    It is the search of "budgeted batch classification" (Huang et al. 2018, arXiv 1703.09844).
    """
    return _best((geometric_thresholds(confidence, q) for q in SERIES), confidence, right, costs, goal)


def find_patience(agreed: Scores, right: Right, costs: Sequence[float], goal: Goal) -> Thresholds:
    """The patience nearest to `goal`, one for all depths; `agreed` counts earlier depths that agree.

    inf, for the last depth alone, where no patience is better.
    """
    last = len(costs) - 1  # depth k has k earlier ones
    tried = [*map(float, range(1, last)), math.inf]
    return _best(((n,) * last for n in tried), agreed, right, costs, goal)


def _best(
    tried: Iterable[tuple[float, ...]], scores: Tensor, right: Tensor, costs: Sequence[float],
    goal: Goal,
) -> Thresholds:  # fmt: skip
    candidates = [Thresholds(values, outcome_of(values, scores, right, costs)) for values in tried]
    return reduce(lambda a, b: b if better(b.outcome, a.outcome, goal) else a, candidates)


def better(a: Outcome, b: Outcome, goal: Goal) -> bool:
    """True if outcome `a` is better for `goal` than `b`."""
    accuracy, cost = (torch.tensor([y, x]) for x, y in zip(a[:2], b[:2], strict=True))
    return int(goal.best(accuracy.double(), cost.double())) == 1


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
    """The best threshold of depth `k` for given other thresholds; tries every distinct score."""
    cost_at = torch.tensor(costs, dtype=torch.float64)
    reach = _answered(values[:k], confidence) == k
    n = confidence.shape[1]
    # the depth that answers each example if depth k does not
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
    # depth k answers the first m; examples of equal score stay together
    apart = torch.ones(len(scores) + 1, dtype=torch.bool)
    apart[1:-1] = scores[:-1] > scores[1:]
    allowed = apart.nonzero().flatten()
    m = int(allowed[goal.best(accuracy[allowed], cost[allowed])])
    # between two scores, where rounding on another machine changes no answer
    return fmean(scores[m - 1 : m + 1].tolist()) if m else math.inf


def _sums(values: Tensor) -> Tensor:
    """Sums over all examples if the first m are answered here, for m = 0...n."""
    later, here = values  # (n,) each: left to later depths, and answered here
    start = later.sum()
    return torch.cat([start[None], start + (here - later).cumsum(0)])
