"""A set of triples in sorted arrays: looked up in blocks, changed by merging.

A triple (head, relation, tail) is one 63-bit key. Three orders of the keys answer every question of
link prediction and of contexts by binary search, without a Python loop. A change makes new arrays: the
old index stays as it was, so that before and after can be compared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

ENTITY_BITS, RELATION_BITS = 25, 13
#: More than these do not fit into a key, and a path of relations needs a number for "none".
MAX_ENTITIES, MAX_RELATIONS = 1 << ENTITY_BITS, (1 << RELATION_BITS) - 1
_MASK = MAX_ENTITIES - 1

#: Where head, relation and tail stand in a row.
HEAD, RELATION, TAIL = 0, 1, 2
_WIDTH = (ENTITY_BITS, RELATION_BITS, ENTITY_BITS)
#: The orders that are kept: by what is known of a triple when it is looked up.
_BY_HEAD, _BY_TAIL, _BY_PAIR = (
    (HEAD, RELATION, TAIL),
    (TAIL, RELATION, HEAD),
    (HEAD, TAIL, RELATION),
)


class Found(NamedTuple):
    """Answers to several questions: answer `i` belongs to question `owner[i]`; questions in order."""

    owner: Ints
    value: Ints


def spans(low: Ints, high: Ints) -> Found:
    """All positions of several ranges low[i] <= position < high[i], one after the other."""
    length = high - low
    owner = np.repeat(np.arange(len(low)), length)
    start = np.cumsum(length) - length
    return Found(owner, np.arange(len(owner)) - (start - low)[owner])


def merged(keys: Ints, added: Ints, removed: Ints) -> Ints:
    """Sorted distinct keys with some more and some fewer; both sorted, `removed` among `keys`."""
    kept = np.delete(keys, np.searchsorted(keys, removed))
    return np.insert(kept, np.searchsorted(kept, added), added)


def with_prefix(keys: Ints, prefix: Ints, bits: int) -> Found:
    """What follows each prefix in sorted keys: their last `bits`."""
    owner, place = spans(*_range(keys, prefix, bits))
    return Found(owner, keys[place] & ((1 << bits) - 1))


def sampled(found: Found, at_most: int, seed: int, asked: Ints) -> Ints:
    """Positions of at most so many answers to each question, in an order drawn for it alone.

    So two questions with the same answers have samples that do not depend on each other.

    Args:
        asked: (questions,) numbers that say which these are; with `seed`, they give the orders.
    """
    owner, value = found
    own = mixed(asked, seed).view(np.int64)[owner]
    drawn = mixed(value ^ own, seed) >> np.uint64(1)  # 63 bits, of which floats can speak
    # Sorting all answers takes long where there are very many: those that are drawn low are sorted,
    # and where these happen to be too few, all.
    count = np.bincount(owner, minlength=len(asked))
    low = np.minimum(1.0, (2 * at_most + 20) / np.maximum(count, 1)) * 2.0**63
    likely = drawn <= low[owner]
    enough = np.bincount(owner[likely], minlength=len(asked)) >= np.minimum(count, at_most)
    place = np.flatnonzero(likely | ~enough[owner])
    order = place[np.lexsort((drawn[place], owner[place]))]
    nth = np.arange(len(order)) - np.searchsorted(owner[order], owner[order])
    return order[nth < at_most]


def distinct(rows: Ints) -> Ints:
    """Triples (n, 3), each once and sorted; numbers are in range."""
    return _unpacked(np.unique(_packed(rows, _BY_HEAD)), _BY_HEAD)


def holds(keys: Ints, wanted: Ints) -> NDArray[np.bool_]:
    """Which of the `wanted` are among sorted `keys`."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=bool)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.asarray(keys[place] == wanted)


class TripleIndex:
    """Distinct triples, to be looked up.

    Args:
        rows: (triples, 3) of head, relation and tail; repeated ones count once.

    Raises:
        ValueError: a number does not fit (33 million entities, 8,191 relations).
    """

    def __init__(self, rows: Ints) -> None:
        _check(rows)
        self._by_head = np.unique(_packed(rows, _BY_HEAD))
        rows = _unpacked(self._by_head, _BY_HEAD)
        self._by_tail = np.sort(_packed(rows, _BY_TAIL))
        self._by_pair = np.sort(_packed(rows, _BY_PAIR))

    def __len__(self) -> int:
        return len(self._by_head)

    @property
    def rows(self) -> Ints:
        """All triples (triples, 3), sorted."""
        return _unpacked(self._by_head, _BY_HEAD)

    def sample(self, at_most: int, seed: int) -> Ints:
        """So many triples (n, 3), drawn with replacement, or all where there are not more."""
        if len(self) <= at_most:
            return self.rows
        place = np.random.default_rng(seed).integers(len(self), size=at_most)
        return _unpacked(self._by_head[np.unique(place)], _BY_HEAD)

    def holds(self, rows: Ints) -> NDArray[np.bool_]:
        """Which of these triples (n, 3) are there."""
        return holds(self._by_head, _packed(rows, _BY_HEAD))

    def changed(self, added: Ints, removed: Ints) -> "TripleIndex":
        """An index without `removed` and with `added`, in time that follows the change.

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

    def tails(self, head: Ints, relation: Ints) -> Found:
        """The tails t of all (head[i], relation[i], t)."""
        return with_prefix(self._by_head, (head << RELATION_BITS) | relation, ENTITY_BITS)

    def heads(self, relation: Ints, tail: Ints) -> Found:
        """The heads h of all (h, relation[i], tail[i])."""
        return with_prefix(self._by_tail, (tail << RELATION_BITS) | relation, ENTITY_BITS)

    def between(self, head: Ints, tail: Ints) -> Found:
        """The relations r of all (head[i], r, tail[i])."""
        return with_prefix(self._by_pair, (head << ENTITY_BITS) | tail, RELATION_BITS)

    def linked(self, head: Ints, tail: Ints) -> NDArray[np.bool_]:
        """Whether any triple leads from head[i] to tail[i]."""
        low, high = _range(self._by_pair, (head << ENTITY_BITS) | tail, RELATION_BITS)
        return np.asarray(high > low)

    def out(self, entity: Ints) -> tuple[Ints, Ints, Ints]:
        """Triples that begin in entity[i]: owner, relation, tail."""
        return _split(with_prefix(self._by_head, entity, RELATION_BITS + ENTITY_BITS))

    def into(self, entity: Ints) -> tuple[Ints, Ints, Ints]:
        """Triples that end in entity[i]: owner, relation, head."""
        return _split(with_prefix(self._by_tail, entity, RELATION_BITS + ENTITY_BITS))

    def out_degree(self, entity: Ints) -> Ints:
        """Triples that begin in entity[i]."""
        low, high = _range(self._by_head, entity, RELATION_BITS + ENTITY_BITS)
        return high - low

    def in_degree(self, entity: Ints) -> Ints:
        """Triples that end in entity[i]."""
        low, high = _range(self._by_tail, entity, RELATION_BITS + ENTITY_BITS)
        return high - low


class Neighbours:
    """For each entity, those that share a triple with it, in an order drawn for that entity alone.

    The first few are a sample of all that stays the same until one of just these few changes: a new
    neighbour of a hub with a thousand enters its sample of ten once in a hundred times. The order is
    a permutation of all possible entities that `seed` and the entity give; nothing is stored of it.

    Args:
        rows: triples (n, 3).
        seed: of the orders.
    """

    def __init__(self, rows: Ints, seed: int) -> None:
        self.seed = seed
        head, tail = rows[:, HEAD], rows[:, TAIL]
        apart = head != tail
        both = self._key(
            np.concatenate([head[apart], tail[apart]]), np.concatenate([tail[apart], head[apart]])
        )
        self._keys = np.unique(both)

    def changed(self, a: Ints, b: Ints, joined: NDArray[np.bool_]) -> "Neighbours":
        """The same with each pair a[i], b[i] (a != b) now joined or not."""
        other = Neighbours.__new__(Neighbours)
        other.seed = self.seed
        keys = self._key(np.concatenate([a, b]), np.concatenate([b, a]))
        keys, first = np.unique(keys, return_index=True)
        now = np.concatenate([joined, joined])[first]
        before = holds(self._keys, keys)
        other._keys = merged(self._keys, keys[now & ~before], keys[before & ~now])
        return other

    def of(self, entity: Ints, at_most: int | None = None) -> Found:
        """The neighbours of entity[i], or a sample of `at_most`."""
        low, high = _range(self._keys, entity, ENTITY_BITS)
        if at_most is not None:
            high = np.minimum(high, low + at_most)
        owner, place = spans(low, high)
        return Found(owner, self._other(entity[owner], self._keys[place] & _MASK))

    def degree(self, entity: Ints) -> Ints:
        """How many neighbours entity[i] has."""
        low, high = _range(self._keys, entity, ENTITY_BITS)
        return high - low

    def joined(self, a: Ints, b: Ints) -> NDArray[np.bool_]:
        """Whether a[i] and b[i] share a triple."""
        return holds(self._keys, self._key(a, b))

    def common(self, a: Ints, b: Ints) -> Found:
        """The entities that are neighbours of both a[i] and b[i]; searched from the one with fewer."""
        swap = self.degree(a) > self.degree(b)
        few, many = np.where(swap, b, a), np.where(swap, a, b)
        found = self.of(few)
        keep = self.joined(many[found.owner], found.value)
        return Found(found.owner[keep], found.value[keep])

    def _key(self, a: Ints, b: Ints) -> Ints:
        return (a << ENTITY_BITS) | _permuted(b ^ self._offset(a))

    def _other(self, a: Ints, place: Ints) -> Ints:
        return _unpermuted(place) ^ self._offset(a)

    def _offset(self, a: Ints) -> Ints:
        return (mixed(a, self.seed) & np.uint64(_MASK)).astype(np.int64)


def mixed(values: Ints, seed: int) -> NDArray[np.uint64]:
    """64 well-mixed bits of each value (the finaliser of SplitMix64; Steele et al. 2014)."""
    start = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 64)
    x = values.astype(np.uint64) + np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


#: A permutation of 25-bit numbers: odd factors can be divided by, and a shift of 13 undoes itself.
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


def _packed(rows: Ints, order: Sequence[int]) -> Ints:
    first, second, third = order
    key = (rows[:, first] << _WIDTH[second]) | rows[:, second]
    return np.asarray((key << _WIDTH[third]) | rows[:, third])


def _unpacked(keys: Ints, order: Sequence[int]) -> Ints:
    rows = np.empty((len(keys), 3), dtype=np.int64)
    for column in reversed(order):
        rows[:, column] = keys & ((1 << _WIDTH[column]) - 1)
        keys = keys >> _WIDTH[column]
    return rows


def _range(keys: Ints, prefix: Ints, bits: int) -> tuple[Ints, Ints]:
    """Where keys that begin with each prefix stand."""
    low = np.searchsorted(keys, prefix << bits)
    high = np.searchsorted(keys, ((prefix + 1) << bits) - 1, side="right")
    return low, high


def _split(found: Found) -> tuple[Ints, Ints, Ints]:
    return found.owner, found.value >> ENTITY_BITS, found.value & _MASK


def _check(rows: Ints) -> None:
    if rows.ndim != 2 or rows.shape[1] != 3:
        raise ValueError(f"triples are rows of three numbers, not an array of shape {rows.shape}")
    limits = (MAX_ENTITIES, MAX_RELATIONS, MAX_ENTITIES)
    if len(rows) and ((rows < 0) | (rows >= limits)).any():
        raise ValueError(
            f"a graph holds at most {MAX_ENTITIES:,} entities and {MAX_RELATIONS:,} relations, "
            "numbered from 0"
        )
