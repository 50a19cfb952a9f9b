"""What a change affects, against contexts of the whole graph before and after."""

import numpy as np
import pytest

from stepwell.kg.snapshot import Snapshot, affected_entities, affected_relations


def random_rows(seed, n=90, entities=30, relations=4):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, k, n) for k in (entities, relations, entities)]
    return np.unique(np.stack(columns, axis=1).astype(np.int64), axis=0)


@pytest.fixture
def changed():
    """Snapshot before and after, and the triples added and removed; 30 is new, another vanishes."""
    before = Snapshot.of(random_rows(0), size=4, seed=0)
    rows = before.index.rows
    removed = rows[(rows[:, 0] == 7) | (rows[:, 2] == 7) | (np.arange(len(rows)) % 17 == 0)]
    fresh = np.array([[30, 1, 2], [5, 0, 30]])
    added = np.concatenate([random_rows(1, 6), fresh])
    added = added[~before.index.holds(added) & (added != 7).all(1)]
    return before, before.changed(added, removed), np.concatenate([added, removed])


def test_facts_that_followed_a_change_are_those_of_the_graph(changed):
    _, after, _ = changed
    fresh = Snapshot.of(after.index.rows, size=4, seed=0)
    every = {"entity": np.arange(31), "relation": np.arange(4)}
    for kind, which in every.items():
        assert (after.contexts(kind, which).digest == fresh.contexts(kind, which).digest).all()
    assert (after.paths.keys == fresh.paths.keys).all()
    assert (after.paths.counts == fresh.paths.counts).all()


def test_affected_are_those_whose_context_differs(changed):
    before, after, changes = changed
    every = np.arange(31)
    both = before.present(every) & after.present(every)
    digests = [f.contexts("entity", every).digest for f in (before, after)]
    truth = every[both & (digests[0] != digests[1])]
    assert 0 < len(truth) < both.sum()
    assert affected_entities(before, after, changes, "context").tolist() == truth.tolist()
    ends = np.unique(changes[:, [0, 2]])
    touched = np.union1d(truth, ends[np.isin(ends, every[both])])
    assert affected_entities(before, after, changes, "touched").tolist() == touched.tolist()
    relations = np.arange(4)
    digests = [f.contexts("relation", relations).digest for f in (before, after)]
    found = affected_relations(before, after, relations, "context")
    assert found.tolist() == relations[digests[0] != digests[1]].tolist()


def test_only_relations_with_other_paths_are_looked_at(monkeypatch):
    """0 and 1 lead the same way, and so do 2 and 3; 4 has a path of 2, and 5 none."""
    rows = np.array([[0, 0, 1], [0, 1, 1], [2, 2, 3], [2, 3, 3], [2, 4, 3], [5, 5, 6]])
    before = Snapshot.of(rows, size=4, seed=0)
    looked_at = []
    real = Snapshot.contexts
    monkeypatch.setattr(
        Snapshot, "contexts", lambda f, kind, which: looked_at.append(which) or real(f, kind, which)
    )

    def affected(added):
        added = np.array(added, dtype=np.int64).reshape(-1, 3)
        looked_at.clear()
        found = affected_relations(before, before.changed(added, rows[:0]), np.arange(6), "context")
        return found.tolist(), {r for which in looked_at for r in which.tolist()}

    lone = Snapshot.of(rows[:1], size=4, seed=0)  # has no path at all
    assert affected_relations(lone, lone, np.arange(6), "context").tolist() == []
    assert affected([]) == ([], set())
    assert affected([[7, 5, 8]]) == ([], set())  # another triple, but no path
    assert affected([[5, 0, 6]]) == ([0, 5], {0, 1, 5})  # 1 has the path of 0 alone


def test_by_the_codes_rule_only_new_and_gone_neighbours_count(changed):
    before, after, changes = changed
    assert not after.present(np.array([7]))
    assert not before.present(np.array([30]))
    near = {h if t in (7, 30) else t for h, _, t in changes.tolist() if 7 in (h, t) or 30 in (h, t)}
    there = [e for e in sorted(near - {7, 30}) if after.present(np.array([e]))]
    assert affected_entities(before, after, changes, "neighbour").tolist() == there
    assert len(affected_relations(before, after, np.arange(4), "neighbour")) == 0


def test_an_empty_change_affects_nothing():
    facts = Snapshot.of(random_rows(0), size=4, seed=0)
    none = np.zeros((0, 3), np.int64)
    after = facts.changed(none, none)
    for rule in ("context", "touched", "neighbour"):
        assert len(affected_entities(facts, after, none, rule)) == 0
    assert (after.index.rows == facts.index.rows).all()
