"""Objectives of dynamic resolution against their equations."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.testing import assert_close

from nets.example_nets import lively
from stepwell.methods.resolution import (
    EveryResolution,
    ImitateBest,
    JointResolution,
    check_target,
    even_shares,
)
from stepwell.nets import build
from stepwell.nets.resolution.chooser import Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions
from stepwell.types import Batch

SIZES, COSTS = (16, 12, 8), (100.0, 56.0, 25.0)


@pytest.fixture
def batch():
    return Batch(torch.randn(8, 3, 16, 16), torch.randint(5, (8,)))


@pytest.fixture(scope="module")
def ready():
    torch.manual_seed(0)
    return dynamic()


def dynamic(depths=()):
    net = Resolutions(lively(build("resnet14", depths, num_classes=5)), SIZES)
    lively(net.own_norms)
    choices = [Choice(d, size) for size in SIZES for d in net.net.depths]
    made = ResolutionNet(net, choices, Chooser(len(choices), 8))
    nn.init.normal_(made.chooser.scores.weight, std=0.5)
    return made


def test_labels_out_of_range_are_said(ready, batch):
    odd = batch._replace(labels=torch.full((8,), 7))
    net = deepcopy(ready)
    for objective in (
        EveryResolution(net.net),
        JointResolution(net, COSTS, target=0.6),
        ImitateBest(net, COSTS),
    ):
        with pytest.raises(ValueError, match="labels run from 7 to 7, but this network has 5 classes"):
            objective.training_step(odd)


def test_every_resolution_is_the_sum_of_losses_of_each(batch):
    net = dynamic(["8"]).net.double().train()
    batch = Batch(batch.images.double(), batch.labels)
    twin = deepcopy(net)
    step = EveryResolution(net).training_step(batch)
    losses = {
        f"{size}/{depth}/ce": cross_entropy(twin(batch.images, size, depth), batch.labels)
        for size in SIZES
        for depth in ("8", "14")
    }
    naive = torch.stack(list(losses.values())).sum()
    assert_close(step.loss, naive)
    assert step.logs.keys() == losses.keys()
    step.loss.backward()
    naive.backward()
    for (name, ours), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, msg=name)


@pytest.mark.parametrize("mixing", ["chosen", "all"])
@pytest.mark.parametrize("target", [0.3, 0.9])
def test_the_step_is_the_equation_of_its_docstring(batch, mixing, target):
    """Every image alone, in eval mode; the straight-through gradient written out."""
    net, tau, weight = dynamic().eval(), 0.7, 2.0
    images, labels = batch
    objective = JointResolution(
        net, COSTS, target=target, cost_weight=weight, temperature=tau, mixing=mixing
    ).eval()
    torch.manual_seed(1)
    step = objective.training_step(Batch(images, labels))
    step.loss.backward()

    torch.manual_seed(1)
    scores = net.chooser(images).detach()
    noisy = scores - torch.empty_like(scores).exponential_().log()
    soft, who = (noisy / tau).softmax(1), noisy.argmax(1)
    hard = one_hot(who, 3).float()
    logits = torch.stack([net.net(images, size) for size in SIZES], 1).detach()  # (8, 3, classes)
    y = (hard[:, :, None] * logits).sum(1)
    costs = torch.tensor(COSTS) / 100
    above = ((hard @ costs).mean() - target) / 0.75
    expected = cross_entropy(y, labels) + weight * above.clamp_min(0)
    assert_close(step.loss, expected)
    assert_close(step.logs["mean cost"], (hard @ costs).mean())

    d_y = (y.softmax(1) - one_hot(labels, 5)) / 8
    d_h = (logits * d_y[:, None]).sum(2)
    if mixing == "chosen":
        d_h = d_h * hard
    if above > 0:
        d_h = d_h + weight * costs / 8 / 0.75
    d_scores = soft * (d_h - (soft * d_h).sum(1, keepdim=True)) / tau
    assert_close(net.chooser.scores.bias.grad, d_scores.sum(0), rtol=1e-3, atol=1e-5)


def test_the_expectation_teaches_the_chooser_and_the_choices_the_network(batch):
    """Every image alone, in eval mode; half of the batch runs at every choice."""
    net, weight, target = dynamic().eval(), 2.0, 0.3
    images, labels = batch
    objective = JointResolution(net, COSTS, target=target, cost_weight=weight, explore=0.5).eval()
    twin = deepcopy(net)
    torch.manual_seed(1)
    step = objective.training_step(batch)
    step.loss.backward()

    torch.manual_seed(1)
    scores = twin.chooser(images)
    who = (scores.detach() - torch.empty_like(scores).exponential_().log()).argmax(1)
    y = torch.cat([twin.net(images[i, None], SIZES[w]) for i, w in enumerate(who.tolist())])
    every = torch.stack([twin.net(images[:4], size) for size in SIZES], 1).detach()
    losses = cross_entropy(every.flatten(0, 1), labels[:4].repeat_interleave(3), reduction="none")
    p = scores.softmax(1)
    expected = (p[:4] * losses.view(4, 3)).sum(1).mean()
    above = ((p @ (torch.tensor(COSTS) / 100)).mean() - target) / 0.75
    assert above > 0
    naive = cross_entropy(y, labels) + expected + weight * above
    assert_close(step.loss, naive)
    naive.backward()
    for (name, ours), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_exploring_leaves_the_statistics_of_norms_as_they_are(batch, monkeypatch):
    """All images draw the first choice; the others run for the chooser alone."""
    net = dynamic().train()
    first = one_hot(torch.zeros(8, dtype=torch.long), 3).float()
    monkeypatch.setattr("stepwell.nets.decisions.estimators.gumbel_softmax", lambda *_, hard: first)
    before = {name: value.clone() for name, value in net.net.own_tensors().items()}
    JointResolution(net, COSTS, target=0.5, explore=1.0).training_step(batch)
    for name, value in net.net.own_tensors().items():  # of the other resolutions
        assert_close(value, before[name], rtol=0, atol=0)
    assert {m.training for m in net.net.hidden_modules()} == {True}


def gradient_of_alike(mixing, monkeypatch, draws=20):
    """The mean gradient of the chooser's bias where every choice gives the same logits."""
    net = dynamic().eval()
    nn.init.zeros_(net.chooser.scores.weight)
    net.chooser.scores.bias.data = torch.tensor([1.0, 0.0, -1.0])
    images, labels = torch.randn(64, 3, 16, 16), torch.zeros(64, dtype=torch.long)
    same = torch.randn(5).expand(64, 5)
    monkeypatch.setattr(net.net, "forward", lambda x, *_: same[: len(x)])
    monkeypatch.setattr(net, "logits_by_choice", lambda _: dict.fromkeys(net.names, same))
    objective = JointResolution(net, COSTS, target=1.0, mixing=mixing, explore=1.0).eval()
    for _ in range(draws):
        objective.training_step(Batch(images, labels)).loss.backward()
    return net.chooser.scores.bias.grad / draws


def test_the_gradient_of_the_chosen_alone_is_biased_and_the_others_are_not(monkeypatch):
    torch.manual_seed(0)
    assert gradient_of_alike("expected", monkeypatch).abs().max() < 1e-6
    assert gradient_of_alike("all", monkeypatch).abs().max() < 1e-6
    assert gradient_of_alike("chosen", monkeypatch).abs().max() > 0.02


def test_random_choices_cost_the_target_and_teach_the_chooser_nothing(batch):
    net = dynamic().train()
    objective = JointResolution(net, COSTS, target=0.4, mixing="random")
    torch.manual_seed(0)
    spent = [objective.training_step(batch) for _ in range(40)]
    costs = torch.stack([step.logs["mean cost"] for step in spent])
    assert float(costs.mean()) == pytest.approx(0.4, abs=0.04)
    spent[-1].loss.backward()
    assert all(p.grad is None for p in net.chooser.parameters())
    objective.to("meta")  # on another device, too
    tensors = [v for v in vars(objective).values() if isinstance(v, torch.Tensor)]
    assert all(v.is_meta for v in [*objective.buffers(), *tensors])
    assert len(list(objective.buffers())) > len(list(net.buffers()))


@pytest.mark.parametrize("target", [0.25, 0.3, 0.6, 0.6033, 0.9, 1.0])
def test_even_shares_have_the_target_as_their_mean(target):
    shares = even_shares(COSTS, target)
    assert float(shares.sum()) == pytest.approx(1)
    assert float(shares @ torch.tensor(COSTS).double() / 100) == pytest.approx(target, abs=1e-4)
    if target == 0.6033:  # the mean of all costs
        assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_the_cost_has_no_gradient_below_its_target(batch):
    gradients = []
    for weight in (0.0, 1e6):
        torch.manual_seed(0)
        net = dynamic().eval()
        nn.init.zeros_(net.chooser.scores.weight)
        net.chooser.scores.bias.data = torch.tensor([-9.0, 0.0, 0.0])  # cheap, as good as always
        objective = JointResolution(net, COSTS, target=0.7, cost_weight=weight).eval()
        step = objective.training_step(batch)
        assert float(step.logs["cost"].detach()) == 0
        step.loss.backward()
        gradients.append(net.chooser.scores.bias.grad)
    assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert gradients[0].abs().max() > 0


def test_norms_learn_from_the_images_that_chose_their_resolution(batch, monkeypatch):
    """Five images at 16 pixels, none at 12, and one at 8, which is too few for statistics."""
    net = dynamic().train()
    hard = one_hot(torch.tensor([0, 0, 2, 0, 0, 0]), 3).float()
    monkeypatch.setattr("stepwell.nets.decisions.estimators.gumbel_softmax", lambda *_, hard: one_hot_)
    one_hot_ = hard
    few = Batch(batch.images[:6], batch.labels[:6])
    before = {name: value.clone() for name, value in net.net.own_tensors().items()}
    twin = deepcopy(net.net).train()
    twin(few.images[hard[:, 0] == 1], 16)
    JointResolution(net, COSTS, target=0.5).training_step(few)
    for name, value in net.net.own_tensors().items():
        assert_close(value, before[name], rtol=0, atol=0)
    for name, value in net.net.net.tensors().items():
        assert_close(value, twin.net.tensors()[name], msg=name)
    assert {m.training for m in net.net.hidden_modules()} == {True}


def test_depths_and_resolutions_are_chosen_together(batch):
    net = dynamic(["8"]).train()
    costs = [c / d for c in COSTS for d in (2, 1)]
    step = JointResolution(net, costs, target=0.5).training_step(batch)
    shares = {k: v for k, v in step.logs.items() if k.startswith("share/")}
    assert len(shares) == 6
    assert_close(torch.stack(list(shares.values())).sum(), torch.tensor(1.0))
    assert_close(step.logs["mean cost"], (torch.stack(list(shares.values())) * net.costs).sum())


def test_the_best_choice_is_the_cheapest_that_is_nearly_as_good(batch):
    net = dynamic()
    objective = ImitateBest(net, COSTS, slack=0.5).train()
    best = objective.best(*batch)
    for i, found in enumerate(best.tolist()):
        x, y = batch.images[i, None], batch.labels[i, None]
        losses = [float(cross_entropy(net.net(x, size), y)) for size in SIZES]
        enough = [j for j in (2, 1, 0) if losses[j] <= min(losses) + 0.5]  # cheap to dear
        assert found == enough[0]
    assert not net.net.training
    assert net.chooser.training
    before = {name: value.clone() for name, value in net.state_dict().items()}
    objective.training_step(batch).loss.backward()
    assert all(p.grad is None for p in net.net.parameters())
    assert net.chooser.scores.weight.grad.abs().max() > 0
    for name, value in net.state_dict().items():
        if not name.startswith("chooser."):
            assert_close(value, before[name], rtol=0, atol=0)


def test_a_target_out_of_reach_says_the_range(ready):
    check_target(COSTS, 0.25)
    check_target(COSTS, 1.0)
    for target in (0.2, 1.1, float("nan")):
        with pytest.raises(
            ValueError, match=f"a target of {target} .* cheapest choice has 0.25, the costliest 1"
        ):
            JointResolution(ready, COSTS, target=target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_weight": -1.0}, "cost_weight -1.0: must be 0 or more"),
        ({"temperature": 0.0}, "temperature 0.0: must be above 0"),
        ({"explore": 0.0}, "explore 0.0: must be above 0, at most 1"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0: must be 0 or more and below 1"),
    ],
)
def test_values_out_of_range_are_refused(ready, options, message):
    with pytest.raises(ValueError, match=message):
        JointResolution(ready, COSTS, target=0.5, **options)
    with pytest.raises(ValueError, match="slack -1"):
        ImitateBest(ready, COSTS, slack=-1.0)
    with pytest.raises(ValueError, match="got 2 costs for 3 choices"):
        JointResolution(ready, COSTS[:2], target=0.5)
    with pytest.raises(ValueError, match="a choice costs 0: costs, such as MACs, must be positive"):
        JointResolution(ready, [0.0, 0.0, 0.0], target=0.5)
