"""The study of graphs that change: its snapshots, its measures and its arms."""

from functools import partial

import pytest
import torch
from benchmarks.holdout import Split, held_out

from stepwell.claims.dkge.arms import SHARE
from stepwell.claims.dkge.snapshots import (
    Examined,
    Question,
    Snapshot,
    mean_measures,
    questions,
    read_snapshots,
)
from stepwell.claims.dkge.study import (
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
from stepwell.claims.kit.verify import verify_system
from stepwell.data.triples import Names, numbered


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        yield


WAS_HELD = [("c", "is", "b"), ("b", "near", "y")]
BEFORE = Snapshot(
    "1",
    [("a", "in", "x"), ("b", "in", "x"), ("c", "in", "y"), ("a", "is", "b"), ("b", "near", "x"),
     ("c", "has", "x"), ("c", "has", "y")],
    WAS_HELD,
    WAS_HELD,
)  # fmt: skip
HELD = [("c", "is", "b"), ("d", "is", "b"), ("a", "is", "c")]
NOW = Snapshot(
    "2",
    [("a", "in", "y"), ("b", "in", "x"), ("c", "in", "y"), ("d", "in", "x"), ("a", "is", "b"),
     ("b", "near", "y"), ("c", "has", "y"), ("c", "has", "a")],
    HELD,
    HELD,
)  # fmt: skip


def test_questions_are_those_whose_only_answer_is_new():
    # (b, near, y) was true before, and (c, has, ?) has several answers
    assert questions(BEFORE, NOW) == [Question(("a", "in", "y"), ("a", "in", "x"))]


def test_measures_of_a_graph_that_knows_and_of_one_that_does_not():
    entities, relations = Names("entity"), Names("relation")
    numbered([*BEFORE.train, *NOW.train], entities, relations)
    seen = Examined(entities, relations, BEFORE, BEFORE, NOW)
    true = {tuple(row) for row in numbered([*NOW.train, *NOW.held_out], entities, relations).tolist()}

    def knows(rows, side):
        found = torch.ones(len(rows), len(entities))
        for i, (h, r, t) in enumerate(rows.tolist()):
            for e in range(len(entities)):
                found[i, e] = ((h, r, e) if side == "tail" else (e, r, t)) not in true
        return found

    best = seen.measures(knows)
    keys = ("still/mrr", "came/mrr", "new/mrr", "gone/unlearnt", "answer/hits@1")
    assert {best[k] for k in keys} == {1.0}
    assert best["old answer/hits@1"] == 0
    assert [best[f"{part}/n"] for part in ("still", "came", "new", "gone", "answer")] == [
        1,
        1,
        1,
        3,
        1,
    ]
    blind = seen.measures(lambda rows, side: torch.zeros(len(rows), len(entities)))
    assert blind["gone/unlearnt"] == 0.5
    assert blind["answer/hits@1"] == 0


def test_means_are_over_the_triples_of_the_steps_that_have_a_measure():
    nan = float("nan")
    steps = [
        {"s": 1.0, "b/x": nan, "b/n": 0, "c/x": 1.0, "c/n": 1},
        {"s": 3.0, "b/x": 5.0, "b/n": 2, "c/x": 5.0, "c/n": 3},
        {"s": 2.0},
    ]
    assert mean_measures(steps) == {"s": 2.0, "b/x": 5.0, "b/n": 2, "c/x": 4.0, "c/n": 4}
    assert mean_measures([{"b/x": nan, "b/n": 0}]) == {"b/n": 0}


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
    assert found[1].judged == [("b", "r", "c")]
    assert read_snapshots(str(tmp_path), 1, "valid")[1].judged == [("a", "r", "c")]
    # what is held out once is learnt never, or it would be remembered, or taught as removed
    (tmp_path / "2002" / "train.tsv").write_text("a\tr\tb\nb\tr\tc\nc\tr\ta\nc\tr\tb\nb\tr\t2003\n")
    (tmp_path / "2003" / "test.tsv").write_text("c\tr\ta\n")
    before, now = read_snapshots(str(tmp_path), 1)
    assert ("c", "r", "a") not in before.train
    assert ("c", "r", "a") in before.true
    assert now.judged == [("c", "r", "a")]
    for old, new in (("2001", "8"), ("2002", "9"), ("2003", "10")):
        (tmp_path / old).rename(tmp_path / new)
    assert [s.name for s in read_snapshots(str(tmp_path), 2)] == ["8", "9", "10"]
    with pytest.raises(ValueError, match="--data is missing: give a folder of folders"):
        read_snapshots("", 1)
    with pytest.raises(ValueError, match="not two snapshots: give a folder of folders"):
        read_snapshots(str(tmp_path / "2001"), 1)


def test_verify_dkge_quick_runs_and_goes_on_where_it_stopped(tmp_path):
    arms = [ONLINE, TEXT, CODE, NOTHING, ADDED, PLAIN_NOTHING, ANEW]
    call = partial(verify_system, "dkge", {}, quick=True, seeds=1, workers=1, folder=tmp_path)
    record, page = call(arms=arms)
    judged = {c["id"] for c in record["claims"]}
    assert {"online-keeps-up/still", "local", "rule/unlearnt"} <= judged
    online = {name: m["mean"] for name, m in record["arms"][ONLINE].items()}
    assert online["stale"] == 0
    assert 0 < record["arms"][CODE]["affected"]["mean"] < online["affected"] < 1
    assert record["arms"][CODE]["stale"]["mean"] > 0
    assert "stale" not in record["arms"][NOTHING]
    assert "processor seconds a step" in page.with_suffix(".svg").read_text()
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}
    assert len(stamps) == len(arms) + 2  # those that they start from
    assert call(arms=arms)[0]["claims"] == record["claims"]
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}


def test_all_arms_that_learn_take_as_many_passes():
    common = STUDY.common | {"epochs": 30}
    of = ARMS[PYKEEN_ROTATE].all_arguments(common)
    assert of["epochs"] == common["epochs"] + round(SHARE * common["epochs"])
    followed = [arm.all_arguments(common) for arm in ARMS.values() if "way" in arm.arguments]
    assert {of["online_epochs"] for of in followed} == {10}


def test_what_no_arm_takes_is_refused(tmp_path):
    for changes, precision, flag in (({"size": 9}, "32", "size"), ({}, "bf16", "precision")):
        with pytest.raises(ValueError, match=f"--{flag}: no arm of dkge takes it"):
            verify_system("dkge", changes, quick=True, seeds=1, workers=1, folder=tmp_path,
                          precision=precision)  # fmt: skip


def test_a_share_of_what_each_snapshot_adds_is_held_out_for_as_long_as_it_is_true():
    at_first = [("a", "r", str(i)) for i in range(20)]
    came = [("b", "r", str(i)) for i in range(20)]
    later = [("c", "r", str(i)) for i in range(10)]
    test = [("a", "r", "z")]
    second = Split([*at_first[3:], *came], [], test)
    third = Split([*at_first[3:], *came[10:], *later], [], test)
    found = held_out([Split(at_first, [], test), second, third], 0.2, seed=0)
    assert found[0] == Split(at_first, [], test)
    for old, new in zip((second, third), found[1:], strict=True):
        assert sorted([*new.train, *new.test]) == sorted([*old.train, *old.test])
    held = set(found[1].test) - set(test)
    assert len(held) == 4
    assert held <= set(came)
    now = set(found[2].test) - set(test)
    assert now & set(came) == held & set(came[10:])
    assert len(now & set(later)) == 2
    assert held_out([Split(at_first, [], test), second, third], 0.2, seed=1) != found
