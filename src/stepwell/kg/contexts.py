"""The contexts of entities and relations: small subgraphs, as ragged tensors.

An entity's context is its neighbours; a relation's are the paths of one or two relations that lead
from the head to the tail of one of its triples. Both are cut to a size by sampling (`Neighbours`), so a
hub's context changes seldom. What an encoder needs of a subgraph, D^-1/2 A D^-1/2, is stored by rows
(Wu et al. 2022, section 4; sampling, and no padding, are ours).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepwell.kg.triple_index import (
    HEAD,
    RELATION_BITS,
    TAIL,
    Found,
    Ints,
    Neighbours,
    TripleIndex,
    holds,
    mixed,
    sampled,
    spans,
    with_prefix,
)

#: Pairs of members, or steps of paths, that are looked at together.
BLOCK = 1 << 22
#: What stands for the centre of a subgraph among elements.
CENTRE = -1
_RELATION_MASK = (1 << RELATION_BITS) - 1
_PATH_BITS = 2 * RELATION_BITS


@dataclass(frozen=True)
class Contexts:
    """The subgraphs of several centres; each is its centre (row 0) and its members (rows 1..m).

    A row of D^-1/2 A D^-1/2 H0 is the sum of weight[i] times the contextual vector element[i] over i
    from bag[row] to bag[row + 1]; of its first entry, whose element is CENTRE, the vector is the
    knowledge vector of its centre instead.

    rows: (centres + 1,) where the rows of a centre begin.
    owner: (rows,) the centre of each row, by its position.
    bag: (rows + 1,) where the entries of a row begin.
    element, weight: (entries,).
    digest: (centres,) equal for equal subgraphs.
    """

    rows: Tensor
    owner: Tensor
    bag: Tensor
    element: Tensor
    weight: Tensor
    digest: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.rows) - 1

    def select(self, centres: Tensor) -> "Contexts":
        """The subgraphs at these positions, in their order."""
        first, last = self.rows[centres], self.rows[centres + 1]
        rows, owner, row = _taken(first, last)
        before = self.bag[first]
        entries, _, entry = _taken(before, self.bag[last])
        # the entries of a centre lie together and are moved as a whole
        moved = (entries[:-1] - before)[owner]
        return Contexts(
            rows,
            owner,
            torch.cat([self.bag[row] + moved, entries[-1:]]),
            self.element[entry],
            self.weight[entry],
            self.digest[centres.numpy()],
        )

    def pointing(self, element: Tensor) -> "Contexts":
        """The same subgraphs with the rows of another table, for each entry; CENTRE stays."""
        return replace(self, element=element)


def _taken(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ranges from `first` to before `last`, laid end to end.

    Returns:
        Where they begin now, (ranges + 1,); and for each place, the range it is of, and where it was.
    """
    length = last - first
    begin = torch.zeros(len(length) + 1, dtype=torch.long)
    torch.cumsum(length, 0, out=begin[1:])
    owner = torch.repeat_interleave(torch.arange(len(length)), length)
    return begin, owner, (first - begin[:-1])[owner] + torch.arange(len(owner))


def entity_contexts(neighbours: Neighbours, centres: Ints, size: int) -> Contexts:
    """The contexts of entities: a sample of at most `size` neighbours, joined where a triple does."""
    members = neighbours.of(centres, size)
    edges = _joined_members(neighbours, members, len(centres))
    # a member is one vector: that of its entity
    return _contexts(len(centres), members, edges, members.value[:, None], members.value)


def _joined_members(neighbours: Neighbours, members: Found, count: int) -> tuple[Ints, Ints]:
    """Ordered pairs of members (as positions) of one centre that share a triple."""
    start = np.searchsorted(members.owner, np.arange(count + 1))
    low, high = start[members.owner], start[members.owner + 1]
    pairs: list[tuple[Ints, Ints]] = []
    total = np.cumsum(high - low)
    begin = 0
    while begin < len(members.owner):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + BLOCK)))
        first, second = spans(low[begin:end], high[begin:end])
        first = first + begin
        more = first < second
        first, second = first[more], second[more]
        joined = neighbours.joined(members.value[first], members.value[second])
        pairs.append((first[joined], second[joined]))
        begin = end
    a, b = (np.concatenate([p[i] for p in pairs] or [np.zeros(0, np.int64)]) for i in (0, 1))
    return np.concatenate([a, b]), np.concatenate([b, a])


@dataclass(frozen=True)
class RelationPaths:
    """How often a path of one or two relations leads where a relation does.

    keys: sorted; relation, first step, second step + 1 (0: none), 13 bits each.
    counts: pairs of a triple and a path of triples that leads from its head to its tail.
    """

    keys: Ints
    counts: Ints

    @staticmethod
    def of(index: TripleIndex) -> "RelationPaths":
        """Those of all triples."""
        keys = counts = np.zeros(0, np.int64)
        for rows in _blocks(index, index.rows):
            found, times = np.unique(_path_keys(_concluding(index, rows)), return_counts=True)
            keys, counts = _summed(keys, counts, found, times)
        return RelationPaths(keys, counts)

    def changed(
        self, before: TripleIndex, after: TripleIndex, added: Ints, removed: Ints
    ) -> "RelationPaths":
        """Those of `after`, counted anew only where a path or what it leads beside has changed.

        Args:
            added, removed: triples that are in just one of `before` and `after`.
        """
        keys, counts = self.keys, self.counts
        for index, rows, sign in ((before, removed, -1), (after, added, 1)):
            found, times = np.unique(_path_keys(_with_any(index, rows)), return_counts=True)
            keys, counts = _summed(keys, counts, found, sign * times)
        return RelationPaths(keys[counts > 0], counts[counts > 0])

    def of_relations(self, relations: Ints) -> Found:
        """The paths of each relation, 26 bits."""
        return with_prefix(self.keys, relations, _PATH_BITS)

    def may_differ(self, other: "RelationPaths") -> Ints:
        """Relations whose contexts may be others in `other`, sorted.

        They have a path that one of the two lacks, or a path of one relation that has: whether that is
        joined to their other paths depends on it.
        """
        keys = np.sort(np.concatenate([self.keys, other.keys]), kind="stable")  # merges the two
        twice = np.zeros(len(keys), dtype=bool)
        same = keys[1:] == keys[:-1]
        twice[1:] |= same
        twice[:-1] |= same
        changed = np.unique(keys[~twice] >> _PATH_BITS)
        if not len(changed):
            return changed
        short = keys[(keys & _RELATION_MASK) == 0]
        step = (short >> RELATION_BITS) & _RELATION_MASK
        beside = short[np.isin(step, changed)] >> _PATH_BITS
        return np.union1d(changed, beside)


def relation_contexts(paths: RelationPaths, relations: Ints, size: int, seed: int) -> Contexts:
    """The contexts of relations: a sample of at most `size` paths.

    A path of one relation is joined to the paths among that relation's own. Two members of one
    context are looked at, so the cost is that of the sample.
    """
    found = paths.of_relations(relations)
    some = sampled(found, size, seed, relations)
    members = Found(found.owner[some], found.value[some])
    edges = _joined_paths(paths, members, len(relations))
    first, second = members.value >> RELATION_BITS, (members.value & _RELATION_MASK) - 1
    return _contexts(
        len(relations), members, edges, np.stack([first, second], axis=1), members.value
    )


def _joined_paths(paths: RelationPaths, members: Found, count: int) -> tuple[Ints, Ints]:
    start = np.searchsorted(members.owner, np.arange(count + 1))
    first, second = spans(start[members.owner], start[members.owner + 1])
    short = (members.value & _RELATION_MASK) == 0
    keep = short[first] & (first != second)
    first, second = first[keep], second[keep]
    key = (members.value[first] >> RELATION_BITS << _PATH_BITS) | members.value[second]
    joined = holds(paths.keys, key)
    a, b = first[joined], second[joined]
    both = np.unique(np.stack([np.concatenate([a, b]), np.concatenate([b, a])], axis=1), axis=0)
    return both[:, 0], both[:, 1]


def _contexts(
    count: int, members: Found, edges: tuple[Ints, Ints], vectors: Ints, identity: Ints
) -> Contexts:
    """Normalised adjacency by rows.

    Args:
        count: centres.
        edges: ordered pairs of joined members, as positions.
        vectors: (members, hops) the contextual vectors whose sum is a member; -1: none.
        identity: (members,) for the digest.
    """
    total = len(members.owner)
    size = np.bincount(members.owner, minlength=count)
    first = np.cumsum(size + 1) - (size + 1)  # row 0 of each centre
    row = np.arange(total) + members.owner + 1  # of each member
    # With its self-loop: the centre is joined to every member.
    degree = np.ones(total + count)
    degree[first] += size
    degree[row] += 1 + np.bincount(edges[0], minlength=total)
    scale = degree**-0.5
    centre = first[members.owner]
    owner = np.repeat(np.arange(count), size + 1)
    # entries (row, member): of the centre, of each member itself, of joined members
    rows = np.concatenate([centre, row, row[edges[0]]])
    of = np.concatenate([np.arange(total), np.arange(total), edges[1]])
    weight = scale[rows] * scale[row[of]]
    hops = vectors[of]
    there = hops >= 0
    # before them stands each row's centre
    rows = np.concatenate([np.arange(total + count), np.repeat(rows, there.sum(1))])
    weight = np.concatenate([scale * scale[first[owner]], np.repeat(weight, there.sum(1))])
    element = np.concatenate([np.full(total + count, CENTRE), hops[there]])
    order = np.argsort(rows, kind="stable")
    return Contexts(
        torch.from_numpy(np.append(first, total + count)),
        torch.from_numpy(owner),
        torch.from_numpy(np.searchsorted(rows[order], np.arange(total + count + 1))),
        torch.from_numpy(element[order]),
        torch.from_numpy(weight[order].astype(np.float32)),
        _digest(count, members.owner, edges, identity),
    )


def _digest(
    count: int, owner: Ints, edges: tuple[Ints, Ints], identity: Ints
) -> NDArray[np.uint64]:
    """64 bits of each subgraph: sums, which do not depend on any order, of mixed members and edges."""
    digest = np.zeros(count, dtype=np.uint64)
    np.add.at(digest, owner, mixed(identity, 1))
    with np.errstate(over="ignore"):
        ends = mixed(identity[edges[0]], 2) * mixed(identity[edges[1]], 3)
    np.add.at(digest, owner[edges[0]], mixed(ends.view(np.int64), 4))
    return digest


class _Walks(NamedTuple):
    """Triples, each beside a path that leads from its head to its tail; `via` is -1 on short paths."""

    head: Ints
    relation: Ints
    tail: Ints
    first: Ints
    second: Ints
    via: Ints


def _path_keys(walks: _Walks) -> Ints:
    key = (walks.relation << RELATION_BITS) | walks.first
    return np.asarray((key << RELATION_BITS) | (walks.second + 1))


def _concluding(index: TripleIndex, rows: Ints) -> _Walks:
    """All paths beside each of these triples."""
    head, relation, tail = rows.T
    found = index.between(head, tail)
    other = found.value != relation[found.owner]
    owner, first = found.owner[other], found.value[other]
    none = np.full(len(owner), -1)
    short = _Walks(head[owner], relation[owner], tail[owner], first, none, none)
    owner, first, via, second = _meeting(index, head, tail, from_a=True, from_b=False)
    long = _Walks(head[owner], relation[owner], tail[owner], first, second, via)
    return _together(short, long)


def _meeting(
    index: TripleIndex, a: Ints, b: Ints, *, from_a: bool, from_b: bool
) -> tuple[Ints, Ints, Ints, Ints]:
    """All entities `via` that a triple joins to a[i], and another one to b[i].

    They are searched from the end that has fewer triples.

    Args:
        from_a, from_b: whether the triple leads from a[i], or b[i], to `via`, or the other way.

    Returns:
        Owner, relation of the triple with a[i], `via`, relation of that with b[i].
    """
    ends = ((a, from_a), (b, from_b))
    degree = [(index.out_degree if ahead else index.in_degree)(end) for end, ahead in ends]
    near = degree[0] <= degree[1]
    parts = []
    for swap in (False, True):
        which = np.flatnonzero(near != swap)
        (here, ahead), (there, leads) = ends[::-1] if swap else ends
        owner, step, via = (index.out if ahead else index.into)(here[which])
        other = there[which][owner]
        rest = index.between(other, via) if leads else index.between(via, other)
        owner, step, via = owner[rest.owner], step[rest.owner], via[rest.owner]
        first, second = (rest.value, step) if swap else (step, rest.value)
        parts.append((which[owner], first, via, second))
    owner, first, via, second = (np.concatenate(p) for p in zip(*parts, strict=True))
    return owner, first, via, second


def _with_any(index: TripleIndex, rows: Ints) -> _Walks:
    """All paths beside triples of `index`, in which any of `rows` takes part, each once."""
    head, relation, tail = rows.T
    # as the only step: another relation of the same pair is concluded
    found = index.between(head, tail)
    other = found.value != relation[found.owner]
    owner = found.owner[other]
    none = np.full(len(owner), -1)
    short = _Walks(head[owner], found.value[other], tail[owner], relation[owner], none, none)
    # as the first step, head -> tail -> end: concluded by (head, r, end)
    owner, second, end, r = _meeting(index, tail, head, from_a=True, from_b=True)
    first_step = _Walks(head[owner], r, end, relation[owner], second, tail[owner])
    # as the second step, start -> head -> tail: concluded by (start, r, tail)
    owner, first, start, r = _meeting(index, head, tail, from_a=False, from_b=False)
    second_step = _Walks(start, r, tail[owner], first, relation[owner], head[owner])
    walks = _together(_concluding(index, rows), short, first_step, second_step)
    distinct = np.unique(np.stack(walks, axis=1), axis=0)
    return _Walks(*distinct.T)


def _together(*walks: _Walks) -> _Walks:
    return _Walks(*(np.concatenate(column) for column in zip(*walks, strict=True)))


def _blocks(index: TripleIndex, rows: Ints) -> list[Ints]:
    """Triples in parts whose paths are searched together."""
    work = np.minimum(index.out_degree(rows[:, HEAD]), index.in_degree(rows[:, TAIL])) + 1
    part = np.cumsum(work) // BLOCK
    return np.split(rows, np.flatnonzero(np.diff(part)) + 1) if len(rows) else []


def _summed(keys: Ints, counts: Ints, more: Ints, times: Ints) -> tuple[Ints, Ints]:
    """Counts by sorted key, with others added."""
    new = more[~holds(keys, more)]
    place = np.searchsorted(keys, new)
    keys, counts = np.insert(keys, place, new), np.insert(counts, place, 0)
    counts[np.searchsorted(keys, more)] += times
    return keys, counts
