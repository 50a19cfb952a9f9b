"""A network's cascade: found on validation data, measured as it runs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nets.example_nets import lively
from stepwell.cost import count_macs
from stepwell.evaluation import gather_logits
from stepwell.measure.cascade import calibrate_cascade, cascade_curve, cascade_macs, measure_cascade
from stepwell.measure.speed import TIMED, timed_rows
from stepwell.nets import Card, build
from stepwell.nets.files.nested import load, save
from stepwell.nets.nested.cascade import Cascade
from stepwell.types import Batch

DEPTHS = {"8": (1, 1, 1), "a": (1, 2, 3), "14": (2, 2, 2)}


@pytest.fixture
def net():
    net = build("resnet20", DEPTHS, num_classes=3, zero_init_residual=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    net.mark("trained")
    net.card = Card(tuple("abc"), 8)
    return net.eval()


def batches_of(net, n=40, flips=0.1):
    """Images that the full net answers as labelled, but for some."""
    images = torch.randn(n, 3, 8, 8)
    with torch.no_grad():
        labels = net(images).argmax(1)
    labels = torch.where(torch.rand(n) < flips, (labels + 1) % 3, labels)
    return [Batch(*parts) for parts in zip(images.split(15), labels.split(15), strict=True)]


def step_macs(net, depth):
    """MACs of each step on the path of `depth`, run alone on what comes before it."""
    x, found = torch.zeros(1, 3, 8, 8), []
    for step in net.path(depth):
        found.append(count_macs(step, x))
        x = step(x)
    return found


def test_macs_of_a_cascade_are_the_sum_over_the_steps_that_run(net):
    joint = nn.Module()
    joint.forward = lambda x: net.forward_all(x)
    assert cascade_macs(net, [*net.depths])[-1] == count_macs(joint, torch.zeros(1, 3, 8, 8))
    for depths in (["8", "20"], ["8", "a", "14", "20"], ["a", "14"], ["14"]):
        expected, seen = [], set()
        for depth in depths:
            for i, macs in enumerate(step_macs(net, depth)):
                seen.add((tuple(id(s) for s in net.path(depth)[: i + 1]), macs))
            expected.append(sum(macs for _, macs in seen))
        assert cascade_macs(net, depths) == expected
    assert not net.training


def test_measured_mean_macs_equal_a_naive_sum_over_the_images(net):
    batches = batches_of(net)
    cascade = Cascade(net, {"8": 0.5, "14": 0.6})
    found = measure_cascade(cascade, batches, seconds=0.01)
    costs, right, macs, shares = cascade_macs(net, cascade.depths), 0, 0, [0, 0, 0]
    for images, labels in batches:
        answer = cascade(images)
        for logits, depth, label in zip(answer.logits, answer.depth, labels, strict=True):
            right += int(logits.argmax() == label)
            macs += costs[depth]
            shares[depth] += 1
    assert found["accuracy"] == right / 40
    assert found["macs"] == pytest.approx(macs / 40)
    assert found["shares"] == [s / 40 for s in shares]
    assert found["full_macs"] == count_macs(net.module, torch.zeros(1, 3, 8, 8))
    of_depth = dict.fromkeys(cascade.depths, 0)
    oracle, oracle_macs = 0, 0
    for images, labels in batches:
        logits = net.logits_by_depth(images)
        for i, label in enumerate(labels):
            right_at = [int(logits[d][i].argmax() == label) for d in cascade.depths]
            of_depth = {d: n + r for (d, n), r in zip(of_depth.items(), right_at, strict=True)}
            oracle += max(right_at)
            oracle_macs += costs[right_at.index(max(right_at))]
    drawn = sum(s * n / 40 for s, n in zip(found["shares"], of_depth.values(), strict=True))
    assert found["random_accuracy"] == pytest.approx(drawn)
    assert found["oracle_accuracy"] == pytest.approx(oracle / 40)
    assert found["oracle_macs"] == pytest.approx(oracle_macs / 40)
    assert found["ms"] > 0
    assert found["full_ms"] > 0


def test_times_are_of_images_drawn_from_all_and_of_their_depths(net, monkeypatch):
    batches = batches_of(net)
    images = torch.cat([b.images for b in batches])
    with torch.inference_mode():
        sure = net(images, "8").softmax(1).amax(1).sort().values
    cascade = Cascade(net, {"8": float(sure[19:21].mean())})
    seconds, timed = {0: 1.0, 1: 3.0}, []  # by depth

    def time_each(calls, inputs, **_):
        timed.extend(inputs)
        taken = [seconds[int(cascade(x).depth)] for x in inputs]
        return {name: SimpleNamespace(times=taken, busy=False) for name in calls}

    monkeypatch.setattr("stepwell.measure.cascade.time_each", time_each)
    found = measure_cascade(cascade, batches, most=20)
    assert {*cascade(images).depth.tolist()} == {0, 1}
    places = [int((images == x).flatten(1).all(1).nonzero()) for x in timed]
    assert len({*places}) == 20
    assert max(places) >= 30  # of the last batch, too
    assert places != sorted(places)
    drawn = cascade(images[places]).depth.tolist()
    assert found["ms"] == pytest.approx(1000 * sum(seconds[i] for i in drawn) / 20)


def test_images_on_which_speed_is_measured_are_of_all_classes():
    rows = timed_rows(5000)
    assert len({*rows.tolist()}) == TIMED
    assert len({int(row) // 500 for row in rows}) == 10
    assert timed_rows(5).sort().values.tolist() == [0, 1, 2, 3, 4]


def test_the_default_goal_is_the_full_nets_accuracy_for_fewer_macs(net):
    batches = batches_of(net)
    found = calibrate_cascade(net, batches)
    net.card = replace(net.card, cascade=found)
    measured = measure_cascade(Cascade.of(net), batches, seconds=0.01)
    assert measured["accuracy"] >= measured["full_accuracy"]
    # the same images as it was calibrated on: the same numbers
    assert measured["accuracy"] == pytest.approx(found["accuracy"])
    assert measured["macs"] == pytest.approx(found["macs"])
    assert measured["shares"] == pytest.approx(found["shares"])
    assert found["macs"] <= measured["full_macs"]
    assert (found["images"], found["goal"]) == (40, "as accurate as the full net")


def test_a_geometric_search_that_misses_the_full_nets_accuracy_gives_the_nearest(net):
    x = torch.randn(400, 3, 8, 8)
    lively(net)
    with torch.no_grad():
        first, right = net(x, "8").argmax(1), net(x).argmax(1)
    part = (first != right).nonzero().flatten()  # where the first depth is always wrong
    found = calibrate_cascade(net, [Batch(x[part], right[part])], search="geometric")
    assert found["accuracy"] < 1
    assert found["goal"] == "as accurate as the full net, or the nearest to it"


def test_a_budget_of_macs_is_kept(net):
    batches = batches_of(net)
    lowest, full = cascade_macs(net, ["8"])[0], cascade_macs(net, ["20"])[0]
    last = 0.0
    for budget in (lowest, (lowest + full) / 2, 2 * full):
        found = calibrate_cascade(net, batches, macs=budget)
        assert found["macs"] <= budget * (1 + 1e-9)
        assert found["accuracy"] >= last
        last = found["accuracy"]
    assert calibrate_cascade(net, batches, macs=lowest)["depths"] == ["8"]


def test_a_curve_of_budgets_is_what_cascades_set_to_them_do(net):
    batches = batches_of(net)
    how = {"criterion": "entropy", "temper": True}
    known = gather_logits(net.logits_by_depth, batches)
    curve = cascade_curve(net, batches, *known, points=3, **how)
    low, high = (cascade_macs(net, [depth])[0] for depth in (next(iter(net.depths)), net.full))
    for point, share in zip(curve, (0.25, 0.5, 0.75), strict=True):
        record = calibrate_cascade(net, batches, macs=low + share * (high - low), **how)
        measured = measure_cascade(Cascade.of(net, record), batches, seconds=0.01)
        assert point == pytest.approx({k: measured[k] for k in point})


def test_depths_that_nobody_trained_take_no_part(net):
    net.mark("fresh", "8", "a")
    assert set(calibrate_cascade(net, batches_of(net))["depths"]) <= {"14", "20"}
    net.mark("fresh", "20")
    with pytest.raises(ValueError, match="depth '20' was never trained"):
        calibrate_cascade(net, batches_of(net))


def test_goals_that_cannot_be_reached_say_what_can(net):
    batches = batches_of(net, flips=0.5)
    with pytest.raises(ValueError, match=r"no cascade reaches the goal on the 40 validation images"):
        calibrate_cascade(net, batches, accuracy=1.0)
    with pytest.raises(ValueError, match=r"the nearest, of 8, has \d+ % accuracy at .* MACs"):
        calibrate_cascade(net, batches, macs=5)
    with pytest.raises(ValueError, match="a cascade has one goal"):
        calibrate_cascade(net, batches, macs=5, accuracy=0.5)
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        calibrate_cascade(net, batches, accuracy=90)
    with pytest.raises(ValueError, match="must be a positive number, not nan"):
        calibrate_cascade(net, batches, macs=float("nan"))


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({"criterion": "entropy"}, set()),
        ({"criterion": "patience"}, set()),
        ({"criterion": "learned", "temper": True}, {"temperatures", "weights"}),
        ({"search": "geometric"}, set()),
    ],
)
def test_what_a_search_found_is_what_the_saved_cascade_does(net, how, names, tmp_path):
    batches = batches_of(net, n=60, flips=0.3)
    found = calibrate_cascade(net, batches, macs=cascade_macs(net, ["8", "14"])[1] * 1.2, **how)
    assert how.items() - {("temper", True)} <= found.items()
    assert names <= found.keys()
    net.card = replace(net.card, cascade=found)
    save(net, tmp_path / "net")
    cascade = Cascade.of(load(tmp_path / "net"))
    measured = measure_cascade(cascade, batches, seconds=0.01)
    assert measured["shares"] == pytest.approx(found["shares"], abs=0.1 * ("weights" in names))
    if "weights" not in names:  # its scores in the search come from fits on the other half
        assert measured["accuracy"] == pytest.approx(found["accuracy"])
    if how.get("criterion") == "patience":
        assert cascade.depths == tuple(net.depths)
        assert len(set(found["thresholds"])) == 1


def test_searches_that_do_not_fit_are_refused(net):
    with pytest.raises(ValueError, match="no criterion 'luck' of a cascade"):
        calibrate_cascade(net, [], criterion="luck")
    with pytest.raises(ValueError, match="no search 'grid' for a cascade; there are best, geometric"):
        calibrate_cascade(net, [], search="grid")
    with pytest.raises(ValueError, match="patience has a few whole numbers as thresholds"):
        calibrate_cascade(net, [], criterion="patience", search="geometric")
