"""A live graph: what is acknowledged is never lost, an update is whole or absent, and bad input."""

import os
import signal
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import stepwell
from stepwell.evaluation.link_prediction import link_measures
from stepwell.kg import Online, live
from stepwell.kg.ranking import distances, distances_to_all, rank_triples
from stepwell.kg.state import read_state
from stepwell.nets.triple_index import TripleIndex
from stepwell.recipes.dkge import dkge
from stepwell.training import Loop

QUICK = Online(epochs=2)


def random_facts(seed, n=150, entities=30):
    rng = np.random.default_rng(seed)
    rows = zip(*(rng.integers(0, k, n) for k in (entities, 3, entities)), strict=True)
    return sorted({(f"e{h}", f"r{r}", f"e{t}") for h, r, t in rows})


FACTS = random_facts(0)


def write_facts(path, facts):
    path.write_text("".join("\t".join(f) + "\n" for f in facts))
    return path


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kg")
    test = random_facts(7, 30)
    test = write_facts(folder / "test.tsv", [f for f in test if f not in FACTS])
    options = {
        "dim": 8,
        "context_size": 4,
        "warm_epochs": 2,
        "epochs": 2,
        "batch_size": 64,
        "test": test,
    }
    dkge(triples=write_facts(folder / "base.tsv", FACTS), out=folder / "run",
         loop=Loop(device="cpu"), **options)  # fmt: skip
    return folder / "run"


@pytest.fixture
def run(base, tmp_path):
    """A run of its own, which a test may change."""
    for name in ("net.safetensors", "results.json", "config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    return tmp_path


def everything(graph):
    """All that can be seen of a graph."""
    state = graph._state
    vectors = {f"{kind}/{what}": table[: len(state.names[kind])].clone()
               for kind in ("entity", "relation")
               for what, table in state._tables(kind).items()}  # fmt: skip
    names = {kind: list(state.names[kind].names) for kind in ("entity", "relation")}
    return vectors, names, state.facts.index.rows.tolist(), dict(graph._pending)


def assert_same(a, b):
    for x, y in zip(a[1:], b[1:], strict=True):
        assert x == y
    assert_close(a[0], b[0], rtol=0, atol=0)


NEW = [("new", "r0", "e3"), ("e5", "r9", "new"), ("e1", "r1", "e1")]


def test_a_graph_is_the_same_when_it_is_opened_again(run):
    gone = FACTS[::20]
    with stepwell.kg.open(run) as graph:
        assert graph.add([*NEW, FACTS[0]]) == sum(f not in FACTS for f in NEW)
        assert graph.remove(gone) == len(gone)
        assert graph.pending == (len(NEW), len(gone))
        report = graph.update(QUICK)
        assert (report.added, report.removed) == (len(NEW), len(gone))
        assert report.new == {"entity": ["new"], "relation": ["r9"]}
        assert 0 < report.affected["entity"] < 31
        assert all(name in graph.entities for name, _ in report.moved)
        graph.add([("later", "r0", "e1")])
        graph.remove([NEW[0]])
        seen = everything(graph)
        assert len(graph) == len(FACTS) + len(NEW) - len(gone)
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)
        graph.snapshot()
        assert_same(everything(graph), seen)
        assert graph.update(QUICK).added == 1
        after = everything(graph)
    with stepwell.kg.open(run, write=False) as graph:
        assert_same(everything(graph), after)
        assert set(graph.facts("later")) == {("later", "r0", "e1")}
        with pytest.raises(ValueError, match="opened to be asked only"):
            graph.add([("x", "r0", "y")])


def test_what_is_added_and_removed_again_is_no_change(run):
    with stepwell.kg.open(run) as graph:
        before = everything(graph)
        graph.add([("x", "r0", "y")])
        graph.remove([("x", "r0", "y"), FACTS[3]])
        graph.add([FACTS[3]])
        assert graph.pending == (0, 0)
        assert graph.update(QUICK).trained == 0
        assert_close(everything(graph)[0], before[0], rtol=0, atol=0)
    with stepwell.kg.open(run) as graph:  # a name that was never learnt takes no number
        graph.add([("z", "r0", "e1")])
        graph.update(QUICK)
        seen = everything(graph)
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)


def test_opening_a_graph_leaves_the_generator_of_its_caller_alone(run):
    before = torch.random.get_rng_state()
    with stepwell.kg.open(run, write=False):
        assert (torch.random.get_rng_state() == before).all()


def test_vectors_outside_the_affected_set_do_not_move_at_all(run):
    with stepwell.kg.open(run) as graph:
        before, names, *_ = everything(graph)
        graph.add([("e0", "r0", "e29x")])
        report = graph.update(Online(epochs=3, rule="context"))
        after = everything(graph)[0]
    moved = (after["entity/joint"][: len(names["entity"])] != before["entity/joint"]).any(1)
    assert 0 < moved.sum() == report.affected["entity"] < 30
    assert (after["relation/joint"] == before["relation/joint"]).all(
        1
    ).sum() == 3 - report.affected["relation"]


def test_entities_leave_with_their_last_triple_and_may_return(run):
    mine = [f for f in FACTS if "e7" in f]
    with stepwell.kg.open(run) as graph:
        graph.remove(mine)
        assert graph.update(QUICK).gone == {"entity": ["e7"], "relation": []}
        assert "e7" not in graph.entities
        with pytest.raises(ValueError, match="'e7' stands in no triple of the graph any more"):
            graph.neighbours("e7")
        assert all(answer.name != "e7" for answer in graph.rank("e1", "r0", k=100))
        graph.add(mine[:1])
        with pytest.raises(ValueError, match="update it first"):
            graph.neighbours("e7")
        assert graph.update(QUICK).new["entity"] == ["e7"]
        assert graph.neighbours("e7", k=3)
        seen = everything(graph)
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)


def test_answers_are_those_of_a_loop(run):
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        graph.update(QUICK)
        answers = graph.rank("e1", "r0", k=5)
        every = sorted((graph.score([("e1", "r0", name)])[0], name) for name in graph.entities)
        assert [a.name for a in answers] == [name for _, name in every[:5]]
        assert [a.known for a in answers] == [("e1", "r0", a.name) in graph for a in answers]
        heads = graph.rank(None, "r9", "new", k=4)
        every = sorted((graph.score([(name, "r9", "new")])[0], name) for name in graph.entities)
        assert [a.name for a in heads] == [name for _, name in every[:4]]
        near = graph.neighbours("e1", k=3)
        far = sorted((float((graph.vector(n) - graph.vector("e1")).norm()), n)
                     for n in graph.entities if n != "e1")  # fmt: skip
        assert [a.name for a in near] == [name for _, name in far[:3]]
        linked = {name for fact in graph.facts("e1") for name in (fact[0], fact[2])}
        assert [a.known for a in near] == [a.name in linked for a in near]


def test_the_live_evaluation_is_that_of_a_loop(run):
    test = [f for f in random_facts(9, 60) if f not in FACTS]
    gone = FACTS[::30]
    with stepwell.kg.open(run) as graph:
        graph.remove(gone)
        graph.update(QUICK)
        found = graph.evaluate([*test, ("nobody", "r0", "e1")], gone=gone)
        answers = graph.evaluate(test, ask="tail")
        assert found["left_out"] == 1
        known = {*FACTS, *test} - set(gone)
        ranks = {"head": [], "tail": []}
        for h, r, t in test:
            for side in ranks:

                def swap(e, side=side, h=h, r=r, t=t):
                    return (h, r, e) if side == "tail" else (e, r, t)

                (own,) = graph.score([(h, r, t)])
                rivals = [e for e in graph.entities if swap(e) not in known]
                ranks[side].append(1 + sum(d < own for d in graph.score(map(swap, rivals))))
        both = ranks["head"] + ranks["tail"]
        assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in both]), rel=1e-6)
        assert answers["hits@1"] == pytest.approx(np.mean([rank == 1 for rank in ranks["tail"]]))
        true, old = graph.score(test), graph.score(gone)
        assert found["auc"] == pytest.approx(np.mean([o > t for o in old for t in true]))


def test_ranking_in_blocks_is_ranking_at_once(monkeypatch):
    torch.manual_seed(0)
    joint = {"entity": torch.randn(40, 4), "relation": torch.randn(3, 4)}
    far = partial(distances_to_all, joint)
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, k, 50) for k in (40, 3, 40)], axis=1)
    every = torch.ones(40, dtype=torch.bool)
    whole = link_measures(rank_triples(far, rows, TripleIndex(rows), every))
    monkeypatch.setattr("stepwell.kg.ranking.BLOCK", 40 * 30)
    assert link_measures(rank_triples(far, rows, TripleIndex(rows), every)) == whole
    assert distances(joint, rows[:2]).shape == (2,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.rank("e1x", "r0"), "no entity 'e1x'; did you mean "),
        (lambda g: g.rank("e1", "r00"), "no relation 'r00'; did you mean 'r0'"),
        (lambda g: g.rank("e1", "r0", "e2"), "give a head or a tail"),
        (lambda g: g.rank("e1", "r0", k=0), "k must be at least 1"),
        (lambda g: g.add([("a", "b")]), "add: a triple is a head, a relation and a tail"),
        (lambda g: g.add([("ok", "r", "ok2"), ("a", "", "c")]), "'' is no name"),
        (lambda g: g.remove([FACTS[0], ("a", "b", "c"), ("a", "b", "d")]),
         r"not in the graph: a \| b \| c, and 1 more; nothing was removed"),
        (lambda g: g.remove([FACTS[0]], absent="x"), "'refuse' or 'ignore'"),
    ],
)  # fmt: skip
def test_bad_input_changes_nothing(run, call, message):
    with stepwell.kg.open(run) as graph:
        before = everything(graph)
        with pytest.raises(ValueError, match=message):
            call(graph)
        assert_same(everything(graph), before)
        assert not (run / "journal").exists()
        assert graph.remove([("a", "b", "c")], absent="ignore") == 0


def test_one_writer_and_no_other_runs(run, tmp_path):
    with stepwell.kg.open(run), pytest.raises(OSError, match="another process is writing"):
        stepwell.kg.open(run)
    with stepwell.kg.open(run) as graph, stepwell.kg.open(run, write=False) as reader:
        graph.add(NEW)
        assert reader.pending == (0, 0)
    with pytest.raises(ValueError, match="no finished run"):
        stepwell.kg.open(tmp_path / "nothing")
    (run / "config.json").write_text('{"recipe": "ekd"}')
    with pytest.raises(ValueError, match="a run of another recipe"):
        stepwell.kg.open(run)


def test_a_full_disk_changes_nothing(run, monkeypatch):
    with stepwell.kg.open(run) as graph:
        graph.add(NEW[:2])
        before = everything(graph)
        real, size = os.fsync, (run / "journal").stat().st_size

        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        for change in (lambda: graph.add([("p", "r0", "q")]), lambda: graph.update(QUICK)):
            with pytest.raises(OSError, match="No space left"):
                change()
        monkeypatch.setattr(os, "fsync", real)
        assert (run / "journal").stat().st_size == size
        assert everything(graph)[3] == before[3]
        # names that the failed update gave numbers are the next one's
        graph.remove([NEW[0]])
        graph.add([("p", "r0", "q")])
        graph.update(QUICK)
        seen = everything(graph)
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)


def test_damage_is_said_and_a_part_of_a_record_is_dropped(run):
    journal = run / "journal"
    with stepwell.kg.open(run) as graph:
        graph.add([NEW[0]])
        first = journal.stat().st_size
        graph.add([NEW[1]])
        whole = journal.read_bytes()
    for cut in range(first, len(whole)):  # killed while the second was written, at any byte
        journal.write_bytes(whole[:cut])
        with stepwell.kg.open(run) as graph:
            assert list(graph._pending) == [NEW[0]]
    journal.write_bytes(whole[: first + 20] + bytes(len(whole) - first - 20))  # not all on the disk
    with stepwell.kg.open(run) as graph:
        assert list(graph._pending) == [NEW[0]]
        graph.add([NEW[2]])
    with stepwell.kg.open(run) as graph:
        assert list(graph._pending) == [NEW[0], NEW[2]]
    broken = bytearray(whole)
    broken[30] ^= 1  # in the first record, which was acknowledged
    journal.write_bytes(broken)
    with pytest.raises(ValueError, match="journal is damaged at byte 0"):
        stepwell.kg.open(run)
    journal.unlink()
    (run / "net.safetensors").write_bytes(b"no file of tensors")
    with pytest.raises(ValueError, match="is damaged"):
        stepwell.kg.open(run)


def test_a_long_journal_becomes_a_snapshot_and_a_kill_between_the_two_is_harmless(run, monkeypatch):
    monkeypatch.setattr(live, "SNAPSHOT_BYTES", 0)
    monkeypatch.setattr(live, "SNAPSHOT_SHARE", 0)
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        records = (run / "journal").read_bytes()
        graph.update(QUICK)
        assert (run / "journal").read_bytes() == b""
        seen = everything(graph)
    (run / "journal").write_bytes(records)  # the snapshot was written, the journal not yet
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)
        graph.add([("more", "r0", "e1")])
    with stepwell.kg.open(run) as graph:
        assert list(graph._pending) == [("more", "r0", "e1")]


def test_a_lost_snapshot_is_not_papered_over(run):
    old = (run / "net.safetensors").read_bytes()
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        graph.update(QUICK)
        graph.snapshot()
        graph.add([("more", "r0", "e1")])
    (run / "net.safetensors").write_bytes(old)
    with pytest.raises(ValueError, match="lacks the changes before number 3"):
        stepwell.kg.open(run)


def test_a_snapshot_that_a_writer_replaces_is_read_from_one_file(run, monkeypatch):
    file = run / "net.safetensors"
    old = file.read_bytes()
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        graph.update(QUICK)
        graph.snapshot()
    new, real = file.read_bytes(), Path.read_bytes
    file.write_bytes(old)

    def replaced_before(path):
        path.write_bytes(new)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", replaced_before)
    state = read_state(file)
    assert (state.applied, state.updates) == (2, 1)
    assert state.holds("entity", "new")


def write_until_killed(run, start, said):
    """Add one triple after the other, and say each that is acknowledged; update now and then."""
    live.SNAPSHOT_BYTES = live.SNAPSHOT_SHARE = 0  # in a process of its own: every update
    with stepwell.kg.open(run) as graph:
        for i in range(start, 10**6):
            graph.add([(f"k{i}", "r0", f"e{i % 30}")])
            os.write(said, f"{i}\n".encode())
            if i % 5 == 4:
                graph.update(Online(epochs=1))


def killed_after(seconds, run, start):
    """Have a process write for so long, kill it, and give the last triple that it said."""
    hear, said = os.pipe()
    with warnings.catch_warnings():  # newer Pythons warn that threads do not survive a fork
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            write_until_killed(run, start, said)
        finally:
            os._exit(1)
    os.close(said)
    with os.fdopen(hear) as heard:
        last = int(heard.readline())  # it is at work
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return max([last, *map(int, heard.read().split())])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_loses_nothing_acknowledged(run):
    start = 0
    for seconds in np.random.default_rng(0).uniform(0, 0.25, 10):
        last = killed_after(seconds, run, start)
        with stepwell.kg.open(run) as graph:
            there = [i for i in range(last + 3) if (f"k{i}", "r0", f"e{i % 30}") in graph]
            # the one after the last that was said may be on the disk, too
            assert there in ([*range(last + 1)], [*range(last + 2)])
            assert all(vector.isfinite().all() for vector in graph._state.vectors().values())
        start = len(there)
    with stepwell.kg.open(run) as graph:
        graph.update(Online(epochs=1))
        assert graph.pending == (0, 0)
        assert len(graph.rank(f"k{start - 1}", "r0")) == 10
