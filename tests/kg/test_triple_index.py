"""Triples in sorted arrays, against Python sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.kg.triple_index import MAX_ENTITIES, Neighbours, Ragged, TripleIndex, sampled


def random_rows(seed, n=120, entities=15, relations=4):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, k, n) for k in (entities, relations, entities)]
    return np.stack(columns, axis=1).astype(np.int64)


def as_set(rows):
    return {tuple(row) for row in rows.tolist()}


def answers(found, count):
    return [sorted(found.value[found.owner == i].tolist()) for i in range(count)]


def test_every_question_is_answered_as_by_a_search():
    rows = random_rows(0)
    index, facts = TripleIndex(rows), as_set(rows)
    asked = random_rows(1)
    assert len(index) == len(facts)
    assert as_set(index.rows) == facts
    assert index.holds(asked).tolist() == [tuple(q) in facts for q in asked.tolist()]
    h, r, t = asked.T
    queries = list(zip(h, r, t, strict=True))
    assert answers(index.tails(h, r), len(asked)) == [
        sorted(c for a, b, c in facts if (a, b) == (x, y)) for x, y, _ in queries
    ]
    assert answers(index.heads(r, t), len(asked)) == [
        sorted(a for a, b, c in facts if (b, c) == (y, z)) for _, y, z in queries
    ]
    between = [sorted(b for a, b, c in facts if (a, c) == (x, z)) for x, _, z in queries]
    assert answers(index.between(h, t), len(asked)) == between
    assert index.linked(h, t).tolist() == [bool(found) for found in between]
    owner, relation, tail = index.out(h)
    assert sorted(zip(owner, relation, tail, strict=True)) == sorted(
        (i, b, c) for i, (x, _, _) in enumerate(queries) for a, b, c in facts if a == x
    )
    owner, relation, head = index.into(t)
    assert sorted(zip(owner, relation, head, strict=True)) == sorted(
        (i, b, a) for i, (_, _, z) in enumerate(queries) for a, b, c in facts if c == z
    )
    assert index.out_degree(h).tolist() == [sum(a == x for a, _, _ in facts) for x, _, _ in queries]
    assert index.in_degree(t).tolist() == [sum(c == z for _, _, c in facts) for _, _, z in queries]


def test_a_changed_index_is_that_of_the_changed_set():
    rows, added, removed = random_rows(0), random_rows(1, 30), random_rows(0)[5:40]
    before = TripleIndex(rows)
    after = before.changed(added, removed)
    assert as_set(after.rows) == (as_set(rows) - as_set(removed)) | as_set(added)
    assert as_set(before.rows) == as_set(rows)
    fresh = TripleIndex(after.rows)
    for name in ("_by_head", "_by_tail", "_by_pair"):
        assert (getattr(after, name) == getattr(fresh, name)).all()


def test_neighbours_common_ones_and_samples():
    rows = random_rows(2, 60)
    neighbours = Neighbours(rows, seed=3)
    truth = {e: set() for e in range(20)}
    for h, _, t in rows.tolist():
        if h != t:
            truth[h].add(t)
            truth[t].add(h)
    every = np.arange(20)
    assert answers(neighbours.of(every), 20) == [sorted(truth[e]) for e in truth]
    assert neighbours.degree(every).tolist() == [len(truth[e]) for e in truth]
    a, b = random_rows(4)[:, 0], random_rows(4)[:, 2]
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert neighbours.joined(a, b).tolist() == [y in truth[x] for x, y in pairs]
    assert answers(neighbours.common(a, b), len(a)) == [sorted(truth[x] & truth[y]) for x, y in pairs]
    few = answers(neighbours.of(every, 3), 20)
    assert all(set(found) <= truth[e] and len(found) == min(3, len(truth[e]))
               for e, found in enumerate(few))  # fmt: skip
    assert few != answers(Neighbours(rows, seed=4).of(every, 3), 20)


def test_changed_neighbours_are_those_of_the_changed_triples():
    rows, added = random_rows(5, 60), random_rows(6, 20)
    index = TripleIndex(rows)
    after = index.changed(added, rows[:20])
    a, _, b = np.concatenate([added, rows[:20]]).T
    a, b = a[a != b], b[a != b]
    joined = after.linked(a, b) | after.linked(b, a)
    changed = Neighbours(index.rows, 1).changed(a, b, joined)
    assert (changed._keys == Neighbours(after.rows, 1)._keys).all()


def test_a_hubs_sample_seldom_changes():
    hub, others = 0, np.arange(1, 2001)
    rows = np.stack([np.full(2000, hub), np.zeros(2000, np.int64), others], axis=1)
    neighbours = Neighbours(rows[:1000], seed=0)
    at, changes = np.array([hub]), 0
    sample = neighbours.of(at, 10).value
    for other in others[1000:]:
        neighbours = neighbours.changed(at, np.array([other]), np.array([True]))
        now = neighbours.of(at, 10).value
        changes += set(now.tolist()) != set(sample.tolist())
        sample = now
    # the n-th neighbour enters a sample of ten with probability 10 / n: about 6.9 times of 1,000
    assert 0 < changes < 20


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at most 33,554,432 entities and 8,191 relations"):
        TripleIndex(np.array([[MAX_ENTITIES, 0, 1]]))
    with pytest.raises(ValueError, match="rows of three numbers"):
        TripleIndex(np.zeros((3, 2), np.int64))
    assert len(TripleIndex(np.zeros((0, 3), np.int64))) == 0


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(1, 20), st.integers(0, 99))
def test_a_sample_holds_so_many_answers_to_each_question(counts, at_most, seed):
    owner = np.repeat(np.arange(len(counts)), counts)
    value = np.concatenate([np.arange(n) for n in counts])
    place = sampled(Ragged(owner, value), at_most, seed, np.arange(len(counts)))
    assert np.unique(place).size == len(place)
    assert (np.diff(owner[place]) >= 0).all()
    assert np.bincount(owner[place], minlength=len(counts)).tolist() == [
        min(n, at_most) for n in counts
    ]


def test_samples_of_questions_with_the_same_answers_are_independent():
    """Of 600 answers, two samples of 15 share 15 · 15 / 600 = 0.375; each answer is drawn as often."""
    owner, value = np.repeat([0, 1], 600), np.tile(np.arange(600) * 37, 2)
    shared, drawn = [], np.zeros(600)
    for seed in range(300):
        place = sampled(Ragged(owner, value), 15, seed, np.array([3, 9]))
        mine, other = place[:15], place[15:] - 600
        shared.append(len(np.intersect1d(mine, other)))
        drawn[mine] += 1
    assert np.mean(shared) == pytest.approx(0.375, abs=0.15)
    assert drawn.max() < 7.5 + 6 * 7.5**0.5
    # what a question's sample is does not depend on what is asked beside it
    place = sampled(Ragged(owner[600:] - 1, value[600:]), 15, 299, np.array([9]))
    assert place.tolist() == other.tolist()
