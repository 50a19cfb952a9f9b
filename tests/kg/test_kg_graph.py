"""A live graph: changed, updated and asked while it changes, and bad input."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import stepwell
from kg.graphs import FACTS, NEW, QUICK, assert_same, everything, random_facts
from stepwell.evaluation.link_prediction import link_measures
from stepwell.kg import Online, pending, queries
from stepwell.kg.ranking import distances, distances_to_all, rank_triples
from stepwell.kg.triple_index import TripleIndex


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
        graph.compact()
        assert_same(everything(graph), seen)
        assert graph.update(QUICK).added == 1
        after = everything(graph)
    with stepwell.kg.open(run, write=False) as graph:
        assert_same(everything(graph), after)
        assert set(graph.facts("later")) == {("later", "r0", "e1")}
        with pytest.raises(ValueError, match="opened for queries only"):
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
    assert (after["relation/joint"] == before["relation/joint"]).all(1).sum() == 3 - report.affected[
        "relation"
    ]


def test_entities_leave_with_their_last_triple_and_may_return(run):
    mine = [f for f in FACTS if "e7" in f]
    with stepwell.kg.open(run) as graph:
        graph.remove(mine)
        assert graph.update(QUICK).gone == {"entity": ["e7"], "relation": []}
        assert "e7" not in graph.entities
        with pytest.raises(ValueError, match="'e7' is no longer in any triple of the graph"):
            graph.neighbours("e7")
        assert all(answer.name != "e7" for answer in graph.rank("e1", "r0", k=100))
        graph.add(mine[:1])
        for name in ("e7", "never learnt"):
            graph.add([(name, "r0", "e1")])
            with pytest.raises(
                ValueError, match=f"'{name}' waits for an update: update the graph first"
            ):
                graph.neighbours(name)
        graph.remove([("e7", "r0", "e1"), ("never learnt", "r0", "e1")])
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
        (lambda g: g.rank("e1", "r0", "e2"), "give either a head or a tail"),
        (lambda g: g.rank("e1", "r0", k=0), "k must be at least 1"),
        (lambda g: queries._check_count(2.5), "k must be at least 1 and a whole number, not 2.5"),
        (lambda g: g.neighbours("e1", k=-1), "k must be at least 1"),
        (lambda g: g._number("relation", None), "relation: give a name, not None"),
        (lambda g: g.add([("a", "b")]), "add: a triple is a head, a relation and a tail"),
        (lambda g: g.add(["abc"]), "a triple is a head, a relation and a tail, not 'abc'"),
        (lambda g: g.update(QUICK, test=[("a", "b")]), "test: a triple is"),
        (lambda g: g.add([("ok", "r", "ok2"), ("a", "", "c")]), "'' is not a valid name"),
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


def test_what_waits_already_counts_as_asked_for(run):
    with stepwell.kg.open(run) as graph:
        graph.remove(FACTS[:2])
        graph.add(NEW[:1])
    with stepwell.kg.open(run) as graph:  # the process ended before its update, and begins again
        assert graph.waiting == (NEW[:1], FACTS[:2])
        assert graph.remove(FACTS[:3]) == 1
        assert graph.add(NEW) == len(NEW) - 1
        assert (run / "journal").read_bytes().count(b"sw") == 4
        assert graph.update(QUICK).removed == 3
        with pytest.raises(ValueError, match="not in the graph"):
            graph.remove(FACTS[:1])


def test_names_that_no_update_could_learn_are_refused(run, monkeypatch):
    monkeypatch.setitem(pending._LIMITS, "relation", (5, "relations"))  # 3 are there
    with stepwell.kg.open(run) as graph:
        assert graph.add([("e1", "r8", "e2"), ("e1", "r9", "e2"), ("x", "r9", "e2")]) == 3
        before = everything(graph)
        with pytest.raises(ValueError, match="at most 5 relations, including former ones"):
            graph.add([("e1", "r10", "e2"), ("e1", "r0", "y")])
        assert_same(everything(graph), before)
        graph.remove([("e1", "r9", "e2")])
        with pytest.raises(ValueError, match="at most 5"):  # the name stands in another triple
            graph.add([("e1", "r10", "e2")])
        graph.remove([("x", "r9", "e2")])
        assert graph.add([("e1", "r10", "e2")]) == 1
        graph.update(QUICK)
        graph.remove([("e1", "r10", "e2")])
        graph.update(QUICK)
        with pytest.raises(ValueError, match="at most 5"):
            graph.add([("e1", "r11", "e2")])
        graph.add([("e2", "r10", "e3")])  # a name that has left it and returns
        graph.update(QUICK)
        graph.compact()
        seen = everything(graph)
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)


def test_an_update_that_fails_gives_no_numbers(run, monkeypatch):
    def fails(*_, **__):
        raise KeyboardInterrupt

    with stepwell.kg.open(run) as graph:
        before = everything(graph)
        graph.add(NEW)
        with monkeypatch.context() as patch:
            patch.setattr("stepwell.kg.state.learn_change", fails)
            with pytest.raises(KeyboardInterrupt):
                graph.update(QUICK)
        assert everything(graph)[1] == before[1]
        graph.compact()
    with stepwell.kg.open(run) as graph:
        assert everything(graph)[1] == before[1]
        assert graph.update(QUICK).added == len(NEW)


def test_new_contextual_vectors_are_as_large_as_those_that_are_there(run):
    with stepwell.kg.open(run) as graph:
        there = graph._state.net.contextual["entity"].std()
        graph.add([(f"new{i}", "r0", "e1") for i in range(40)])
        graph.update(Online(epochs=1, lr=1e-9))
        new = graph._state.net.contextual["entity"][-40:]
        first = [graph._state.names["entity"].number(f"new{i}") for i in range(40)]
        new = graph._state.net.contextual["entity"][first]
    assert new.std() == pytest.approx(float(there), rel=0.15)
    assert there < 0.2


def test_the_report_tells_how_far_removed_triples_are(run):
    gone = FACTS[::15]
    with stepwell.kg.open(run) as graph:
        graph.remove(gone)
        before = graph.score(gone)
        report = graph.update(Online(epochs=10))
        after = graph.score(gone)
        assert report.unlearnt == pytest.approx((np.mean(before), np.mean(after)))
        assert [fact for fact, *_ in report.forgotten] == gone[:10]
        assert [far for _, *far in report.forgotten] == [
            pytest.approx(pair) for pair in zip(before[:10], after[:10], strict=True)
        ]
        assert np.mean(after) > np.mean(before)
        graph.add(NEW)
        assert (graph.update(QUICK).unlearnt, graph.update(QUICK).forgotten) == (None, [])


def test_one_writer_and_no_other_runs(run, tmp_path):
    with (
        stepwell.kg.open(run),
        pytest.raises(OSError, match=r"another process is writing .* only query it"),
    ):
        stepwell.kg.open(run)
    with stepwell.kg.open(run) as graph, stepwell.kg.open(run, write=False) as reader:
        graph.add(NEW)
        assert reader.pending == (0, 0)
    with pytest.raises(ValueError, match="is closed: open it again to change it"):
        graph.add([("x", "r0", "e1")])
    assert graph.neighbours("e1", k=1)
    with pytest.raises(FileNotFoundError, match="no file or run directory"):
        stepwell.kg.open(tmp_path / "nothing")
    stepwell.save(stepwell.build("resnet8"), run / "net.safetensors")
    with pytest.raises(ValueError, match="net.safetensors holds no knowledge graph: name a run of"):
        stepwell.kg.open(run)


def test_threads_share_a_graph(run):
    wrong = []

    def work(thread):
        try:
            for i in range(8):
                graph.add([(f"t{thread}", "r0", f"{thread}-{i}")])
                assert len(graph.neighbours("e1", 3)) == 3
                if i % 4 == 3:
                    graph.update(Online(epochs=1))
        except Exception as error:
            wrong.append(error)

    with stepwell.kg.open(run) as graph:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        graph.update(QUICK)
        assert not wrong
        seen = everything(graph)
        assert {f"{t}-{i}" for t in range(4) for i in range(8)} <= set(graph.entities)
    with stepwell.kg.open(run) as graph:
        assert_same(everything(graph), seen)


def test_a_forked_process_cannot_write_what_another_opened(run, monkeypatch):
    with stepwell.kg.open(run) as graph:
        monkeypatch.setattr("os.getpid", lambda: -1)
        with pytest.raises(ValueError, match="opened before this process was forked"):
            graph.add(NEW)
        assert graph.pending == (0, 0)


def test_the_old_name_of_compact_warns(run):
    with stepwell.kg.open(run) as graph:
        graph.add(NEW)
        graph.update(QUICK)
        with pytest.warns(DeprecationWarning, match=r"compact\(\)"):
            graph.snapshot()
        assert (run / "journal").read_bytes() == b""
