"""The gate of widths: compacted equals masked, groups join where that is faster, the gate learns."""

from dataclasses import replace
from itertools import combinations_with_replacement

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import stepwell
from nets.example_nets import lively
from stepwell.device import device_name
from stepwell.export import OpenChoices, export_widths
from stepwell.export.check import Sample
from stepwell.measure.choices import macs_of_choices
from stepwell.methods.widths import ChooserAlone
from stepwell.nets import Card, build
from stepwell.nets.decisions.executor import fewer_groups, time_of
from stepwell.nets.decisions.widths import WidthNet
from stepwell.nets.files.nested import fingerprint, rewrite_card
from stepwell.nets.files.widths import load_widths, save_widths
from stepwell.types import Batch

EXACT = {"rtol": 0, "atol": 0}
COSTS = [10.0, 3.0, 1.0]


def choosing(gate_at="doubt"):
    """A network whose gate picks each of three widths for about a third of the images."""
    torch.manual_seed(0)
    nested = build("resnet8", multipliers=(0.25, 0.5, 1), num_classes=5, zero_init_residual=False)
    net = WidthNet(lively(nested), gate_at).eval()
    x = torch.randn(64, 3, 8, 8)
    last = net.chooser.gate.scores
    with torch.no_grad():
        scale = net.nested(x, "0.25").std()  # or the narrowest width is sure of everything
        net.nested.module.fc.weight /= scale
        net.nested.module.fc.bias /= scale
        for _ in range(100):
            last.weight.normal_()
            last.bias.zero_()
            scores = net.chooser(x)
            last.weight /= scores.std(0)[:, None]
            last.bias -= scores.mean(0) / scores.std(0)
            if torch.bincount(net.choose(x), minlength=3).min() > 6:
                break
    net.mark_trained()
    net.nested.card = Card(classes=tuple("abcde"), size=8)
    return net, x


@pytest.mark.parametrize("gate_at", ["doubt", "stem"])
def test_compacted_equals_masked_and_a_batch_equals_its_images_alone(gate_at):
    net, x = choosing(gate_at=gate_at)
    with torch.no_grad():
        found = net(x)
        who = net.choose(x)
        assert torch.bincount(who, minlength=3).min() > 3
        every = torch.stack([*net.logits_by_choice(x).values()], 1)
        choice = torch.eye(3)[who]
        choice = choice[:, :, None].to(every)
        assert_close(found, (choice * every).sum(1), rtol=1e-4, atol=1e-4)
        assert_close(torch.cat([net(image) for image in x.split(1)]), found, rtol=1e-4, atol=1e-4)
        assert net(x[:0]).shape == (0, 5)
        logits, names = net.answers(x)
        assert names == [net.names[i] for i in who.tolist()]
        assert net.names == ("1", "0.5", "0.25")
        assert_close(net.answers(x, "0.5")[0], net.nested(x, "0.5"), **EXACT)
        plain = net.plain(2)
        assert_close(plain(x[who == 2]), logits[who == 2], rtol=1e-4, atol=1e-4)
        net.hold("0.25")
        assert_close(net(x), every[:, 2], rtol=1e-4, atol=1e-4)


def test_groups_join_wider_ones_where_that_is_faster_and_no_image_gets_a_narrower_one():
    net, x = choosing(gate_at="stem")
    who = net.choose(x)
    seen, real = [], net.nested.forward
    net.nested.forward = lambda x, width: seen.append((width, len(x))) or real(x, width)
    constant = {name: {1: 1.0, 64: 1.0} for name in net.names}  # as GPUs have for few images
    with torch.no_grad():
        net.times = constant
        answer = net.answer(x)
        assert not seen  # the widest goes on from the gate's own stem
        assert answer.depth.tolist() == [0] * 64
        assert net.choose(x).equal(who)
        net.times = {name: {1: c / 64, 64: c} for name, c in zip(net.names, COSTS, strict=True)}
        assert net.answer(x).depth.equal(who)
        narrow = x[who > 0]
        net.times = constant
        assert set(net.answer(narrow).depth.tolist()) == {1}
        assert net.answer(narrow[:1]).depth.equal(who[who > 0][:1])
        net, x = choosing()
        net.times = constant
        found, chosen = net.answer(x).depth, net.choose(x)
        assert found.tolist() == [2 if i == 2 else 0 for i in chosen.tolist()]  # 2 has run already


def test_joined_groups_take_the_least_time_of_all_ways_to_join():
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        counts = torch.randint(0, 5, (4,), generator=generator).tolist()
        ms = torch.rand(4, 3, generator=generator).cumsum(1).tolist()
        times = [dict(zip((1, 4, 16), row, strict=True)) for row in ms]

        def spent(runs, counts=counts, times=times):
            groups = {r: sum(c for c, s in zip(counts, runs, strict=True) if s == r) for r in set(runs)}
            taken = [time_of(times[r], n) for r, n in sorted(groups.items()) if n]
            first = next((i for i, count in enumerate(counts) if count), 0)
            return sum(taken) + 0.03 * time_of(times[first], sum(counts)) * (len(taken) - 1)

        found = fewer_groups(counts, times)
        made = [i for i, count in enumerate(counts) if count]
        assert all(found[i] <= i and counts[found[i]] for i in made)
        allowed = (
            runs for runs in combinations_with_replacement(range(4), 4)
            if all(runs[i] <= i and counts[runs[i]] for i in made)
        )  # fmt: skip
        assert spent(found) <= min(map(spent, allowed)) + 1e-9
    assert [time_of({2: 1.0, 4: 3.0}, n) for n in (1, 2, 3, 4, 8)] == [1.0, 1.0, 2.0, 3.0, 6.0]
    assert fewer_groups([0, 0], [{1: 1.0}] * 2) == [0, 1]


def test_the_gate_and_the_times_of_this_device_are_in_the_file(tmp_path):
    net, x = choosing()
    net.price.fill_(0.1)
    table = {name: {"1": 1.0, "64": 2.0} for name in net.names}
    file = save_widths(net, tmp_path / "net")
    mark = fingerprint(file)
    back = load_widths(file)
    with torch.no_grad():
        assert_close(back(x), net(x), **EXACT)
        assert_close(stepwell.load(file)(x), net.nested(x), **EXACT)
    assert not back.times
    rewrite_card(file, replace(net.card, group_ms={device_name(): table, "another": {}}))
    assert load_widths(file).times == {name: {1: 1.0, 64: 2.0} for name in net.names}
    assert fingerprint(file) == mark
    rewrite_card(file, replace(net.card, group_ms={device_name(): {"1": {"1": 1.0}}}))
    assert not load_widths(file).times
    stepwell.save(net.nested, tmp_path / "plain")
    with pytest.raises(ValueError, match="holds a network that chooses no width"):
        load_widths(tmp_path / "plain")
    for wrong in ({"cpu": {"1": {"0": 1.0}}}, {"cpu": {"1": {"4": -1.0}}}, {"cpu": {"1": 3}}):
        with pytest.raises(ValueError, match=r"a network's card cannot have group_ms|not iterable"):
            Card(group_ms=wrong)


@pytest.mark.parametrize("estimator", ["straight-through", "gumbel", "reinforce"])
def test_the_gate_alone_learns(estimator):
    net, x = choosing()
    net.train()
    before = {n: v.clone() for n, v in net.nested.state_dict().items()}
    macs_of_choices(net, 8)
    assert net.nested.training
    method = ChooserAlone(net, COSTS, target=0.3, estimator=estimator).train()
    step = method.training_step(Batch(x, torch.arange(64) % 5))
    step.loss.backward()
    assert {"ce", "mean cost", "cost", "share/1", "share/0.25"} <= step.logs.keys()
    assert net.chooser.gate.scores.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.nested.parameters())
    for name, value in net.nested.state_dict().items():
        assert_close(value, before[name], **EXACT)


def test_the_straight_through_gradient_is_that_of_the_expected_loss():
    net, x = choosing()
    labels = torch.arange(64) % 5
    method = ChooserAlone(net, COSTS, target=1.0, cost_weight=0.0).train()
    method.training_step(Batch(x, labels)).loss.backward()
    found = net.chooser.gate.scores.weight.grad.clone()
    net.zero_grad()
    net.nested.eval()
    every = [cross_entropy(y, labels, reduction="none") for y in net.logits_by_choice(x).values()]
    (net.chooser(x).softmax(1) * torch.stack(every, 1).detach()).sum(1).mean().backward()
    assert_close(found, net.chooser.gate.scores.weight.grad, rtol=1e-4, atol=1e-7)


def test_the_gate_learns_a_planted_need():
    """Bright images are right at full width alone, dark ones everywhere."""
    net, _ = choosing(gate_at="stem")
    torch.manual_seed(1)
    x = torch.randn(64, 3, 8, 8) + torch.tensor([2.0, -2.0]).repeat(32)[:, None, None, None]
    bright = torch.tensor([True, False]).repeat(32)
    right, wrong = torch.eye(5)[0] * 9, torch.eye(5)[1] * 9
    net.logits_by_choice = lambda x: {
        n: torch.where((x.mean((1, 2, 3)) > 0)[:, None] & (n != "1"), wrong, right) for n in net.names
    }
    method = ChooserAlone(net, COSTS, target=0.55).train()
    optimizer = torch.optim.Adam(net.chooser.gate.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        method.training_step(Batch(x, torch.zeros(64, dtype=torch.long))).loss.backward()
        optimizer.step()
    net.eval()
    who = net.choose(x)
    assert (who[bright] == 0).double().mean() > 0.9
    assert (who[~bright] > 0).double().mean() > 0.9


def test_what_cannot_choose_is_refused():
    net, _ = choosing()
    with pytest.raises(ValueError, match="this network has one width: build a ResNet with"):
        WidthNet(build("resnet8"))
    with pytest.raises(ValueError, match=r"target of 0.05 .* cannot be reached: the cheapest"):
        ChooserAlone(net, COSTS, target=0.05)
    with pytest.raises(ValueError, match="estimator 'threshold' teaches a decision nothing"):
        ChooserAlone(net, COSTS, target=0.5, estimator="threshold")


def test_a_gate_at_the_stem_is_exported_with_its_stem(tmp_path):
    pytest.importorskip("onnx")
    net, x = choosing("stem")
    index = export_widths(net, tmp_path, Sample(x, "noise"))
    assert "chooser_reads" not in index
    assert index["parity"]["same_choice"] == 1.0
    assert OpenChoices(tmp_path)(x).depth.equal(net.choose(x))
    net.hold("1")
    with pytest.raises(ValueError, match="the same choice for all images: export that width with"):
        export_widths(net, tmp_path, Sample(x, "noise"))
