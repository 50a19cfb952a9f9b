"""The study of dynamic resolution: equal passes, controls against naive ones, and its rules."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import datasets
from sklearn.utils import Bunch

from stepwell.claims.drnet import arms as drnet_arms
from stepwell.claims.drnet.arms import (
    at_its_cost,
    auc_of_need,
    best_cascade,
    held_to,
    two_scales,
)
from stepwell.claims.drnet.study import (
    ARMS,
    CLAIMS,
    EVERY,
    EVERY_LONGER,
    FRONTS,
    FULL,
    LONGER,
    MIDDLE,
    PLANTED,
    PRIMARY,
    STATIC,
    STUDY,
    TARGETS,
    both,
    control,
    depth,
    dynamic,
    random,
)
from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.study import slug
from stepwell.claims.kit.verify import verify_system
from stepwell.measure.choices import Observed, best_mixture

pytestmark = pytest.mark.usefixtures("quick")
DIGITS = datasets.load_digits()
ORDER, COSTS = ["16", "24", "32"], torch.tensor([0.25, 0.5625, 1.0], dtype=torch.float64)


def few_digits():
    return Bunch(**{name: DIGITS[name][:200] for name in ("images", "target")})


@pytest.fixture(scope="module")
def verified(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    arms = [control(MIDDLE), FRONTS, STATIC, PLANTED]
    changes = {"part": "1/2", "net": "resnet14", "subnets": ("8",)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drnet_arms, "load_digits", few_digits)
        patch.setattr(datasets, "load_digits", few_digits)  # twelve arms are tested on a ninth of them
        record, page = verify_system(
            "drnet", changes, quick=True, seeds=1, workers=1, arms=arms, folder=folder
        )
    return record, page, folder


@pytest.mark.long
def test_verify_drnet_quick_runs_every_kind_of_arm(verified):
    record, page, folder = verified
    assert {*record["arms"]} == {
        STATIC, EVERY, "start", dynamic(MIDDLE), random(MIDDLE), control(MIDDLE), "start, depths",
        both(MIDDLE), "start, depths alone", depth(MIDDLE), FRONTS, PLANTED,
    }  # fmt: skip
    ids = {claim["id"] for claim in record["claims"]}
    assert ids == {
        *(f"{kind}/{MIDDLE:g}" for kind in ("random", "fixed-line", "cascade")), "own", "cost",
        *(f"both/{what}" for what in ("resolution", "depth")),
        "static", "useful", "useful/doubt", "planted/line",
    }  # fmt: skip
    assert "| controls, 0.55 |" in page.read_text()
    (unit,) = folder.glob(f"units/{slug(dynamic(MIDDLE))}-0-*")
    phases = {p.name for p in (unit / "run" / "phases").iterdir()}
    assert phases == {"joint"}  # the first one is its start's
    assert json.loads((unit / "run" / "config.json").read_text())["arguments"]["target"] == MIDDLE


def passes(arm: str) -> float:
    """Passes in epochs at one resolution, those of its start included; without gradient a third."""
    own = ARMS[arm]
    given = own.all_arguments(STUDY.common)
    if "learned" not in own.recipe:
        return given["epochs"]
    several = 3 if given.get("resized", True) else 1
    schedule = given.get("schedule", "joint")
    if schedule == "resolutions":
        return several * given["epochs"]
    if schedule == "doubt":
        apart = given["gate_fraction"]
        return several * (1 - apart) * given["epochs"] + (apart or 1) * given["choose_epochs"]
    mixing = given.get("mixing", "expected")
    an_epoch = {"expected": 1 + 0.25 * several / 3, "all": several}.get(mixing, 1)
    if schedule == "imitate":
        an_epoch = several / 3
    return sum(passes(name) for name in own.needed) + an_epoch * given["choose_epochs"]


def test_all_arms_see_as_many_image_passes():
    whole = 4 * STUDY.common["epochs"]
    for name in ARMS:
        if not name.startswith(("start", "controls", FRONTS, PLANTED)) and LONGER not in name:
            assert passes(name) == pytest.approx(whole, rel=0.03), name


def test_longer_arms_see_as_many_images_as_full_size_alone():
    chosen, by_chance = (ARMS[name(LONGER)] for name in (dynamic, random))
    (start,) = {name for arm in (chosen, by_chance) for name in arm.needed}
    images = [
        sum(ARMS[name].all_arguments(STUDY.common)[key] for name, key in arms)
        for arms in (
            [(FULL, "epochs")],
            [(EVERY_LONGER, "epochs")],
            [(start, "epochs"), (dynamic(LONGER), "choose_epochs")],
            [(start, "epochs"), (random(LONGER), "choose_epochs")],
        )
    ]
    assert len(set(images)) == 1
    # the steps are as many, too: batches of the recipe's own size
    assert not any("batch_size" in ARMS[n].all_arguments(STUDY.common) for n in (start, EVERY_LONGER))


def observed(generator, count=200):
    logits = {name: torch.randn(count, 4, generator=generator) for name in ORDER}
    labels = torch.randint(4, (count,), generator=generator)
    for i, name in enumerate(ORDER):
        logits[name][torch.arange(count), labels] += 0.8 * i
    who = torch.randint(3, (count,), generator=generator)
    return Observed(logits, labels, who, who, torch.full((3,), 1 / 3))


def test_controls_are_what_they_are_called():
    generator = torch.Generator().manual_seed(0)
    fixed, chosen, by_chance = (observed(generator) for _ in range(3))
    alone = COSTS - 0.1  # without the chooser, which other ways do not need
    found = at_its_cost(fixed, chosen, by_chance, ORDER, COSTS, alone)
    who = [2 - w for w in chosen.who.tolist()]  # choices count from the dearest
    n = len(who)
    shares = [who.count(i) / n for i in range(3)]
    assert found["cost"] == pytest.approx(sum(COSTS[i].item() for i in who) / n)
    for name, seen in (("random", by_chance), ("random, own", chosen)):
        right = [(seen.logits[n].argmax(1) == seen.labels).tolist() for n in ORDER]
        expected = sum(s * sum(r) / n for s, r in zip(shares, right, strict=True))
        assert found[name] == pytest.approx(expected)
    right = [(fixed.logits[n].argmax(1) == fixed.labels).tolist() for n in ORDER]
    first = [next((i for i in range(3) if right[i][k]), 0) for k in range(n)]
    assert found["oracle"] == pytest.approx(sum(right[i][k] for k, i in enumerate(first)) / n)
    assert found["oracle cost"] == pytest.approx(sum(alone[i].item() for i in first) / n)
    everywhere = torch.tensor([sum(r) / n for r in right], dtype=torch.float64)
    assert found["line"] == best_mixture(everywhere, alone, found["cost"])
    assert found["line, own"] > found["random, own"]


def test_prices_are_found_on_validation_images_and_tell_of_test_ones():
    """Two images each; at half the cost one of the two may have the costly choice."""
    costs = torch.tensor([1.0, 0.2], dtype=torch.float64)
    scores = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    right = torch.tensor([[True, False], [True, False]])
    others = torch.tensor([[0.5, 0.0], [0.2, 0.0]])  # both prefer the costly choice by less
    found = held_to((0.1, 0.6, 1.0), (scores, right), (others, right), costs)
    assert [*found] == [0.6, 1.0]  # no choice costs a tenth
    # a price between 1 / 0.8 and 3 / 0.8 spends 0.6 on validation images, and all of it takes both here
    assert (found[0.6].accuracy, found[0.6].cost) == (0.0, pytest.approx(0.2))
    assert (found[1.0].accuracy, found[1.0].cost) == (1.0, pytest.approx(1.0))


def test_need_of_full_size_is_told_by_pairs():
    """The share of pairs of an image that needs it and one that does not which a score has in order."""
    generator = torch.Generator().manual_seed(3)
    seen = observed(generator, 60)
    score = torch.randn(60, generator=generator).round(decimals=1)
    small, full = ((seen.logits[n].argmax(1) == seen.labels).tolist() for n in ("16", "32"))
    needs = [f and not s for f, s in zip(full, small, strict=True)]
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, yes in zip(score.tolist(), needs, strict=True) if yes
        for b, other in zip(score.tolist(), needs, strict=True) if not other
    ]  # fmt: skip
    assert auc_of_need(score, seen, ORDER) == pytest.approx(sum(pairs) / len(pairs))
    assert auc_of_need(torch.tensor(needs).double(), seen, ORDER) == 1


def test_a_mixture_may_leave_a_bad_resolution_out():
    costs = torch.tensor([0.2, 0.6, 1.0])
    straight = torch.tensor([0.5, 0.7, 0.9])
    sagging = torch.tensor([0.5, 0.55, 0.9])
    assert best_mixture(straight, costs, 0.4) == pytest.approx(0.6)
    assert best_mixture(sagging, costs, 0.6) == pytest.approx(0.7)  # of the ends alone
    assert best_mixture(torch.tensor([0.5, 0.8, 0.6]), costs, 0.9) == pytest.approx(0.8)
    for i in range(3):  # at the cost of one resolution it is that resolution
        assert best_mixture(straight, costs, float(costs[i])) == pytest.approx(float(straight[i]))


def sure_of(rows, labels):
    """What gives these classes with these probabilities, by resolution."""
    logits = {}
    for name, row in zip(ORDER, rows, strict=True):
        probability = torch.tensor([p for _, p in row])
        logits[name] = torch.stack([(1 - probability) / 3] * 4, 1).log()
        for i, (label, p) in enumerate(row):
            logits[name][i, label] = torch.tensor(p).log()
    none = torch.zeros(len(labels), dtype=torch.long)
    return Observed(logits, torch.tensor(labels), none, none, torch.full((3,), 1 / 3))


def test_a_cascade_pays_for_every_resolution_it_runs():
    """Four images: all are sure of two, and only full size is right in the others."""
    small = [(0, 0.9), (1, 0.9), (0, 0.4), (0, 0.4)]
    middle = [(0, 0.9), (1, 0.9), (0, 0.4), (0, 0.4)]
    full = [(0, 0.9), (1, 0.9), (2, 0.9), (3, 0.9)]
    fixed = sure_of([small, middle, full], [0, 1, 2, 3])
    found = best_cascade(fixed, fixed, ORDER, COSTS, 0.76)
    # two images at 0.25, two at 0.25 + 1: 0.75; with the middle one on the way it were 1.03
    assert found == {"cascade": pytest.approx(1.0), "cascade cost": pytest.approx(0.75)}
    least = best_cascade(fixed, fixed, ORDER, COSTS, 0.25)
    assert least == {"cascade": pytest.approx(0.5), "cascade cost": pytest.approx(0.25)}


def test_the_planted_images_are_digits_at_two_scales(tmp_path):
    folder = two_scales(tmp_path / "data")
    files = sorted(folder.rglob("*.png"))
    assert len(files) == 2 * 1797
    for large in (f for f in files[:40] if f.stem.endswith("-large")):
        small = large.with_name(large.name.replace("large", "small"))
        pixels, whole = (np.asarray(Image.open(f).convert("L")) for f in (small, large))
        rows, columns = np.nonzero(pixels)
        assert np.ptp(rows) < 8
        assert np.ptp(columns) < 8
        assert np.count_nonzero(whole) > 5 * np.count_nonzero(pixels)
    train, test = [
        {f.stem.split("-")[0] for f in (folder / part).rglob("*.png")} for part in ("train", "test")
    ]
    assert not train & test


def test_claims_are_judged_by_their_rules():
    """Made-up numbers: a network that costs what it should, and gains on random choices alone."""

    def result(seed, cost=0.5):
        keys = (
            "accuracy", "at 1", "random", "random, own", "line", "line, own", "cascade", "auc",
            "auc of doubt", *(f"{what} at {cost:g}" for what in ("both", "depth", "resolution")
                              for cost in TARGETS),
        )  # fmt: skip
        costs = {"sampled cost": cost, "unpriced cost": 0.9}
        test = dict.fromkeys(keys, 0.6 + seed / 1000) | costs
        return {"test": test, "seconds": 1.0}

    results = {arm: {seed: result(seed) for seed in range(3)} for arm in ARMS}
    results[dynamic(MIDDLE)] = {seed: result(seed + 10, 0.56) for seed in range(3)}
    results[FULL] = {seed: result(seed + 5) for seed in range(3)}
    holds = {c["id"]: c["verdict"] == "holds" for c in judge(STUDY, results)}
    assert holds["random/0.55"]  # 1 point more
    assert not holds["random/longer"]
    assert holds["cost"]  # 1.8 % off
    assert holds["cheaper"]  # half a point more
    assert holds["cheaper/longer"]  # half a point less, of one
    assert not holds["several"]
    assert holds["useful"]
    assert len(holds) == len(CLAIMS) == len(set(holds))
    assert holds.keys() >= set(PRIMARY)
