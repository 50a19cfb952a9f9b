"""The study of graphs that change: its snapshots, its measures and its arms."""

from functools import partial

import pytest
import torch

from stepwell.claims.dkge import (
    ADDED,
    ANEW,
    ARMS,
    CODE,
    NOTHING,
    ONLINE,
    PLAIN_NOTHING,
    PYKEEN_ROTATE,
    STUDY,
    TEXT,
)  # fmt: skip
from stepwell.claims.dkge_arms import SHARE
from stepwell.claims.snapshots import (
    Examined,
    Question,
    Snapshot,
    mean_measures,
    questions,
    read_snapshots,
)
from stepwell.claims.verify import verify_system
from stepwell.data.triples import Names, numbered


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        yield


BEFORE = Snapshot("1", [("a", "in", "x"), ("b", "in", "x"), ("c", "in", "y"), ("a", "is", "b")], [])
NOW = Snapshot(
    "2",
    [("a", "in", "y"), ("b", "in", "x"), ("c", "in", "y"), ("d", "in", "x"), ("a", "is", "b")],
    [("c", "is", "b"), ("d", "is", "b")],
)


def test_questions_are_those_whose_answer_has_changed():
    assert questions(BEFORE, NOW) == [Question(("a", "in", "y"), ("a", "in", "x"))]


def test_measures_of_a_graph_that_knows_and_of_one_that_does_not():
    entities, relations = Names("entity"), Names("relation")
    numbered([*BEFORE.train, *NOW.train], entities, relations)
    seen = Examined(entities, relations, {"a", "b", "c", "x", "y"}, BEFORE, NOW)
    true = {
        tuple(row) for row in numbered([*NOW.train, *NOW.held_out], entities, relations).tolist()
    }

    def knows(rows, side):
        found = torch.ones(len(rows), len(entities))
        for i, (h, r, t) in enumerate(rows.tolist()):
            for e in range(len(entities)):
                found[i, e] = ((h, r, e) if side == "tail" else (e, r, t)) not in true
        return found

    best = seen.measures(knows)
    assert {best[k] for k in ("old/mrr", "new/mrr", "unlearnt", "answer/hits@1")} == {1.0}
    assert best["old answer/hits@1"] == 0
    blind = seen.measures(lambda rows, side: torch.zeros(len(rows), len(entities)))
    assert blind["unlearnt"] == 0.5
    assert blind["answer/hits@1"] == 0


def test_means_are_over_the_steps_that_have_a_measure():
    assert mean_measures([{"a": 1.0, "b": float("nan")}, {"a": 3.0, "b": 5.0}, {"a": 2.0}]) == {
        "a": 2.0,
        "b": 5.0,
    }


def test_snapshots_of_a_folder(tmp_path):
    for year in ("2001", "2002", "2003"):
        (tmp_path / year).mkdir()
        parts = {
            "train": f"a\tr\tb\nb\tr\tc\nb\tr\t{year}\n",
            "valid": "a\tr\tc\n",
            "test": "b\tr\tc\nz\tr\ta\n",  # learnt, too: it is held out; unknown: it is left out
        }
        for part, text in parts.items():
            (tmp_path / year / f"{part}.tsv").write_text(text + "c\tr\tb\n" * (part == "train"))
    found = read_snapshots(str(tmp_path), 1)
    assert [s.name for s in found] == ["2002", "2003"]
    assert found[1].train == [("a", "r", "b"), ("b", "r", "2003"), ("c", "r", "b")]
    assert found[1].held_out == [("a", "r", "c"), ("b", "r", "c")]
    with pytest.raises(ValueError, match="not two snapshots: give a folder of folders"):
        read_snapshots(str(tmp_path / "2001"), 1)


def test_verify_dkge_quick_runs_and_goes_on_where_it_stopped(tmp_path):
    arms = [ONLINE, TEXT, CODE, NOTHING, ADDED, PLAIN_NOTHING, ANEW]
    call = partial(verify_system, "dkge", {}, quick=True, seeds=1, workers=1, folder=tmp_path)
    record, page = call(arms=arms)
    assert {"online-keeps-up", "local", "rule/unlearnt"} <= {c["id"] for c in record["claims"]}
    online = {name: m["mean"] for name, m in record["arms"][ONLINE].items()}
    assert online["drift"] == 0
    assert 0 < record["arms"][CODE]["affected"]["mean"] < online["affected"] < 1
    assert "drift" not in record["arms"][NOTHING]
    assert "questions with a new answer" in page.with_suffix(".svg").read_text()
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}
    assert len(stamps) == len(arms) + 2  # those that they start from
    assert call(arms=arms)[0]["claims"] == record["claims"]
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}


def test_all_arms_that_learn_take_as_many_passes():
    common = STUDY.common
    of = ARMS[PYKEEN_ROTATE].all_arguments(common)
    assert of["epochs"] == common["epochs"] + round(SHARE * common["epochs"])
