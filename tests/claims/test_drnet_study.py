"""The study of dynamic resolution: equal passes, controls against naive ones, and its rules."""

import json

import pytest
import torch

from stepwell.claims.drnet import (
    ARMS,
    BOTH,
    CLAIMS,
    EVERY,
    FULL,
    MIDDLE,
    PRIMARY,
    STATIC,
    STUDY,
    both,
    control,
    dynamic,
)
from stepwell.claims.drnet_arms import _cascade, _choices
from stepwell.claims.judging import judge
from stepwell.claims.study import slug
from stepwell.claims.verify import verify_system
from stepwell.recipes.dynamic import Observed

pytestmark = pytest.mark.usefixtures("quick")
ORDER, COSTS = ["16", "24", "32"], torch.tensor([0.25, 0.5625, 1.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def verified(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    arms = [control(MIDDLE), both(BOTH[0]), STATIC]
    changes = {"part": "1/6"}
    record, page = verify_system(
        "drnet", changes, quick=True, seeds=1, workers=1, arms=arms, folder=folder
    )
    return record, page, folder


def test_verify_drnet_quick_runs_every_kind_of_arm(verified):
    record, page, folder = verified
    assert {*record["arms"]} == {
        STATIC, EVERY, "start", dynamic(MIDDLE), control(MIDDLE), "start, depths", both(BOTH[0]),
    }  # fmt: skip
    ids = {claim["id"] for claim in record["claims"]}
    assert ids == {
        *(f"{kind}/{MIDDLE:g}" for kind in ("random", "own", "line", "cascade", "cost")),
        "static", "useful",
    }  # fmt: skip
    assert "| controls, 0.55 |" in page.read_text()
    (unit,) = folder.glob(f"units/{slug(dynamic(MIDDLE))}-0-*")
    phases = {p.name for p in (unit / "run" / "phases").iterdir()}
    assert phases == {"joint"}  # the first one is its start's
    assert json.loads((unit / "run" / "config.json").read_text())["arguments"]["target"] == MIDDLE


def passes(arm: str) -> float:
    """Epochs at one resolution, those of its start included."""
    own = ARMS[arm]
    share = own.scaled
    several = 3 if own.arguments.get("resized", True) else 1
    if "learned" not in own.recipe:
        return share["epochs"]
    before = sum(passes(name) for name in own.needed)
    return before + several * share.get("epochs", 0) + share.get("choose_epochs", 0)


def test_all_arms_see_as_many_image_passes():
    for name, arm in ARMS.items():
        if name.startswith(("start", "controls")):
            continue
        extra = 1 if arm.arguments.get("schedule") == "imitate" else 0  # of the chooser alone
        assert passes(name) == pytest.approx(4 + extra), name


def observed(generator, count=200):
    logits = {name: torch.randn(count, 4, generator=generator) for name in ORDER}
    labels = torch.randint(4, (count,), generator=generator)
    for i, name in enumerate(ORDER):
        logits[name][torch.arange(count), labels] += 0.8 * i
    return Observed(logits, labels, torch.randint(3, (count,), generator=generator), labels)


def test_controls_are_what_they_are_called():
    generator = torch.Generator().manual_seed(0)
    fixed, chosen = observed(generator), observed(generator)
    found = _choices(fixed, chosen, ORDER, COSTS)
    right = [(fixed.logits[n].argmax(1) == fixed.labels).tolist() for n in ORDER]
    who = [2 - w for w in chosen.who.tolist()]  # choices count from the dearest
    n = len(who)
    shares = [who.count(i) / n for i in range(3)]
    assert found["cost"] == pytest.approx(sum(COSTS[i].item() for i in who) / n)
    assert found["random"] == pytest.approx(
        sum(s * sum(r) / n for s, r in zip(shares, right, strict=True))
    )
    first = [next((i for i in range(3) if right[i][k]), 0) for k in range(n)]
    assert found["oracle"] == pytest.approx(sum(right[i][k] for k, i in enumerate(first)) / n)
    assert found["oracle cost"] == pytest.approx(sum(COSTS[i].item() for i in first) / n)
    everywhere = [sum(r) / n for r in right]
    for i in range(3):  # at the cost of one resolution for all, the line is that resolution
        same = chosen._replace(who=torch.full((n,), 2 - i))
        assert _choices(fixed, same, ORDER, COSTS)["line"] == pytest.approx(everywhere[i])


def test_a_cascade_pays_for_every_resolution_it_runs():
    generator = torch.Generator().manual_seed(1)
    fixed = observed(generator, 500)
    found = _cascade(fixed, fixed, ORDER, COSTS, 0.25)
    small = (fixed.logits["16"].argmax(1) == fixed.labels).double().mean().item()
    assert found == {"cascade": pytest.approx(small), "cascade cost": pytest.approx(0.25)}
    more = _cascade(fixed, fixed, ORDER, COSTS, 1.0)
    assert small < more["cascade"]
    assert more["cascade cost"] <= 1.0 + 1e-9


def test_claims_are_judged_by_their_rules():
    """Made-up numbers: a network that costs what it should, and gains on random choices alone."""

    def result(seed, cost=0.5):
        keys = ("accuracy", "at 1", "random", "random, own", "line", "cascade", "auc")
        test = dict.fromkeys(keys, 0.6 + seed / 1000) | {"unpriced cost": cost}
        return {"test": test, "seconds": 1.0}

    results = {arm: {seed: result(seed) for seed in range(3)} for arm in ARMS}
    results[dynamic(0.4)] = {seed: result(seed + 10, 0.41) for seed in range(3)}
    results[FULL] = {seed: result(seed + 5) for seed in range(3)}
    holds = {claim["id"]: claim["holds"] for claim in judge(STUDY, results)}
    assert holds["random/0.4"]  # 1 point more
    assert not holds["random/0.55"]
    assert holds["cost/0.4"]  # 2.5 % off
    assert not holds["cost/0.55"]
    assert holds["cheaper"]  # half a point less, of one
    assert not holds["several"]
    assert holds["useful"]
    assert len(holds) == len(CLAIMS) == len(set(holds))
    assert holds.keys() >= PRIMARY
