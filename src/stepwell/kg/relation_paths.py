"""Counts of the paths of one or two relations that are parallel to a relation, updated by changes.

A path is parallel to a triple, and to its relation, if it leads from the triple's head to its tail.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stepwell.kg.triple_index import (
    HEAD,
    RELATION_BITS,
    TAIL,
    Flags,
    Ints,
    Ragged,
    Rows,
    TripleIndex,
    blocks,
    holds,
    with_prefix,
)

#: Steps of paths that are searched at once.
BLOCK = 1 << 22
#: The bits of the second step in a path.
LAST_STEP = (1 << RELATION_BITS) - 1
_PATH_BITS = 2 * RELATION_BITS


@dataclass(frozen=True)
class RelationPaths:
    """The number of times that a path of one or two relations is parallel to a relation.

    keys: sorted; relation, first step, second step + 1 (0: none), 13 bits each.
    counts: pairs of a triple and a parallel path of triples.
    """

    keys: Ints
    counts: Ints

    @staticmethod
    def of(index: TripleIndex) -> "RelationPaths":
        """Count the paths that are parallel to any triple."""
        keys = counts = np.zeros(0, np.int64)
        rows = index.rows
        work = np.minimum(index.out_degree(rows[:, HEAD]), index.in_degree(rows[:, TAIL])) + 1
        for block in blocks(work, BLOCK):
            keys, counts = _summed(keys, counts, _parallel_walks(index, rows[block]), 1)
        return RelationPaths(keys, counts)

    def changed(
        self, before: TripleIndex, after: TripleIndex, added: Rows, removed: Rows
    ) -> "RelationPaths":
        """Count the paths of `after`; only paths with a changed triple are recounted.

        Args:
            added, removed: the triples in just one of `before` and `after`.
        """
        keys, counts = self.keys, self.counts
        for index, rows, sign in ((before, removed, -1), (after, added, 1)):
            keys, counts = _summed(keys, counts, _walks_with(index, rows), sign)
        return RelationPaths(keys[counts > 0], counts[counts > 0])

    def of_relations(self, relations: Ints) -> Ragged:
        """The paths of each relation, 26 bits."""
        return with_prefix(self.keys, relations, _PATH_BITS)

    def hold(self, relations: Ints, paths: Ints) -> Flags:
        """Check whether paths[i] is parallel to relations[i]."""
        return holds(self.keys, (relations << _PATH_BITS) | paths)

    def may_differ(self, other: "RelationPaths") -> Ints:
        """The relations whose contexts may differ in `other`, sorted.

        Such a relation has a path that one of the two lacks, or a path of a single relation that has
        one: edges between its paths depend on that relation.
        """
        changed = np.unique(np.setxor1d(self.keys, other.keys, assume_unique=True) >> _PATH_BITS)
        if not len(changed):
            return changed
        keys = np.concatenate([self.keys, other.keys])
        short = keys[(keys & LAST_STEP) == 0]
        step = (short >> RELATION_BITS) & LAST_STEP
        return np.union1d(changed, short[np.isin(step, changed)] >> _PATH_BITS)


class _Walks(NamedTuple):
    """Triples, each with a parallel path; `via` is -1 on paths of one step."""

    head: Ints
    relation: Ints
    tail: Ints
    first: Ints
    second: Ints
    via: Ints


def _parallel_walks(index: TripleIndex, rows: Rows) -> _Walks:
    """All paths that are parallel to each of these triples."""
    head, relation, tail = rows.T
    owner, first = index.between(head, tail)
    other = first != relation[owner]
    owner, first = owner[other], first[other]
    none = np.full(len(owner), -1)
    short = _Walks(head[owner], relation[owner], tail[owner], first, none, none)
    owner, first, via, second = _meeting(index, head, tail, from_a=True, from_b=False)
    long = _Walks(head[owner], relation[owner], tail[owner], first, second, via)
    return _together(short, long)


def _walks_with(index: TripleIndex, rows: Rows) -> _Walks:
    """All pairs of a triple of `index` and a parallel path in which any of `rows` takes part."""
    head, relation, tail = rows.T
    parallel = _parallel_walks(index, rows)
    # as the only step, parallel to another relation of the same pair
    short = _Walks(*(column[parallel.second < 0] for column in parallel))
    short = short._replace(relation=short.first, first=short.relation)
    # as the first step, head -> tail -> end, parallel to (head, r, end)
    owner, second, end, r = _meeting(index, tail, head, from_a=True, from_b=True)
    first_step = _Walks(head[owner], r, end, relation[owner], second, tail[owner])
    # as the second step, origin -> head -> tail, parallel to (origin, r, tail)
    owner, first, origin, r = _meeting(index, head, tail, from_a=False, from_b=False)
    second_step = _Walks(origin, r, tail[owner], first, relation[owner], head[owner])
    walks = _together(parallel, short, first_step, second_step)
    return _Walks(*np.unique(np.stack(walks, axis=1), axis=0).T)


def _meeting(
    index: TripleIndex, a: Ints, b: Ints, *, from_a: bool, from_b: bool
) -> tuple[Ints, Ints, Ints, Ints]:
    """Find all entities `via` that one triple joins to a[i] and another triple to b[i].

    `from_a`, `from_b`: the triple leads from a[i], or b[i], to `via`; otherwise the other way. The
    search begins at the end with fewer triples. It returns owner, first relation, `via`, second
    relation.
    """
    ends = ((a, from_a), (b, from_b))
    degree = [(index.out_degree if ahead else index.in_degree)(end) for end, ahead in ends]
    near = degree[0] <= degree[1]
    parts = []
    for swap in (False, True):
        which = np.flatnonzero(near != swap)
        (here, ahead), (far, leads) = ends[::-1] if swap else ends
        owner, step, via = (index.out if ahead else index.into)(here[which])
        other = far[which][owner]
        rest = index.between(other, via) if leads else index.between(via, other)
        owner, step, via = owner[rest.owner], step[rest.owner], via[rest.owner]
        first, second = (rest.value, step) if swap else (step, rest.value)
        parts.append((which[owner], first, via, second))
    owner, first, via, second = (np.concatenate(p) for p in zip(*parts, strict=True))
    return owner, first, via, second


def _together(*walks: _Walks) -> _Walks:
    return _Walks(*(np.concatenate(column) for column in zip(*walks, strict=True)))


def _summed(keys: Ints, counts: Ints, walks: _Walks, sign: int) -> tuple[Ints, Ints]:
    """Add (`sign` 1) or subtract (-1) the number of walks in the counts of sorted keys."""
    key = (walks.relation << _PATH_BITS) | (walks.first << RELATION_BITS) | (walks.second + 1)
    more, times = np.unique(key, return_counts=True)
    new = more[~holds(keys, more)]
    place = np.searchsorted(keys, new)
    keys, counts = np.insert(keys, place, new), np.insert(counts, place, 0)
    counts[np.searchsorted(keys, more)] += sign * times
    return keys, counts
