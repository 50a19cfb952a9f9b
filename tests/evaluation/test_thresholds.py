"""Thresholds found on scores: exact for two depths, never worse than a depth alone for more."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.evaluation.cascade import Goal, find_thresholds, outcome_of

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
        met = [o for o in every if o[0] >= goal.accuracy - 1e-9]
        return min(met, key=lambda o: (o[1], -o[0])) if met else None
    met = [o for o in every if o[1] <= goal.cost + 1e-9]
    return max(met, key=lambda o: (o[0], -o[1])) if met else None


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
