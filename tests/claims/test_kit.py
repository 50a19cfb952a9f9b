import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from scipy import stats

from stepwell.claims import CLAIMS
from stepwell.claims.ekd import STUDY
from stepwell.claims.kit import source_digest as sources
from stepwell.claims.kit.inference import (
    Spread,
    equal_spreads,
    interval,
    pooled_spread,
    power,
    seeds_needed,
    simultaneous,
    summary,
    verdict_of,
)
from stepwell.claims.kit.judging import elsewhere, judge
from stepwell.claims.kit.measures import of_test_if_any
from stepwell.claims.kit.page import render
from stepwell.claims.kit.study import Arm, Claim, Column, Question, Study, run_study
from stepwell.claims.kit.verify import verify_system
from stepwell.console import show_claims, sized


def test_the_interval_is_students():
    values = [1.0, 1.4, 0.7, 1.1]
    own = summary(values)
    got = stats.t.interval(0.9, 3, loc=1.05, scale=stats.sem(values))
    assert interval(own["mean"], 4, Spread(own["std"], 3), 0.9) == pytest.approx(got)
    assert summary([1.0]) == {"values": [1.0], "mean": 1.0, "std": 0.0, "n": 1}


PAIR = {"a": 1.0, "b": -1.0}


def test_the_spread_of_one_pair_is_its_own():
    assert pooled_spread([[0.0, 1.0, 2.0]], [PAIR]) == pytest.approx((1.0, 2.0))


def test_pairs_that_share_no_arm_add_their_degrees_of_freedom():
    # variances 1 and 3 of 3 seeds each, and 8 of 2 seeds: (2 · 1 + 2 · 3 + 1 · 8) / 5 = 3.2
    differences = [[0.0, 1.0, 2.0], [1.0, 1.0, 4.0], [0.0, 4.0]]
    contrasts = [{f"a{i}": 1.0, f"b{i}": -1.0} for i in range(3)]
    std, df = pooled_spread(differences, contrasts)
    assert std == pytest.approx(3.2**0.5)
    assert df == pytest.approx(5.0)


def test_pairs_that_share_an_arm_have_fewer_degrees_of_freedom():
    # covariances [[2, 1], [1, 2]]: (2 · 2 + 2 · 2)² / (2 · 4 + 2 · 1 + 2 · 1 + 2 · 4) = 64 / 20
    std, df = pooled_spread([[0.0, 1.0, 2.0], [1.0, 1.0, 4.0]], [{"a": 1, "c": -1}, {"b": 1, "c": -1}])
    assert std == pytest.approx(2.0**0.5)
    assert df == pytest.approx(3.2)
    # one pair twice is one pair
    assert pooled_spread([[0.0, 1.0, 2.0]] * 2, [PAIR] * 2).df == pytest.approx(2.0)


def test_a_pair_of_arms_counts_once_in_a_pool_whatever_its_direction_and_measure():
    first, other = [0.0, 1.0, 2.0], [1.0, 1.0, 4.0]  # variances 1 and 3
    turned, another = {"a": -1.0, "b": 1.0}, {"c": 1.0, "d": -1.0}
    twice = pooled_spread([first, first[::-1], other], [PAIR, turned, another])
    assert twice == pytest.approx(pooled_spread([first, other], [PAIR, another]))
    # two measures of one pair have one vote: (2 · (1 + 3) / 2 + 2 · 3) / 4 = 2.5
    std, df = pooled_spread([first, other, other], [PAIR, PAIR, another])
    assert (std**2, df) == pytest.approx((2.5, 4.0))


def test_spreads_are_compared_by_bartletts_test_each_set_of_numbers_once():
    even, uneven = [0.0, 1.0, 2.0], [0.0, 100.0, -100.0]
    assert equal_spreads([even, even]) is equal_spreads([even]) is None
    assert equal_spreads([even, [1.0, 1.0, 4.0]]) == pytest.approx(
        stats.bartlett(even, [1.0, 1.0, 4.0]).pvalue
    )
    assert equal_spreads([even, uneven]) < 0.05
    assert equal_spreads([even, [1.0, 1.0, 1.0]]) == 0


def test_claims_that_do_not_vary_alike_keep_the_wider_of_both_intervals():
    results = {
        "a": of_seeds(1.0, 2.0, 3.0),
        "b": of_seeds(0.0, 100.0, -100.0),
        "c": of_seeds(0.0, 0.0, 0.0),
    }
    claims = [
        Claim(name, name, "p", "u", {}, lambda r, n=name: r[n]["x"] - r["c"]["x"]) for name in "ab"
    ]
    even, uneven = (one["difference"] for one in judge(study_of(*claims), results))
    assert even["equal_spreads"] == uneven["equal_spreads"] < 0.05
    pooled = Spread(even["pooled_std"], even["df"])
    assert (even["low"], even["high"]) == pytest.approx(interval(2.0, 3, pooled, 0.9))
    assert (uneven["low"], uneven["high"]) == pytest.approx(interval(0.0, 3, Spread(100.0, 2), 0.9))
    alike = judge(study_of(claims[0]), results)[0]["difference"]
    assert alike["equal_spreads"] is None


def test_several_intervals_are_right_together_at_a_higher_level_each():
    assert simultaneous(1) == simultaneous(0) == pytest.approx(0.9)
    assert simultaneous(3) == pytest.approx(1 - 0.1 / 3)


@pytest.mark.parametrize(
    ("low", "high", "below", "verdict"),
    [
        (0.1, 2.0, False, "holds"),
        (-2.0, -0.1, False, "refuted"),
        (-2.0, -0.1, True, "holds"),
        (0.1, 2.0, True, "refuted"),
        (-0.1, 0.1, False, "not decided"),
        (-0.1, 0.1, True, "not decided"),
        (0.0, 0.1, False, "not decided"),  # an end on the margin
        (math.nan, math.nan, False, "not decided"),
        (math.nan, math.nan, True, "not decided"),
    ],
)
def test_a_verdict_is_the_side_of_the_margin(low, high, below, verdict):
    assert verdict_of(low, high, 0.0, below) == verdict
    assert verdict_of(low + 5, high + 5, 5.0, below) == verdict


def test_power_is_that_of_students_test():
    # one-sided, 5 %: textbooks have 8 pairs for a difference of one standard deviation, 27 for a half
    assert seeds_needed(1.0, 1.0) == 8
    assert seeds_needed(-0.5, 1.0) == 27
    assert power(1.0, 8, Spread(1.0, 7)) == pytest.approx(0.815, abs=0.001)
    assert power(1.0, 7, Spread(1.0, 6)) < 0.8
    # a spread that is known from many pairs: (1.645 + 0.842)² = 6.2 by the normal distribution
    assert seeds_needed(1.0, 1.0, pairs=1000.0) == 7
    assert power(0.0, 5, Spread(1.0, 4)) == pytest.approx(0.05)
    assert seeds_needed(0.001, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(1.0, 1.0, level=simultaneous(3)) > 8


def study_of(*claims, arms=None, **options):
    return Study("s", arms or {}, claims, {}, {}, lambda common: "", **options)


@pytest.mark.parametrize(
    ("values", "below", "verdict"),
    [
        ([1.0, 1.1, 1.2], False, "holds"),
        ([1.0, -3.0, 4.0], False, "not decided"),
        ([-1.0, -1.1, -1.2], False, "refuted"),
        ([-1.0, -1.1, -1.2], True, "holds"),
        ([1.0], False, "not decided"),
        ([1.0, math.nan, 1.2], False, "not decided"),
    ],
)
def test_a_claim_is_judged_by_its_interval(values, below, verdict):
    results = {"a": {i: {"x": v, "seconds": 2.0} for i, v in enumerate(values)}}
    claim = Claim("c", "t", "p", "u", {"a": of("a")}, of("a"), 0.0, below)
    (judged,) = judge(study_of(claim), results)
    assert judged["verdict"] == verdict
    assert judged["seconds"] == 2.0 * len(values)
    assert judged["measured"]["a"]["values"] == values
    assert ("One seed" in judged["note"]) == (len(values) == 1)
    side = "below" if below else "above"
    assert judged["text"] == f"t: the interval lies {side} 0 points."


def of_seeds(*values):
    return {seed: {"x": value, "seconds": 1.0} for seed, value in enumerate(values)}


def test_claims_of_one_pool_share_their_spread_and_primary_ones_a_higher_level():
    results = {
        "a": of_seeds(1.0, 2.0, 3.0),
        "b": of_seeds(0.0, 2.0, 4.0),
        "c": of_seeds(0.0, 0.0, 0.0),
    }
    claims = [
        Claim(name, name, "p", "u", {}, lambda r, n=name: r[n]["x"] - r["c"]["x"]) for name in "ab"
    ]
    judged = judge(study_of(*claims, primary=("a", "b")), results)
    for one, own in zip(judged, (1.0, 2.0), strict=True):
        difference = one["difference"]
        assert difference["std"] == pytest.approx(own)
        assert difference["pooled_std"] == pytest.approx(2.5**0.5)
        assert difference["df"] == pytest.approx(3.2)
        expected = interval(2.0, 3, Spread(2.5**0.5, 3.2), 0.95)
        assert (difference["low"], difference["high"]) == pytest.approx(expected)
        assert one["planned"]["to_decide"] == seeds_needed(2.0, 2.5**0.5, 1.6, 0.95)
    alone = judge(study_of(claims[0]._replace(pool="another"), claims[1]), results)
    assert [one["difference"]["pooled_std"] for one in alone] == pytest.approx([1.0, 2.0])


def test_a_study_refuses_more_than_three_primary_claims():
    study_of(primary=("a", "b", "c"))
    with pytest.raises(ValueError, match="names 4 primary claims; at most 3 can decide"):
        study_of(primary=("a", "b", "c", "d"))


HERE, THERE = {"machine": "X, 1 thread", "torch": "2"}, {"machine": "Y, 1 thread", "torch": "2"}


@pytest.mark.parametrize(
    ("of_b", "why"),
    [
        (HERE, ""),
        ({}, ""),  # units of before say nothing
        (THERE, "on another machine"),
        ({"torch": "3"}, "with another torch"),
        ({"code": {"recipe": "2", "other": "3"}}, "by other code"),
        ({"code": {"other": "3"}}, ""),
        (THERE | {"data": "other"}, "on another machine, on other data"),
    ],
)
def test_units_of_two_machines_or_codes_are_no_pair(of_b, why):
    here = HERE | {"code": {"recipe": "1"}, "data": "this"}
    trained = {"a": here, "b": of_b, "c": here}
    results = {
        arm: {s: {"x": float(s), "seconds": 1.0, "trained_on": where} for s in range(3)}
        for arm, where in trained.items()
    }
    claims = [
        Claim(name, name, "p", "u", {}, lambda r, n=name: 9 + r["a"]["x"] - r[n]["x"] / 2)
        for name in "bc"
    ]
    marked, other = judge(study_of(*claims), results)
    assert other["verdict"] == "holds"
    assert marked["verdict"] == ("not decided" if why else "holds")
    assert (f"Not a pair: trained {why}." in marked["note"]) == bool(why)
    assert (marked["difference"]["low"] is None) == bool(why)
    assert marked["difference"]["mean"] == pytest.approx(9.5)
    assert other["difference"]["df"] == pytest.approx(2.0 if why else 3.2)


def test_arms_that_were_trained_elsewhere_are_named():
    def units(**where):
        return {0: {"trained_on": HERE | where}}

    results = {
        "a": units(),
        "b": units(),
        "c": units(machine="Z, 1 thread", code={"commit": "f00"}),
    }
    results["a"][0]["trained_on"] = HERE | {"code": {"recipe": "1"}}  # of one function
    assert elsewhere(results) == {"c": "trained on another machine (Z, 1 thread)"}
    assert elsewhere({"a": units(), "b": units()}) == {}


def of(arm):
    return lambda r: r[arm]["x"]


def test_a_claim_is_judged_on_the_seeds_that_its_arms_share():
    def seeds(*those):
        return {seed: {"x": float(seed), "seconds": 1.0} for seed in those}

    results = {"a": seeds(0, 1, 2), "b": seeds(1, 2), "c": seeds(2), "d": seeds(0, 1, 2)}
    arms = {"d": Arm("supervised", {}, {"init": "e"}), "e": Arm("supervised")}
    claims = [
        Claim(name, name, "p", "u", {n: of(n) for n in name}, of(name[0]), 0.5)
        for name in ("a", "ab", "bc", "d")
    ]
    judged = judge(study_of(*claims, arms=arms), results)
    assert [c["id"] for c in judged] == ["a", "ab"]  # bc share one seed, what d needs was not run
    assert [c["measured"]["a"]["values"] for c in judged] == [[0.0, 1.0, 2.0], [1.0, 2.0]]
    assert [c["difference"]["n"] for c in judged] == [3, 2]
    assert [c["seconds"] for c in judged] == [3.0, 4.0]


def test_a_measure_that_an_arm_lacks_is_an_error_not_a_claim_left_out():
    claim = Claim("c", "t", "p", "u", {}, lambda r: r["a"]["y"], 0.0)
    study = study_of(claim)
    with pytest.raises(KeyError, match="y"):
        judge(study, {"a": {0: {"x": 1.0, "seconds": 1.0}}})


def test_a_claim_about_what_the_data_has_none_of_is_left_out():
    measure = of_test_if_any("a", "new/mrr", 100)
    claim = Claim("c", "t", "p", "u", {}, measure, 0.0)
    study = study_of(claim)

    def judged(**test):
        return judge(study, {"a": {0: {"test": test, "seconds": 1.0}}})

    assert judged() == []
    assert judged(**{"new/mrr": 0.5})[0]["difference"]["values"] == [50.0]


def a_unit(*, out, seed=0):
    """A recipe that takes no time."""
    return {"test": {"x": float(seed)}, "seconds": 0.0, "cpu_seconds": 0.0}


def a_unit_of_data(*, out, data, seed):
    return a_unit(out=out, seed=seed)


def test_units_that_are_read_do_not_count_as_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("stepwell.claims.kit.study.source_digest", lambda module: "code")
    arms = {name: Arm(f"{__name__}:a_unit") for name in "ab"}
    study = study_of(arms=arms)

    def told(seeds):
        heard = []

        def done(arm, seed, result, new, ahead):
            heard.append((arm, seed, new, ahead))

        run_study(study, {}, seeds, tmp_path, workers=0, done=done)
        return heard

    assert told([1]) == [("a", 1, 1, 1), ("b", 1, 2, 0)]
    assert told([0, 1]) == [("a", 0, 1, 1), ("b", 0, 2, 0), ("a", 1, 2, 0), ("b", 1, 2, 0)]


def test_the_data_is_not_asked_for_where_no_arm_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("stepwell.claims.kit.study.source_digest", lambda module: "code")

    def missing(arguments):
        raise ValueError("no data here")

    study = Study("s", {"a": Arm(f"{__name__}:a_unit")}, [], {"data": "far"}, {}, missing)
    results = run_study(study, study.common, [3], tmp_path, workers=0, done=lambda *_: None)
    assert results["a"][3]["test"] == {"x": 3.0}
    taking = replace(study, arms={"b": Arm(f"{__name__}:a_unit_of_data")})
    with pytest.raises(ValueError, match="no data here"):
        run_study(taking, study.common, [3], tmp_path, workers=0, done=lambda *_: None)


def test_the_page_and_the_table_show_every_claims_arms_note_and_plan(capsys):
    values = [0.0123, 0.0125, 0.0161]
    results = {
        "a": {i: {"x": v, "seconds": 1.0, "test": {"x": v}} for i, v in enumerate(values)},
        "b": of_seeds(0.0, 0.0, 0.0),
    }
    first = Claim("c", "A is less", "p", "nats", {"arm a": of("a")}, lambda r: -r["a"]["x"], 0.0,
                  note="Theirs was warmer.", judged_in="nats")  # fmt: skip
    second = first._replace(id="d", text="A is near", margin=-0.0125)
    study = study_of(
        first, second, arms={"a": Arm("supervised", title="our arm")}, primary=("c",),
        questions=[Question("Is it near?", ("a",), ("d",), [Column("x", "its x", 1.0, ".4f")])],
    )  # fmt: skip
    record = dict.fromkeys(("system", "command", "date", "commit", "hardware", "note"), "")
    record |= {"quick": False, "arguments": {}, "versions": {}, "seconds": 1.0, "not_run": []}
    record |= {"arms": {"a": {"x": summary(values), "seconds": summary([1.0] * 3)}}}
    record |= {
        "elsewhere": {"a": "trained on another machine (Z)"},
        "claims": judge(study, results),
    }
    page = render(record, study, "p.svg")
    primary, exploratory = page.split("## Is it near?")
    row = "| -0.0136 nats | -0.0172 to -0.0100 | 3 | 0.0021 | 0.0021 (2.0) | **refuted** |  |"
    assert f"A is less: the interval lies above 0 nats. | p {row}" in primary
    assert "\n1. arm a: 0.0136 ± 0.0021 (nats). Theirs was warmer.\n" in primary
    seeds = seeds_needed(-0.0136333 + 0.0125, summary(values)["std"])
    assert f"| **not decided** | {seeds} seeds |" in exploratory
    assert "| our arm † | 3 | 0.0136 ± 0.0021 |" in exploratory
    assert "† trained on another machine (Z)" in exploratory
    show_claims(record)
    printed = " ".join(capsys.readouterr().out.split())
    assert "measured: -0.0136 nats (90 %: -0.0172 to -0.0100), margin 0: refuted" in printed
    assert f"margin -0.0125: not decided; {seeds} seeds would decide with 80 % power" in printed
    assert "note: Theirs was warmer." in printed


@pytest.mark.parametrize(
    ("unit", "values", "written"),
    [
        ("points", (-0.004, 12.345), ["0.00", "12.35"]),
        ("% accuracy", (77.166,), ["77.17"]),
        ("nats", (-0.004, 0.00123), ["-0.00400", "0.00123"]),
        ("", (0.0, 0.0512), ["0.0000", "0.0512"]),
        ("s", (26034.7, 3.2), ["26035", "3"]),
        ("distance", (1.5e-10,), ["1.50e-10"]),
        ("nats", (0.0,), ["0.00"]),
        ("nats", (float("nan"), float("inf")), ["nan", "inf"]),
    ],
)
def test_numbers_have_as_many_digits_as_their_unit_and_size_ask_for(unit, values, written):
    assert sized(unit, *values) == written


def test_code_counts_and_comments_do_not(tmp_path, monkeypatch):
    root = tmp_path / "stepwell"
    root.mkdir()
    monkeypatch.setattr(sources, "ROOT", root)
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text("from stepwell import b\n\ndef f():\n    return b.g()\n")
    (root / "b.py").write_text("def g():\n    return 1\n")
    (root / "other.py").write_text("x = 1\n")
    first = sources.source_digest("stepwell.a")
    assert sources.imported_modules("stepwell.a") == {"stepwell", "stepwell.a", "stepwell.b"}
    (root / "b.py").write_text('"""Now documented."""\ndef g():\n    "g"\n    return 1  # one\n')
    (root / "other.py").write_text("x = 2\n")
    assert sources.source_digest("stepwell.a") == first
    (root / "b.py").write_text("def g():\n    return 2\n")
    second = sources.source_digest("stepwell.a")
    assert second != first
    (root / "kernel.c").write_text("int f(void) { return 1; }")
    assert sources.source_digest("stepwell.a") != second


ARMS = ["20 < 32, nested", "20, offline KD"]


def quick(folder, arms=ARMS):
    return verify_system(
        "ekd", {"part": "1/4"}, quick=True, seeds=1, workers=1, folder=folder, arms=arms
    )


@pytest.mark.filterwarnings("ignore:the full net is not watched")
def test_verify_ekd_quick_runs_and_goes_on_where_it_stopped(tmp_path):
    record, page = quick(tmp_path)
    assert set(record["arms"]) == {*ARMS, "32 alone"}  # what they need runs, too
    results = [m for arm in record["arms"].values() for n, m in arm.items() if "accuracy" in n]
    assert all(0 <= m["mean"] <= 1 for m in results)
    assert {c["id"] for c in record["claims"]} == {"two-offline/20"}  # the claim about arms that ran
    missing = {claim["id"] for claim in record["not_run"]}
    assert "teaching-pays" in missing
    assert not missing & {c["id"] for c in record["claims"]}
    assert "- primary: Teaching pays: against the same net on labels" in page.read_text()
    assert all(claim["verdict"] == "not decided" for claim in record["claims"])  # one seed
    assert json.loads((tmp_path / "claims.json").read_text()) == record
    assert page.read_text() == render(record, STUDY, "ekd.svg")
    assert "its numbers mean nothing" in page.read_text()
    assert "distilled one by one" in (tmp_path / "ekd.svg").read_text()
    (unit,) = tmp_path.glob("units/20--offline-KD-0-*/result.json")
    trained_on = json.loads(unit.read_text())["trained_on"]
    assert trained_on["code"].keys() == {"stepwell.recipes.distill"}
    assert trained_on["machine"].endswith("threads")
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}
    again, _ = quick(tmp_path)
    assert again["claims"] == record["claims"]
    assert len(stamps) == 3
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}


def test_a_quick_study_trains_as_many_seeds_as_it_is_told(tmp_path):
    record, _ = verify_system(
        "ekd", {"part": "1/4", "epochs": 1}, quick=True, seeds=2, workers=1, folder=tmp_path,
        arms=["32 alone"],
    )  # fmt: skip
    assert record["arms"]["32 alone"]["32/accuracy"]["n"] == 2


def test_an_unknown_arm_is_named_with_all_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"no arm '21\*'; there are: 32 alone; "):
        quick(tmp_path, ["21*"])


@pytest.mark.parametrize(
    ("system", "seeds", "message"),
    [("nothing", 1, "no system 'nothing' to verify; there are ekd"), ("ekd", 0, "--seeds")],
)
def test_what_cannot_be_verified(tmp_path, system, seeds, message):
    with pytest.raises(ValueError, match=message):
        verify_system(system, {}, quick=True, seeds=seeds, workers=1, folder=tmp_path)


@pytest.mark.parametrize("system", CLAIMS)
def test_every_exploratory_claim_answers_a_question_of_its_study(system):
    study = resolve_name(CLAIMS[system][0])
    ids = [claim.id for claim in study.claims]
    assert len(set(ids)) == len(ids)
    assert set(study.primary) <= set(ids)
    assert 0 < len(study.primary) <= 3
    patterns = [pattern for question in study.questions for pattern in question.claims]
    assert not [
        id
        for id in ids
        if id not in study.primary and not any(fnmatchcase(id, pattern) for pattern in patterns)
    ]
    arms = [pattern for question in study.questions for pattern in question.arms]
    assert all(any(fnmatchcase(arm, pattern) for arm in study.arms) for pattern in arms)
    points = [p for curve in study.plot.curves.values() for p in curve]
    assert {point.arm for point in points} <= study.arms.keys()


def failing(*, out: Path, data: str = "", seed: int = 0, wait: float = 0.0) -> dict[str, Any]:
    """An arm that fails where it does not wait."""
    time.sleep(wait)
    if not wait:
        raise ValueError("this arm fails")
    return {"seconds": wait}


def test_a_failure_is_told_before_the_other_trainings_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "stepwell.claims.kit.study._marks", lambda study, common: dict.fromkeys(arms, ("", ""))
    )
    arms = {
        "long": Arm("claims.test_kit:failing", {"wait": 2.0}),
        "bad": Arm("claims.test_kit:failing"),
    }
    with pytest.raises(ValueError, match="this arm fails"):
        run_study(study_of(arms=arms), {}, [0], tmp_path, workers=2, done=lambda *_: None)
    assert "bad, seed 0, failed, and 1 other trainings end before this" in capsys.readouterr().err


def test_workers_end_with_the_study(tmp_path):
    """A killed study leaves no worker that trains on."""
    code = (
        "import os, time\nfrom stepwell.claims.kit.study import _pool\n"
        "if __name__ == '__main__':\n"
        "    with _pool(1) as submit:\n"
        "        print(submit(os.getpid).result(), flush=True)\n"
        "        submit(time.sleep, 600).result()\n"
    )
    (tmp_path / "study.py").write_text(code)
    command = [sys.executable, str(tmp_path / "study.py")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as study:
        assert study.stdout is not None
        worker = int(study.stdout.readline())
        study.kill()
    for _ in range(200):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if (stat := Path(f"/proc/{worker}/stat")).exists() and ") Z " in stat.read_text():
            return  # it has ended, and nobody has asked for its status
        time.sleep(0.1)
    os.kill(worker, 9)
    raise AssertionError("the worker goes on")
