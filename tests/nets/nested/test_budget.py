"""The measured table in a network's card, and the depth that it gives for a budget."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

import stepwell
from stepwell.device import device_name
from stepwell.measures import share_interval
from stepwell.nets import Card, build
from stepwell.nets.files.nested import fingerprint, rewrite_card
from stepwell.nets.nested.budget import choose_depth

HERE = "this machine"
COST = {"ms": 1.5, "ms_low": 1.4, "ms_high": 2.0, "macs": 7, "params": 3, "batch": 1}


def card_of(rows):
    """A card with a row a depth: (ms, macs, accuracy)."""
    costs = {d: {"ms": ms, "macs": macs} for d, (ms, macs, _) in rows.items()}
    accuracy = {d: a for d, (_, _, a) in rows.items() if a is not None}
    return Card().with_costs(costs, HERE).with_accuracy(accuracy, "9 validation images")


def status_of(rows):
    return dict.fromkeys(rows, "trained")


number = st.floats(0.1, 100)
rows = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(number, number, st.floats(0, 1)), min_size=1
)


@given(rows, number, number, st.floats(0, 1), st.sets(st.sampled_from(["ms", "macs", "accuracy"])))
def test_the_choice_fits_and_none_that_fits_is_better(rows, ms, macs, accuracy, asked):
    if not asked:
        asked = {"ms"}
    budget = {n: v for n, v in {"ms": ms, "macs": macs, "accuracy": accuracy}.items() if n in asked}

    def fits(depth):
        its = dict(zip(("ms", "macs", "accuracy"), rows[depth], strict=True))
        return all(
            its[n] >= limit if n == "accuracy" else its[n] <= limit for n, limit in budget.items()
        )

    fitting = [d for d in rows if fits(d)]
    if not fitting:
        with pytest.raises(ValueError, match="no depth has at "):
            choose_depth(card_of(rows), status_of(rows), HERE, **budget)
        return
    chosen = choose_depth(card_of(rows), status_of(rows), HERE, **budget)
    assert chosen in fitting
    if "accuracy" in asked:
        cost = 0 if "ms" in asked else 1
        assert rows[chosen][cost] == min(rows[d][cost] for d in fitting)
    else:
        high = {d: share_interval(rows[d][2], 9)[1] for d in fitting}
        beaten = [d for i, d in enumerate(fitting) if any(rows[s][2] > high[d] for s in fitting[:i])]
        assert chosen == next(d for d in reversed(fitting) if d not in beaten)


ROWS = {"8": (1.0, 10, 0.7), "14": (2.0, 20, 0.8), "20": (3.0, 30, 0.8)}


def test_the_deepest_within_the_budget_is_chosen_also_where_an_accuracy_is_unknown():
    assert choose_depth(card_of(ROWS), status_of(ROWS), HERE, ms=9) == "20"
    unknown = {d: (ms, macs, None if d == "8" else a) for d, (ms, macs, a) in ROWS.items()}
    assert choose_depth(card_of(unknown), status_of(ROWS), HERE, ms=9) == "20"
    assert choose_depth(card_of(unknown), status_of(ROWS), HERE, accuracy=0.1) == "14"


@pytest.mark.parametrize(
    ("images", "accuracies", "chosen"),
    [
        ("100 validation images", (0.90, 0.92, 0.90), "20"),  # the interval of 20 ends at 0.945
        ("100 validation images", (0.90, 0.95, 0.90), "14"),
        ("10000 validation images", (0.90, 0.92, 0.90), "14"),  # ends at 0.906
        ("10000 validation images", (0.95, 0.92, 0.90), "8"),
        ("some images", (0.90, 0.92, 0.91), "14"),  # of an unknown number: no interval
    ],
)
def test_a_shallower_depth_must_be_better_beyond_the_interval(images, accuracies, chosen):
    accuracy = dict(zip(ROWS, accuracies, strict=True))
    card = card_of(ROWS).with_accuracy(accuracy, images)
    assert choose_depth(card, status_of(ROWS), HERE, ms=9) == chosen


def test_what_nobody_trained_is_never_chosen():
    status = {"8": "fresh", "14": "calibrated", "20": "fresh"}
    for budget in ({"ms": 9}, {"macs": 25}, {"accuracy": 0.1}):
        assert choose_depth(card_of(ROWS), status, HERE, **budget) == "14"
    with pytest.raises(ValueError, match="no depth has at most 1.5 ms an image; the cheapest, 14"):
        choose_depth(card_of(ROWS), status, HERE, ms=1.5)
    with pytest.raises(ValueError, match="no depth was trained or calibrated"):
        choose_depth(card_of(ROWS), dict.fromkeys(ROWS, "fresh"), HERE, ms=9)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "name a budget: ms, macs or accuracy"),
        ({"ms": 0.5}, "no depth has at most 0.5 ms an image; the cheapest, 8, has 1 ms an image"),
        ({"accuracy": 0.9}, "at least 90 % accuracy; the most accurate, 14, has 80 % accuracy"),
        (
            {"macs": 15, "accuracy": 0.75},
            "the cheapest, 8, has 10 MACs an image, 70 % accuracy; the most accurate, 14, has 20 MACs",
        ),
        ({"ms": float("nan")}, "a budget of ms must be a positive number, not nan"),
        ({"macs": -1}, "a budget of macs must be a positive number, not -1"),
        ({"accuracy": 95}, r"a share between 0 and 1 \(0.95 is 95 %\), not 95"),
    ],
)
def test_budgets_that_cannot_be_kept(budget, message):
    with pytest.raises(ValueError, match=message):
        choose_depth(card_of(ROWS), status_of(ROWS), HERE, **budget)


def test_times_of_another_device_do_not_count():
    card = card_of(ROWS)
    with pytest.raises(
        ValueError,
        match=r"no times were measured on this device \(a phone\), only on this machine: measure "
        r"them with `stepwell cost RUN --save`",
    ):
        choose_depth(card, status_of(ROWS), "a phone", ms=9)
    assert choose_depth(card, status_of(ROWS), "a phone", macs=15) == "8"
    slower = {d: {"ms": 10 * ms, "macs": macs} for d, (ms, macs, _) in ROWS.items()}
    both = card.with_costs(slower, "a phone")
    assert choose_depth(both, status_of(ROWS), "a phone", ms=10) == "8"
    assert choose_depth(both, status_of(ROWS), HERE, ms=10) == "20"


def test_what_was_never_measured_is_said_to_be_unknown():
    with pytest.raises(ValueError, match="the trained depths have no measured accuracy: measur"):
        choose_depth(Card(), status_of(ROWS), HERE, accuracy=0.5)
    with pytest.raises(ValueError, match="only on no device"):
        choose_depth(Card(), status_of(ROWS), HERE, ms=5)


def test_a_net_reads_the_times_of_the_device_it_is_on():
    net = build("resnet20", ["8"], num_classes=3)
    net.mark("trained")
    net.card = card_of({"8": (1.0, 10, 0.7), "20": (3.0, 30, 0.8)})
    with pytest.raises(ValueError, match="only on this machine"):
        net.for_budget(ms=2)
    net.card = replace(net.card, latency={device_name(): net.card.latency[HERE]})
    assert net.for_budget(ms=2) == "8"
    assert net.for_budget(ms=5) == "20"
    assert device_name().endswith(" thread")


@pytest.fixture
def file(tmp_path):
    net = build("resnet20", ["8"], num_classes=3)
    for p in net.parameters():
        nn.init.normal_(p)
    net.mark("trained")
    net.card = Card(("a", "b", "c"), 8)
    return stepwell.save(net, tmp_path / "net.safetensors")


def test_a_new_table_leaves_the_tensors_bit_for_bit(file, tmp_path):
    before, old = load_file(file), stepwell.load(file)
    mark = fingerprint(file)
    card = old.card.with_costs({"8": COST, "20": COST}, HERE)
    rewrite_card(file, card.with_accuracy({"8": 0.5}, "4 test images"))
    rewrite_card(file, stepwell.load(file).card.with_costs({"8": COST}, "a phone"))
    after, net = load_file(file), stepwell.load(file)
    assert after.keys() == before.keys()
    assert_close(after, before, rtol=0, atol=0)
    assert set(net.card.latency) == {HERE, "a phone"}
    assert net.card.latency["a phone"] == {"8": {"ms": 1.5, "ms_low": 1.4, "ms_high": 2.0}}
    fixed = {"params": 3, "macs": 7}
    assert net.card.costs["8"] == fixed | {"accuracy": 0.5, "accuracy_on": "4 test images"}
    assert net.card.costs["20"] == fixed
    assert (net.card.classes, net.status) == (old.card.classes, old.status)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    assert fingerprint(file) == mark
    with safe_open(file, framework="pt") as opened:
        assert "latency" in json.loads(opened.metadata()["stepwell"])["card"]


def test_a_rewrite_that_fails_leaves_the_old_file(file, monkeypatch):
    before = file.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="the file is unchanged"):
        rewrite_card(file, Card())
    assert file.read_bytes() == before


def test_files_of_others_have_no_card_to_rewrite(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="no Stepwell header"):
        rewrite_card(tmp_path / "foreign", Card())


def test_a_fingerprint_is_the_networks(file):
    mark = fingerprint(file)
    net = stepwell.load(file)
    net.add_depth("14", (2, 2, 2))
    net.mark("calibrated", "14")
    stepwell.save(net, file)
    assert fingerprint(file) == mark
    net.mark("trained", "14")
    stepwell.save(net, file)
    assert fingerprint(file) != mark
    net = stepwell.load(file)
    net.card = replace(net.card, mean=(0.1, 0.1, 0.1))
    nn.init.zeros_(net.module.fc.bias)
    marks = {fingerprint(stepwell.save(net, file)), mark}
    assert len(marks) == 2


@pytest.mark.parametrize("shape", [(2, 2, 1), (2, 1, 1), (1, 2, 2)])
def test_a_fingerprint_knows_each_tensor_that_a_trained_depth_runs(shape, tmp_path):
    """The norms that a calibrated depth lends to one trained later among them."""
    net = stepwell.build("resnet20", {"c": (2, 2, 2), "t": shape}, num_classes=3)
    net.mark("trained")
    net.mark("calibrated", "c")
    file = tmp_path / "net.safetensors"
    before = fingerprint(stepwell.save(net, file))
    for name in sorted(set(net.stored_names("t").values()))[::7]:
        tensor = net.tensors()[name]  # the very memory of the net
        old = tensor.clone()
        tensor += 1
        assert fingerprint(stepwell.save(net, file)) != before, name
        tensor.copy_(old)
    net.add_depth("later", (2, 1, 2))
    net.mark("calibrated", "later")
    assert fingerprint(stepwell.save(net, file)) == before


def test_a_fingerprint_of_anothers_file_is_its_bytes(tmp_path):
    for name, write in {"s": save_file, "t": torch.save}.items():
        marks = set()
        for value in (0.0, 0.0, 1.0):
            write({"w": torch.full((1,), value)}, tmp_path / name)
            marks.add(fingerprint(tmp_path / name))
        assert len(marks) == 2
