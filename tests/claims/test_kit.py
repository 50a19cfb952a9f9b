import json

import pytest
from scipy import stats

from stepwell.claims.kit import source_digest as sources
from stepwell.claims.kit.judging import interval, judge, summary
from stepwell.claims.kit.measures import of_test_if_any
from stepwell.claims.kit.page import render
from stepwell.claims.kit.study import Arm, Claim, Study, run_study
from stepwell.claims.kit.verify import verify_system
from stepwell.console import show_claims, sized


def test_the_interval_is_students():
    values = [1.0, 1.4, 0.7, 1.1]
    got = stats.t.interval(0.9, 3, loc=1.05, scale=stats.sem(values))
    assert interval(values) == pytest.approx(got)
    assert interval([1.0]) == (None, None)
    assert summary([1.0]) == {"values": [1.0], "mean": 1.0, "std": 0.0, "n": 1}


@pytest.mark.parametrize(
    ("values", "below", "holds"),
    [
        ([1.0, 1.1, 1.2], False, True),
        ([1.0, -3.0, 4.0], False, False),
        ([-1.0, -1.1, -1.2], True, True),
        ([1.0], False, None),
    ],
)
def test_a_claim_holds_when_its_whole_interval_does(values, below, holds):
    results = {"a": {i: {"x": v, "seconds": 2.0} for i, v in enumerate(values)}}
    claim = Claim(
        "c", "t", "p", "u", {"a": lambda r: r["a"]["x"]}, lambda r: r["a"]["x"], 0.0, below
    )
    study = Study("s", {}, [claim], {}, {}, lambda common: "")
    judged = judge(study, results)[0]
    assert judged["holds"] is holds
    assert judged["seconds"] == 2.0 * len(values)
    assert judged["measured"]["a"]["values"] == values
    assert ("one seed" in judged["note"]) == (holds is None)


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
    judged = judge(Study("s", arms, claims, {}, {}, lambda common: ""), results)
    assert [c["id"] for c in judged] == ["a", "ab"]  # bc share one seed, what d needs was not run
    assert [c["measured"]["a"]["values"] for c in judged] == [[0.0, 1.0, 2.0], [1.0, 2.0]]
    assert [c["difference"]["n"] for c in judged] == [3, 2]
    assert [c["seconds"] for c in judged] == [3.0, 4.0]


def test_a_measure_that_an_arm_lacks_is_an_error_not_a_claim_left_out():
    claim = Claim("c", "t", "p", "u", {}, lambda r: r["a"]["y"], 0.0)
    study = Study("s", {}, [claim], {}, {}, lambda common: "")
    with pytest.raises(KeyError, match="y"):
        judge(study, {"a": {0: {"x": 1.0, "seconds": 1.0}}})


def test_a_claim_about_what_the_data_has_none_of_is_left_out():
    measure = of_test_if_any("a", "new/mrr", 100)
    claim = Claim("c", "t", "p", "u", {}, measure, 0.0)
    study = Study("s", {}, [claim], {}, {}, lambda common: "")

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
    study = Study("s", arms, [], {}, {}, lambda common: "")

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
    taking = study._replace(arms={"b": Arm(f"{__name__}:a_unit_of_data")})
    with pytest.raises(ValueError, match="no data here"):
        run_study(taking, study.common, [3], tmp_path, workers=0, done=lambda *_: None)


def test_the_page_and_the_table_show_every_claims_arms_and_note(capsys):
    results = {"a": {i: {"x": v, "seconds": 1.0} for i, v in enumerate([0.0123, 0.0125, 0.0161])}}
    claim = Claim("c", "A is less", "p", "nats", {"arm a": of("a")}, lambda r: -r["a"]["x"], 0.0,
                  note="Theirs was warmer.", judged_in="nats")  # fmt: skip
    judged = judge(Study("s", {}, [claim], {}, {}, lambda common: ""), results)
    record = dict.fromkeys(("system", "command", "date", "commit", "hardware", "note"), "")
    record |= {"quick": False, "arguments": {}, "versions": {}, "arms": {}, "seconds": 1.0}
    record |= {"claims": judged, "not_run": []}
    page = render(record, "p.svg")
    assert (
        "| 1 | A is less | p | -0.0136 nats | -0.0172 to -0.0100 | 3 | 0.0 | **does not hold** |"
        in page
    )
    assert "\n1. arm a: 0.0136 ± 0.0021 (nats). Theirs was warmer.\n" in page
    show_claims(record)
    printed = capsys.readouterr().out
    assert "measured: -0.0136 nats (90 %: -0.0172 to -0.0100), margin 0.0: does not hold" in printed
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
    assert sources.source_digest("stepwell.a") != first


ARMS = ["20 < 32, EKD two phases", "20, offline KD", "8 < 14 < 20 < 32, ADN-like"]


def quick(folder, arms=ARMS):
    return verify_system("ekd", {}, quick=True, seeds=3, workers=1, folder=folder, arms=arms)


@pytest.mark.filterwarnings("ignore:the full net is not watched")
def test_verify_ekd_quick_runs_and_goes_on_where_it_stopped(tmp_path):
    record, page = quick(tmp_path)
    assert set(record["arms"]) == {*ARMS, "32 alone"}  # what they need runs, too
    results = [m for arm in record["arms"].values() for n, m in arm.items() if "accuracy" in n]
    assert all(0 <= m["mean"] <= 1 for m in results)
    assert {c["id"] for c in record["claims"]} == {
        "offline-kd/2-depths/ekd-two-phases",
        "offline-kd-cost/2-depths/ekd-two-phases",
        "full-net-unharmed/2-depths/ekd-two-phases",
        "plain/file",
    }  # those about arms that ran
    missing = {claim["id"] for claim in record["not_run"]}
    assert "kl-helps" in missing
    assert not missing & {c["id"] for c in record["claims"]}
    assert "- primary: Soft targets, of both depths, help the sub-net" in page.read_text()
    assert all(claim["holds"] is None for claim in record["claims"])  # one seed
    assert json.loads((tmp_path / "claims.json").read_text()) == record
    assert page.read_text() == render(record, "ekd.svg")
    assert "its numbers mean nothing" in page.read_text()
    picture = (tmp_path / "ekd.svg").read_text()
    assert all(arm.replace("<", "&lt;") in picture for arm in record["arms"])
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}
    again, _ = quick(tmp_path)
    assert again["claims"] == record["claims"]
    assert len(stamps) == 4
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}


def test_an_unknown_arm_is_named_with_all_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"no arm '21\*'; there are: 32 alone; 20 alone; "):
        quick(tmp_path, ["21*"])


@pytest.mark.parametrize(
    ("system", "seeds", "message"),
    [("nothing", 1, "no system 'nothing' to verify; there are ekd"), ("ekd", 0, "--seeds")],
)
def test_what_cannot_be_verified(tmp_path, system, seeds, message):
    with pytest.raises(ValueError, match=message):
        verify_system(system, {}, quick=True, seeds=seeds, workers=1, folder=tmp_path)
