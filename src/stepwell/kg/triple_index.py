"""A set of triples in sorted arrays: looked up in blocks, changed by merging.

A triple (head, relation, tail) is one key of 63 bits. Keys in three orders answer every query by binary
search, without a Python loop. A change makes new arrays, so the old and the new index can be compared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt64

#: A number of each element; dimensions with a leading _ may differ within one signature.
Ints = Int64[np.ndarray, " _"]
Flags = Bool[np.ndarray, " _"]
#: Triples by number: head, relation and tail.
Rows = Int64[np.ndarray, "_ 3"]

ENTITY_BITS, RELATION_BITS = 25, 13
#: The most that fit into a key; a path of relations needs one number for "none".
MAX_ENTITIES, MAX_RELATIONS = 1 << ENTITY_BITS, (1 << RELATION_BITS) - 1
_MASK = MAX_ENTITIES - 1

#: The columns of a row.
HEAD, RELATION, TAIL = 0, 1, 2
_WIDTH = (ENTITY_BITS, RELATION_BITS, ENTITY_BITS)
#: The orders of the keys, by the part of a triple that a query gives.
_BY_HEAD, _BY_TAIL = (HEAD, RELATION, TAIL), (TAIL, RELATION, HEAD)
_BY_PAIR = (HEAD, TAIL, RELATION)


class Ragged(NamedTuple):
    """Lists of different lengths, end to end: value[i] is an item of list owner[i]; owners ascend."""

    owner: Ints
    value: Ints


def spans(low: Ints, high: Ints) -> Ragged:
    """List all positions of the ranges low[i] <= position < high[i], end to end."""
    length = high - low
    owner = np.repeat(np.arange(len(low)), length)
    offset = np.cumsum(length) - length
    return Ragged(owner, np.arange(len(owner)) - (offset - low)[owner])


def blocks(work: Ints, size: int) -> list[Ints]:
    """Split the positions of `work` into consecutive blocks, each with a sum of about `size`."""
    return np.split(np.arange(len(work)), np.flatnonzero(np.diff(np.cumsum(work) // size)) + 1)


def merged(keys: Ints, added: Ints, removed: Ints) -> Ints:
    """Add and remove keys; all three are sorted and distinct, and `removed` is a part of `keys`."""
    rest = np.delete(keys, np.searchsorted(keys, removed))
    return np.insert(rest, np.searchsorted(rest, added), added)


def with_prefix(keys: Ints, prefix: Ints, bits: int) -> Ragged:
    """The last `bits` of the sorted keys that begin with each prefix."""
    owner, place = spans(*_range(keys, prefix, bits))
    return Ragged(owner, keys[place] & ((1 << bits) - 1))


def sampled(lists: Ragged, at_most: int, seed: int, numbers: Ints) -> Ints:
    """Positions of a sample of each list, of `at_most` items; samples of two lists are independent.

    Args:
        numbers: (lists,) distinct; with `seed`, they give the order in which items are drawn.
    """
    owner, value = lists
    salt = mixed(numbers, seed).view(np.int64)[owner]
    drawn = mixed(value ^ salt, seed) >> np.uint64(1)  # 63 bits, which floats can compare
    # Sorting a long list takes long: only items with a low draw are sorted, or all if these are too
    # few.
    count = np.bincount(owner, minlength=len(numbers))
    low = np.minimum(1.0, (2 * at_most + 20) / np.maximum(count, 1)) * 2.0**63
    likely = drawn <= low[owner]
    enough = np.bincount(owner[likely], minlength=len(numbers)) >= np.minimum(count, at_most)
    place = np.flatnonzero(likely | ~enough[owner])
    order = place[np.lexsort((drawn[place], owner[place]))]
    nth = np.arange(len(order)) - np.searchsorted(owner[order], owner[order])
    return np.asarray(order[nth < at_most])


def distinct(rows: Rows) -> Rows:
    """The distinct triples, sorted; numbers are in range."""
    return _unpacked(np.unique(_packed(rows, _BY_HEAD)), _BY_HEAD)


def holds(keys: Ints, wanted: Ints) -> Flags:
    """Check which of the `wanted` keys are among sorted `keys`."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=bool)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.asarray(keys[place] == wanted)


class TripleIndex:
    """Distinct triples, for lookup.

    Args:
        rows: (triples, 3) of head, relation and tail; repeated triples count once.

    Raises:
        ValueError: a number does not fit (33 million entities, 8,191 relations).
    """

    def __init__(self, rows: Int64[np.ndarray, "..."]) -> None:
        _check(rows)
        self._by_head = np.unique(_packed(rows, _BY_HEAD))
        rows = _unpacked(self._by_head, _BY_HEAD)
        self._by_tail = np.sort(_packed(rows, _BY_TAIL))
        self._by_pair = np.sort(_packed(rows, _BY_PAIR))

    def __len__(self) -> int:
        return len(self._by_head)

    @property
    def rows(self) -> Rows:
        """All triples, sorted."""
        return _unpacked(self._by_head, _BY_HEAD)

    def sample(self, at_most: int, seed: int) -> Rows:
        """Draw triples with replacement, `at_most` distinct ones; all if the index has no more."""
        if len(self) <= at_most:
            return self.rows
        place = np.random.default_rng(seed).integers(len(self), size=at_most)
        return _unpacked(self._by_head[np.unique(place)], _BY_HEAD)

    def holds(self, rows: Rows) -> Flags:
        """Check which of these triples are in the index."""
        return holds(self._by_head, _packed(rows, _BY_HEAD))

    def changed(self, added: Rows, removed: Rows) -> "TripleIndex":
        """An index without `removed` and with `added`; its cost follows the change.

        (Arrays are copied, about 5 ms a million triples; nothing is sorted again.)
        """
        _check(added)
        other = TripleIndex.__new__(TripleIndex)
        for name, order in (("_by_head", _BY_HEAD), ("_by_tail", _BY_TAIL), ("_by_pair", _BY_PAIR)):
            old = getattr(self, name)
            more, fewer = (np.unique(_packed(rows, order)) for rows in (added, removed))
            fewer = fewer[holds(old, fewer) & ~holds(more, fewer)]
            setattr(other, name, merged(old, more[~holds(old, more)], fewer))
        return other

    def tails(self, head: Ints, relation: Ints) -> Ragged:
        """The tails t of all (head[i], relation[i], t)."""
        return with_prefix(self._by_head, (head << RELATION_BITS) | relation, ENTITY_BITS)

    def heads(self, relation: Ints, tail: Ints) -> Ragged:
        """The heads h of all (h, relation[i], tail[i])."""
        return with_prefix(self._by_tail, (tail << RELATION_BITS) | relation, ENTITY_BITS)

    def between(self, head: Ints, tail: Ints) -> Ragged:
        """The relations r of all (head[i], r, tail[i])."""
        return with_prefix(self._by_pair, (head << ENTITY_BITS) | tail, RELATION_BITS)

    def linked(self, head: Ints, tail: Ints) -> Flags:
        """Check whether any triple leads from head[i] to tail[i]."""
        return np.asarray(_count(self._by_pair, (head << ENTITY_BITS) | tail, RELATION_BITS) > 0)

    def out(self, entity: Ints) -> tuple[Ints, Ints, Ints]:
        """Triples with head entity[i]: owner, relation, tail."""
        return _split(with_prefix(self._by_head, entity, RELATION_BITS + ENTITY_BITS))

    def into(self, entity: Ints) -> tuple[Ints, Ints, Ints]:
        """Triples with tail entity[i]: owner, relation, head."""
        return _split(with_prefix(self._by_tail, entity, RELATION_BITS + ENTITY_BITS))

    def out_degree(self, entity: Ints) -> Ints:
        """Number of triples with head entity[i]."""
        return _count(self._by_head, entity, RELATION_BITS + ENTITY_BITS)

    def in_degree(self, entity: Ints) -> Ints:
        """Number of triples with tail entity[i]."""
        return _count(self._by_tail, entity, RELATION_BITS + ENTITY_BITS)


class Neighbours:
    """The entities that share a triple with an entity, in a random order of its own.

    The first few are a sample: a new neighbour of a hub with a thousand enters its sample of ten with a
    probability of 1 %. The order is a permutation of all possible entities, computed from `seed` and
    the entity.
    """

    def __init__(self, rows: Rows, seed: int) -> None:
        self.seed = seed
        head, tail = rows[rows[:, HEAD] != rows[:, TAIL]][:, [HEAD, TAIL]].T
        self._keys = np.unique(self._keys_both_ways(head, tail))

    def changed(self, a: Ints, b: Ints, joined: Flags) -> "Neighbours":
        """A copy in which each pair a[i], b[i] (a != b) is joined or not."""
        other = Neighbours.__new__(Neighbours)
        other.seed = self.seed
        keys, first = np.unique(self._keys_both_ways(a, b), return_index=True)
        now = np.concatenate([joined, joined])[first]
        before = holds(self._keys, keys)
        other._keys = merged(self._keys, keys[now & ~before], keys[before & ~now])
        return other

    def of(self, entity: Ints, at_most: int | None = None) -> Ragged:
        """The neighbours of entity[i], or a sample of `at_most`."""
        low, high = _range(self._keys, entity, ENTITY_BITS)
        if at_most is not None:
            high = np.minimum(high, low + at_most)
        owner, place = spans(low, high)
        centre = entity[owner]
        return Ragged(owner, _unpermuted(self._keys[place] & _MASK) ^ self._offset(centre))

    def degree(self, entity: Ints) -> Ints:
        """Number of neighbours of entity[i]."""
        return _count(self._keys, entity, ENTITY_BITS)

    def joined(self, a: Ints, b: Ints) -> Flags:
        """Check whether a[i] and b[i] share a triple."""
        return holds(self._keys, self._key(a, b))

    def common(self, a: Ints, b: Ints) -> Ragged:
        """The common neighbours of a[i] and b[i]."""
        swap = self.degree(a) > self.degree(b)
        few, many = np.where(swap, b, a), np.where(swap, a, b)
        owner, value = self.of(few)
        both = self.joined(many[owner], value)
        return Ragged(owner[both], value[both])

    def _keys_both_ways(self, a: Ints, b: Ints) -> Ints:
        return self._key(np.concatenate([a, b]), np.concatenate([b, a]))

    def _key(self, a: Ints, b: Ints) -> Ints:
        return (a << ENTITY_BITS) | _permuted(b ^ self._offset(a))

    def _offset(self, a: Ints) -> Ints:
        return (mixed(a, self.seed) & np.uint64(_MASK)).astype(np.int64)


def mixed(values: Ints, seed: int) -> UInt64[np.ndarray, " _"]:
    """Hash each value to 64 well-mixed bits (the finaliser of SplitMix64; Steele et al. 2014)."""
    shift = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 64)
    x = values.astype(np.uint64) + np.uint64(shift)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


#: A permutation of 25-bit numbers: odd factors have an inverse, and a shift of 13 undoes itself.
_FACTORS = (0x1C6EF37, 0x0DAA66D)
_INVERSES = tuple(pow(f, -1, MAX_ENTITIES) for f in _FACTORS)


def _permuted(x: Ints) -> Ints:
    for factor in _FACTORS:
        x = (x * factor) & _MASK
        x = x ^ (x >> 13)
    return x


def _unpermuted(x: Ints) -> Ints:
    for inverse in reversed(_INVERSES):
        x = x ^ (x >> 13)
        x = (x * inverse) & _MASK
    return x


def _packed(rows: Rows, order: Sequence[int]) -> Ints:
    first, second, third = order
    key = (rows[:, first] << _WIDTH[second]) | rows[:, second]
    return np.asarray((key << _WIDTH[third]) | rows[:, third])


def _unpacked(keys: Ints, order: Sequence[int]) -> Rows:
    rows = np.empty((len(keys), 3), dtype=np.int64)
    for column in reversed(order):
        rows[:, column] = keys & ((1 << _WIDTH[column]) - 1)
        keys = keys >> _WIDTH[column]
    return rows


def _range(keys: Ints, prefix: Ints, bits: int) -> tuple[Ints, Ints]:
    """The positions of the keys that begin with each prefix: from, and before."""
    low = np.searchsorted(keys, prefix << bits)
    high = np.searchsorted(keys, ((prefix + 1) << bits) - 1, side="right")
    return low, high


def _count(keys: Ints, prefix: Ints, bits: int) -> Ints:
    low, high = _range(keys, prefix, bits)
    return high - low


def _split(lists: Ragged) -> tuple[Ints, Ints, Ints]:
    return lists.owner, lists.value >> ENTITY_BITS, lists.value & _MASK


def _check(rows: Int64[np.ndarray, "..."]) -> None:
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise ValueError(f"triples are rows of three numbers, got an array of shape {rows.shape}")
    limits = (MAX_ENTITIES, MAX_RELATIONS, MAX_ENTITIES)
    if len(rows) and ((rows < 0) | (rows >= limits)).any():
        raise ValueError(
            f"a graph holds at most {MAX_ENTITIES:,} entities and {MAX_RELATIONS:,} relations, "
            "numbered from 0"
        )
