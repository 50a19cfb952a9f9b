import json

import pytest
from scipy import stats

from stepwell.claims import sources
from stepwell.claims.page import render
from stepwell.claims.study import Claim, Study, interval, judge, summary
from stepwell.claims.verify import verify_system


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
