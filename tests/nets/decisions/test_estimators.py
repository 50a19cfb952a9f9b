"""Estimators of choices: their values, and their gradients against naive formulas."""

import pytest
import torch
from torch.nn.functional import gumbel_softmax
from torch.testing import assert_close

from stepwell.losses import open_rate_loss, reinforce_loss
from stepwell.nets.decisions.estimators import ESTIMATORS, Draw

SCORES = torch.tensor([[0.2, 1.5, -0.3], [2.0, 0.1, 0.4]])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_choices_are_one_hot_rows(name):
    torch.manual_seed(0)
    choices = Draw(name)(SCORES.repeat(50, 1))
    assert_close(choices.sum(1), torch.ones(100))
    assert_close(choices.amax(1), torch.ones(100))
    if name in ("threshold", "straight-through"):
        assert choices.argmax(1).tolist() == [1, 0] * 50
    if name == "always":
        assert choices.argmax(1).tolist() == [2] * 100
    if name in ("gumbel", "reinforce"):
        shares = Draw(name)(SCORES[:1].repeat(20000, 1)).mean(0)
        assert_close(shares, SCORES[0].softmax(0), rtol=0, atol=0.02)


def test_straight_through_has_the_gradient_of_the_softmax():
    weights = torch.randn(2, 3)
    grads = []
    for choose in (Draw("straight-through", 0.7), lambda s: (s / 0.7).softmax(1)):
        scores = SCORES.clone().requires_grad_()
        (choose(scores) * weights).sum().backward()
        grads.append(scores.grad)
    assert_close(*grads)


def test_gumbel_is_torchs_own_bit_by_bit():
    grads = []
    for choose in (Draw("gumbel", 0.5), lambda s: gumbel_softmax(s, 0.5, hard=True)):
        torch.manual_seed(3)
        scores = SCORES.clone().requires_grad_()
        choices = choose(scores)
        (choices * torch.arange(3)).sum().backward()
        grads += [choices.detach(), scores.grad]
    assert torch.equal(grads[0], grads[2])
    assert torch.equal(grads[1], grads[3])


def test_reinforce_is_unbiased_summed_over_all_draws():
    """Two images, three choices: the mean over all nine draws is the gradient of the mean reward."""
    reward = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.9, 4.0]], dtype=torch.float64)
    scores = SCORES.double().requires_grad_()
    expected = torch.autograd.grad(-(scores.softmax(1) * reward).sum() / 2, scores)[0]
    found = torch.zeros_like(expected)
    probability = scores.detach().softmax(1)
    for a in range(3):
        for b in range(3):
            drawn = torch.tensor([[a], [b]])
            log_p = scores.log_softmax(1).gather(1, drawn)[:, 0]
            loss = reinforce_loss(log_p, reward.gather(1, drawn)[:, 0])
            weight = probability[0, a] * probability[1, b]
            found += weight * torch.autograd.grad(loss, scores)[0]
    assert_close(found, expected)
    with pytest.raises(ValueError, match="needs a batch of two or more"):
        reinforce_loss(log_p[:1], torch.ones(1))


def test_open_rates_far_from_their_targets_cost_more():
    open = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    loss = open_rate_loss(open, 0.6)
    assert_close(loss, torch.tensor(((0.6 - 0.5) ** 2 + (0.6 - 1.0) ** 2) / 2))
    assert_close(open_rate_loss(open, [0.5, 1.0]), torch.tensor(0.0))
    loss.backward()
    assert (open.grad[0] < 0).all()
    assert (open.grad[1] > 0).all()


def test_bad_draws_are_refused():
    with pytest.raises(ValueError, match="no estimator 'dice'; there are threshold, straight-through"):
        Draw("dice")(SCORES)
    with pytest.raises(ValueError, match="temperature of a decision is 0: must be above 0"):
        Draw("gumbel", 0)(SCORES)
    with pytest.raises(ValueError, match="estimator 'threshold' teaches a decision nothing"):
        Draw("threshold").check(training=True)
    assert Draw("reinforce").check(training=True).by_policy
