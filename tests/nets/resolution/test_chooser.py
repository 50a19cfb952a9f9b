"""The chooser, and images that run where it sends them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from nets.example_nets import lively
from stepwell.cost import count_macs
from stepwell.nets import build
from stepwell.nets.resolution.chooser import Budget, Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions, resize

SIZES = (16, 12, 8)


class Told(nn.Module):
    """Scores that are set."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores[: len(x)]


def dynamic(chooser=None, depths=("14",), sizes=SIZES):
    net = lively(build("resnet14", ["8"], num_classes=5))
    made = Resolutions(net, sizes)
    lively(made.own_norms)
    choices = [Choice(depth, size) for size in sizes for depth in depths]
    return ResolutionNet(made, choices, chooser or Chooser(len(choices), 8)).eval()


@pytest.fixture(scope="module")
def every():
    torch.manual_seed(0)
    return dynamic(Told(torch.zeros(1, 6)), depths=("8", "14"))


@settings(max_examples=8, deadline=None)
@given(who=st.lists(st.integers(0, 5), min_size=1, max_size=7))
def test_images_that_run_in_groups_are_as_if_each_ran_alone(every, who):
    net = every
    net.chooser.scores = nn.functional.one_hot(torch.tensor(who), 6).float()
    x = torch.randn(len(who), 3, 16, 16)
    answer = net.answer(x)
    assert answer.depth.tolist() == who
    for i, chosen in enumerate(who):
        depth, size = net.choices[chosen]
        alone = net.net.at(size)(resize(x[i, None], size), depth)
        assert_close(answer.logits[i, None], alone, rtol=1e-4, atol=1e-4)
    assert_close(net(x), answer.logits, rtol=0, atol=0)


def test_all_choices_of_a_batch(every):
    net = every
    assert net.names == ("8@16", "14@16", "8@12", "14@12", "8@8", "14@8")
    assert dynamic().names == ("16", "12", "8")
    x = torch.randn(3, 3, 16, 16)
    by_choice = net.logits_by_choice(x)
    assert tuple(by_choice) == net.names
    for (depth, size), logits in zip(net.choices, by_choice.values(), strict=True):
        assert_close(logits, net.net(x, size, depth), rtol=1e-5, atol=1e-5)


def test_a_price_moves_choices_to_the_cheaper_ones():
    net = dynamic(Told(torch.tensor([[3.0, 2.0, 0.0], [3.0, 2.9, 2.8]])))
    x = torch.randn(2, 3, 16, 16)
    net.costs.copy_(torch.tensor([1.0, 0.5, 0.25]))
    assert net.choose(x).tolist() == [0, 0]
    net.price.fill_(1.0)  # 2, 1.5, -.25 and 2, 2.4, 2.55
    assert net.choose(x).tolist() == [0, 2]


def test_a_budget_sets_the_price_that_it_allows():
    net = dynamic()
    with pytest.raises(ValueError, match="knows no budgets"):
        net.for_budget(macs=1e6)
    net.budgets = (Budget(3.0, 1e6, 0.7), Budget(1.0, 2e6, 0.8), Budget(-1.0, 4e6, 0.9))
    assert net.for_budget(macs=3e6) == net.budgets[1]
    assert float(net.price) == 1.0
    assert net.for_budget(macs=1e9) == net.budgets[2]
    assert net.for_budget(accuracy=0.75) == net.budgets[1]  # the cheapest that has as much
    assert net.for_budget(accuracy=0.75, macs=5e6) == net.budgets[1]
    reach = "they reach from 1.00 M MACs an image with 70 % accuracy to 4.00 M MACs an image with 90 %"
    with pytest.raises(ValueError, match=rf"no budget gives 500.00 k MACs an image: {reach}"):
        net.for_budget(macs=5e5)
    with pytest.raises(
        ValueError, match=rf"no budget gives 3.00 M MACs an image with 85 % accuracy: {reach}"
    ):
        net.for_budget(macs=3e6, accuracy=0.85)
    with pytest.raises(ValueError, match="give a budget: ms, macs, accuracy or some"):
        net.for_budget()
    assert float(net.price) == 1.0


def test_a_budget_of_time_is_of_the_shares_of_choices():
    net = dynamic()
    cheap, dear = Budget(3.0, 1e6, 0.7, (0.0, 0.25, 0.75)), Budget(1.0, 2e6, 0.8, (0.5, 0.5, 0.0))
    net.budgets = cheap, dear
    times = [4.0, 2.0, 1.0]  # 1.25 and 3 ms in the mean
    assert net.for_budget(ms=3, times=times) is dear
    assert float(net.price) == 1.0
    assert net.for_budget(ms=2.9, times=times) is cheap
    assert net.for_budget(ms=2.9, accuracy=0.7, times=times) is cheap
    reach = r"from 1.00 M MACs an image \(1.25 ms\) with 70 % accuracy to 2.00 M MACs an image \(3 ms\)"
    with pytest.raises(ValueError, match=rf"no budget gives 1.2 ms an image: they reach {reach}"):
        net.for_budget(ms=1.2, times=times)
    with pytest.raises(ValueError, match="0 times of 3 choices: ms needs all of them"):
        net.for_budget(ms=3)
    net.budgets = (Budget(3.0, 1e6, 0.7),)
    with pytest.raises(ValueError, match="saved by a version without latency budgets"):
        net.for_budget(ms=3, times=times)
    assert float(net.price) == 3.0


def test_a_choice_that_is_held_has_no_budgets():
    net = dynamic()
    net.budgets = (Budget(3.0, 1e6, 0.7),)
    net.hold("12")
    assert net.choose(torch.randn(2, 3, 16, 16)).tolist() == [1, 1]
    with pytest.raises(ValueError, match="knows no budgets"):
        net.for_budget(macs=1e9)


def test_the_chooser_costs_what_its_layers_do_and_next_to_nothing():
    chooser = Chooser(3, 16)
    macs = count_macs(chooser, torch.zeros(1, 3, 32, 32))
    assert macs == 64 * 27 * 8 + 16 * 72 * 16 + 4 * 144 * 32 + 32 * 3
    net = build("resnet20", num_classes=10)
    assert macs < 0.002 * count_macs(net.module, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(("size", "layers"), [(4, 3), (16, 3), (32, 4), (112, 6)])
def test_the_chooser_has_layers_for_its_copy(size, layers):
    chooser = Chooser(3, size)
    assert sum(isinstance(m, nn.Conv2d) for m in chooser.modules()) == layers
    x = torch.randn(2, 3, 2 * size, 2 * size)
    assert_close(chooser.eval()(x), torch.zeros(2, 3))  # at first all are equal
    assert max(chooser.features(resize(x, size)).shape[2:]) <= 2


def test_no_images_have_no_logits(every):
    answer = every.answer(torch.empty(0, 3, 16, 16))
    assert (answer.logits.shape, answer.depth.shape) == ((0, 5), (0,))


def test_choices_must_be_there_and_be_several():
    net = Resolutions(build("resnet8", num_classes=5), (16, 8))
    with pytest.raises(ValueError, match="at least two choices are needed, got 1"):
        ResolutionNet(net, [Choice("8", 16)], Chooser(1, 8))
    with pytest.raises(ValueError, match="no resolution of 12 pixels"):
        ResolutionNet(net, [Choice("8", 16), Choice("8", 12)], Chooser(2, 8))
    with pytest.raises(ValueError, match="no depth '20'"):
        ResolutionNet(net, [Choice("8", 16), Choice("20", 8)], Chooser(2, 8))
    with pytest.raises(ValueError, match="depth 8 at 8 pixels is two choices: name it once"):
        ResolutionNet(net, [Choice("8", 16), Choice("8", 8), Choice("8", 8)], Chooser(3, 8))
