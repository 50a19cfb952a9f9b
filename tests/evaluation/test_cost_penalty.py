"""The cost penalty, against every penalty that makes a difference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.evaluation.cost_penalty import best_within, front, outcome_at, outcomes

COSTS = torch.tensor([1.0, 0.5, 0.25])


def test_an_outcome_worked_by_hand():
    scores = torch.tensor([[3.0, 2.0, 0.0], [3.0, 2.9, 2.8], [0.0, 0.0, 1.0]])
    right = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    free, dear = (outcome_at(price, scores, right, COSTS) for price in (0.0, 1.0))
    assert free[1:3] == (1.0, 0.75)  # the first, the first, the third
    assert free.shares == (2 / 3, 0.0, 1 / 3)
    assert dear.accuracy == pytest.approx(2 / 3)  # the second image takes the third choice now
    assert dear.cost == pytest.approx((1 + 0.25 + 0.25) / 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), target=st.sampled_from([0.25, 0.4, 0.6, 1.0]))
def test_the_price_is_as_small_as_the_target_and_accuracy_allow(seed, target):
    """Of all prices none is better beyond a standard error, nor as good and nearer to 0.

    Those on a grid are among them, which is not so fine that it meets every best one itself.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(12, 3, generator=generator)
    right = torch.rand(12, 3, generator=generator) < 0.6
    tried = outcomes(scores, right, COSTS)
    found = best_within(tried, target, 12)
    assert found == outcome_at(found.price, scores.double(), right, COSTS.double())
    assert found.cost <= target + 1e-9
    grid = torch.linspace(-60, 60, 1201).double()[:, None, None]
    choice = (scores.double() - grid * COSTS.double()).argmax(2)  # (prices, images)
    accuracy = right[torch.arange(12), choice].double().mean(1)
    fitting = accuracy[COSTS.double()[choice].mean(1) <= target].tolist()
    best = max([*fitting, *(o.accuracy for o in tried if o.cost <= target)])
    enough = best - (best * (1 - best) / 12) ** 0.5
    assert found.accuracy >= enough - 1e-9
    nearer = [o for o in tried if o.cost <= target and abs(o.price) < abs(found.price)]
    assert all(o.accuracy < enough for o in nearer)


def test_a_negative_price_spends_what_a_target_leaves():
    """Scores that prefer the cheapest choice by little, where the costliest is right."""
    scores, right = torch.tensor([[0.0, 0.1, 0.2]] * 4), torch.tensor([[True, False, False]] * 4)
    found = outcomes(scores, right, COSTS)
    best = best_within(found, 1.0, 4)
    assert best.price < 0
    assert (best.accuracy, best.cost) == (1.0, 1.0)
    assert best_within(found, 0.9, 4).cost == 0.25


def test_a_target_of_the_cheapest_choice_is_reached_in_32_bits():
    costs = torch.tensor([3.0, 2.0, 1.0]) / 3
    found = outcomes(torch.randn(50, 3), torch.rand(50, 3) < 0.5, costs)
    assert best_within(found, 1 / 3, 50).cost == pytest.approx(1 / 3)


def test_choices_of_equal_cost_and_many_images():
    costs = torch.tensor([1.0, 0.5, 0.5])
    scores, right = torch.randn(2000, 3), torch.rand(2000, 3) < 0.5
    found = outcomes(scores, right, costs)
    assert len(found) <= 1003
    best = best_within(found, 0.6, 2000)
    who = (scores.double() - best.price * costs).argmax(1)
    assert costs[who].mean().item() == pytest.approx(best.cost)
    assert 0.59 < best.cost <= 0.6  # without a price it is two thirds


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_front_rises_and_has_the_best_of_every_budget(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(20, 3, generator=generator)
    right = torch.rand(20, 3, generator=generator) < 0.6
    found = outcomes(scores, right, COSTS)
    kept = front(found, 1000)
    costs, accuracies = [o.cost for o in kept], [o.accuracy for o in kept]
    assert costs == sorted(set(costs))
    assert accuracies == sorted(set(accuracies))
    for target in costs:
        assert max(o.accuracy for o in kept if o.cost <= target) == max(
            o.accuracy for o in found if o.cost <= target
        )
    few = front(found, 2)
    assert len(few) <= 2
    assert few[0] == kept[0]
    assert few[-1] == kept[-1] or len(kept) == 1
