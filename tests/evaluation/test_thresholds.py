"""Thresholds found on scores: exact for two depths, never worse than a depth alone for more."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.evaluation.calibration import best_temperature
from stepwell.evaluation.cascade import (
    Goal,
    find_geometric,
    find_patience,
    find_thresholds,
    geometric_thresholds,
    outcome_of,
)
from stepwell.evaluation.logistic import logistic_fit

COSTS = [1.0, 1.75, 3.0]


def scores(depths, n, seed, levels=6):
    """Confidence of few levels, so that there are ties, and answers that are righter when sure."""
    g = torch.Generator().manual_seed(seed)
    confidence = torch.randint(levels, (depths, n), generator=g) / levels
    right = torch.rand(depths, n, generator=g) < 0.3 + 0.6 * confidence
    return confidence, right


def naive(thresholds, confidence, right, costs):
    """One example after the other."""
    hits, cost, n = 0, 0.0, confidence.shape[1]
    answered = [0] * len(costs)
    for i in range(n):
        k = 0
        while k < len(thresholds) and not confidence[k, i] >= thresholds[k]:
            k += 1
        hits, cost = hits + int(right[k, i]), cost + costs[k]
        answered[k] += 1
    return hits / n, cost / n, tuple(a / n for a in answered)


@given(st.integers(0, 9999), st.tuples(st.floats(0, 1.1), st.floats(0, 1.1)))
def test_the_outcome_is_what_counting_gives(seed, thresholds):
    found = outcome_of(thresholds, *scores(3, 17, seed), COSTS)
    accuracy, cost, shares = naive(thresholds, *scores(3, 17, seed), COSTS)
    assert (found.accuracy, found.cost) == pytest.approx((accuracy, cost))
    assert found.shares == pytest.approx(shares)


goals = st.one_of(
    st.builds(lambda a: Goal(accuracy=a), st.floats(0, 1)),
    st.builds(lambda c: Goal(cost=c), st.floats(0.5, 3.5)),
)


def best_of_all(confidence, right, costs, goal):
    """Every threshold tried in every combination: accuracy and cost of the best."""
    levels = [[*row.unique().tolist(), math.inf] for row in confidence[:-1]]
    every = [naive(t, confidence, right, costs)[:2] for t in product(*levels)]
    if goal.accuracy is not None:
        met = [o for o in every if o[0] >= goal.accuracy - 1e-12]
        return min(met, key=lambda o: (o[1], -o[0])) if met else None
    met = [o for o in every if o[1] <= goal.cost * (1 + 1e-12)]
    return max(met, key=lambda o: (o[0], -o[1])) if met else None


def test_a_threshold_stands_between_two_scores():
    confidence, right = scores(2, 50, 0)
    found = find_thresholds(confidence, right, COSTS[::2], Goal(cost=(COSTS[0] + COSTS[2]) / 2))
    (value,) = found.values
    above, below = confidence[0] >= value, confidence[0] < value
    assert above.any()
    assert below.any()
    assert confidence[0][above].min() > value > confidence[0][below].max()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 20), goals)
def test_two_depths_get_the_best_threshold_there_is(seed, n, goal):
    confidence, right = scores(2, n, seed)
    found = find_thresholds(confidence, right, COSTS[::2], goal)
    best = best_of_all(confidence, right, COSTS[::2], goal)
    assert goal.met(found.outcome) == (best is not None)
    if best is not None:
        assert found.outcome[:2] == pytest.approx(best)
    assert found.outcome == outcome_of(found.values, confidence, right, COSTS[::2])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), goals)
def test_three_depths_are_at_least_as_good_as_any_alone(seed, goal):
    confidence, right = scores(3, 40, seed)
    found = find_thresholds(confidence, right, COSTS, goal).outcome
    for k in range(3):
        alone = outcome_of([math.inf] * k + [-math.inf] * (2 - k), confidence, right, COSTS)
        if goal.met(alone):
            assert goal.met(found)
            if goal.accuracy is not None:
                assert found.cost <= alone.cost + 1e-9
            else:
                assert found.accuracy >= alone.accuracy - 1e-9


def test_three_depths_come_near_the_best_there_is():
    gaps = []
    for seed in range(12):
        confidence, right = scores(3, 30, seed, levels=4)
        goal = Goal(accuracy=right[2].double().mean().item())
        best = best_of_all(confidence, right, COSTS, goal)
        gaps.append(find_thresholds(confidence, right, COSTS, goal).outcome.cost / best[1] - 1)
    assert min(gaps) >= -1e-9
    assert sum(gaps) / len(gaps) < 0.05


def naive_geometric(confidence, q):
    """One depth after the other, example by example."""
    depths, n = confidence.shape
    total = sum(q**k for k in range(1, depths + 1))
    gone, values = set(), []
    for k in range(depths - 1):
        wanted, seen, value = int(n * q ** (k + 1) / total), 0, math.inf
        for i in sorted(range(n), key=lambda i: -float(confidence[k, i])):
            if i not in gone:
                seen += 1
                if seen == wanted:
                    value = float(confidence[k, i])
                    break
        values.append(value)
        gone |= {i for i in range(n) if confidence[k, i] >= value}
    return tuple(values)


@given(st.integers(0, 9999), st.sampled_from([0.05, 0.5, 0.95, 1.4, 1.95]))
def test_geometric_thresholds_are_those_of_a_walk_down_the_examples(seed, q):
    confidence, _ = scores(4, 40, seed, levels=25)
    found, naive = geometric_thresholds(confidence, q), naive_geometric(confidence, q)
    gone = [torch.zeros(40, dtype=torch.bool)] * 2
    for row, *values in zip(confidence, found, naive, strict=False):
        gone = [before | (row >= value) for before, value in zip(gone, values, strict=True)]
        assert gone[0].equal(gone[1])
        assert values[0] <= values[1] + 1e-6


def test_geometric_shares_are_as_planned_without_ties():
    confidence = torch.rand(3, 700, generator=torch.Generator().manual_seed(0))
    values = geometric_thresholds(confidence, 0.5)
    shares = outcome_of(values, confidence, torch.ones(3, 700, dtype=torch.bool), COSTS).shares
    assert shares == pytest.approx((4 / 7, 2 / 7, 1 / 7), abs=2 / 700)
    goal = Goal(cost=1.5)
    confidence, right = scores(3, 700, 1, levels=100)
    found = find_geometric(confidence, right, COSTS, goal).outcome
    assert found.cost <= 1.5
    assert found.accuracy <= find_thresholds(confidence, right, COSTS, goal).outcome.accuracy


def test_patience_is_one_number_for_all_depths():
    agreed = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0], [2, 1, 0, 0]]).double()
    right = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    cheap = find_patience(agreed, right, COSTS, Goal(accuracy=0.7))
    assert (cheap.values, cheap.outcome.shares) == ((1.0, 1.0), (0.0, 0.5, 0.5))
    # no depth before the last one has two earlier ones, so this is the last one alone
    assert find_patience(agreed, right, COSTS, Goal(accuracy=1.0)).values == (math.inf, math.inf)


def test_the_best_temperature_undoes_a_scaling():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=g).double()
    labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    assert best_temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)
    tried = [best_temperature(logits, labels) * f for f in (0.95, 1.0, 1.05)]
    losses = [torch.nn.functional.cross_entropy(logits / t, labels) for t in tried]
    assert losses[1] == min(losses)
    assert best_temperature(logits, logits.argmax(1)) == pytest.approx(0.01)  # all right


def test_a_logistic_fit_gives_the_share_of_right_answers():
    x = torch.tensor([[0.0], [1.0]]).repeat_interleave(300, 0)
    right = (torch.arange(600) % 300) < torch.where(x[:, 0] > 0, 240, 90)
    bias, weight = logistic_fit(x, right)
    assert 1 / (1 + math.exp(-bias)) == pytest.approx(0.3, abs=0.01)
    assert 1 / (1 + math.exp(-bias - weight)) == pytest.approx(0.8, abs=0.01)
    assert logistic_fit(x, right | True) == [math.log(601), 0.0]
