"""The contexts of entities and relations: small subgraphs, as ragged tensors.

The context of an entity is its neighbours. The context of a relation is the paths of one or two
relations that lead from the head to the tail of one of its triples. A sample stands for a large context
(`Neighbours`), so the context of a hub seldom changes. The matrix D^-1/2 A D^-1/2 of a subgraph is
stored by rows (Wu et al. 2022, section 4; samples and ragged rows are ours).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from torch import Tensor

from stepwell.kg.ragged import offsets_of
from stepwell.kg.relation_paths import LAST_STEP, RelationPaths
from stepwell.kg.triple_index import (
    RELATION_BITS,
    Ints,
    Neighbours,
    Ragged,
    blocks,
    mixed,
    sampled,
    spans,
)

#: Pairs of members that are compared at once.
BLOCK = 1 << 22
#: Stands for the centre of a subgraph among elements.
CENTRE = -1


@dataclass(frozen=True)
class Contexts:
    """The subgraphs of several centres; each is its centre (row 0) and its members (rows 1..m).

    A row of D^-1/2 A D^-1/2 H0 is the sum of weight[i] times the contextual vector element[i] over i
    from bag[row] to bag[row + 1]. The first entry of a row has the element CENTRE: it takes the
    knowledge vector of the centre instead.

    rows: (centres + 1,) offsets of the rows of each centre.
    owner: the centre of each row, by position.
    bag: (rows + 1,) offsets of the entries of each row.
    digest: equal for equal subgraphs.
    """

    rows: Int64[Tensor, " centre_offsets"]
    owner: Int64[Tensor, " rows"]
    bag: Int64[Tensor, " row_offsets"]
    element: Int64[Tensor, " entries"]
    weight: Float[Tensor, " entries"]
    digest: UInt64[np.ndarray, " centres"]

    def __len__(self) -> int:
        return len(self.rows) - 1

    def select(self, centres: Int64[Tensor, " some"]) -> "Contexts":
        """The subgraphs at these positions, in their order."""
        first, last = self.rows[centres], self.rows[centres + 1]
        owner, row = map(torch.from_numpy, spans(first.numpy(), last.numpy()))
        low, high = self.bag[first], self.bag[last]
        entry = torch.from_numpy(spans(low.numpy(), high.numpy()).value)
        bag = offsets_of(high - low)
        # the entries of a centre lie together and are moved as a whole
        bag = torch.cat([self.bag[row] + (bag[:-1] - low)[owner], bag[-1:]])
        element, weight = self.element[entry], self.weight[entry]
        digest = self.digest[centres.numpy()]
        return Contexts(offsets_of(last - first), owner, bag, element, weight, digest)


def entity_contexts(neighbours: Neighbours, centres: Ints, size: int) -> Contexts:
    """The contexts of entities: at most `size` sampled neighbours, joined if they share a triple."""
    members = neighbours.of(centres, size)
    edges = _joined_members(neighbours, members, len(centres))
    # a member is one vector: that of its entity
    return _contexts(len(centres), members, edges, members.value[:, None])


def _joined_members(neighbours: Neighbours, members: Ragged, count: int) -> tuple[Ints, Ints]:
    """Ordered pairs of members (as positions) of one centre that share a triple."""
    low, high = _fellows(members, count)
    pairs = []
    for block in blocks(high - low, BLOCK):
        owner, second = spans(low[block], high[block])
        first = block[owner]
        pair = np.stack([first, second])[:, first < second]
        pairs.append(pair[:, neighbours.joined(*members.value[pair])])
    a, b = np.concatenate(pairs, axis=1)
    return np.concatenate([a, b]), np.concatenate([b, a])


def _fellows(members: Ragged, count: int) -> tuple[Ints, Ints]:
    """The range of positions, for each member, of the members with the same centre."""
    offsets = np.searchsorted(members.owner, np.arange(count + 1))
    return offsets[members.owner], offsets[members.owner + 1]


def relation_contexts(paths: RelationPaths, relations: Ints, size: int, seed: int) -> Contexts:
    """The contexts of relations: at most `size` sampled paths.

    A path of one relation is joined to the paths of that relation.
    """
    every = paths.of_relations(relations)
    some = sampled(every, size, seed, relations)
    members = Ragged(every.owner[some], every.value[some])
    edges = _joined_paths(paths, members, len(relations))
    steps = np.stack([members.value >> RELATION_BITS, (members.value & LAST_STEP) - 1], axis=1)
    return _contexts(len(relations), members, edges, steps)


def _joined_paths(paths: RelationPaths, members: Ragged, count: int) -> tuple[Ints, Ints]:
    first, second = spans(*_fellows(members, count))
    short = (members.value & LAST_STEP) == 0
    pair = np.stack([first, second])[:, short[first] & (first != second)]
    step, other = members.value[pair]
    a, b = pair[:, paths.hold(step >> RELATION_BITS, other)]
    both = np.unique(np.stack([np.concatenate([a, b]), np.concatenate([b, a])], axis=1), axis=0)
    return both[:, 0], both[:, 1]


def _contexts(
    count: int, members: Ragged, edges: tuple[Ints, Ints], vectors: Int64[np.ndarray, "members hops"]
) -> Contexts:
    """Compute the normalised adjacency by rows; a member is the sum of its `vectors` (-1: none)."""
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
    member = np.concatenate([np.arange(total), np.arange(total), edges[1]])
    weight = scale[rows] * scale[row[member]]
    hops = vectors[member]
    exists = hops >= 0
    # the entry of the centre comes first in each row
    rows = np.concatenate([np.arange(total + count), np.repeat(rows, exists.sum(1))])
    weight = np.concatenate([scale * scale[first[owner]], np.repeat(weight, exists.sum(1))])
    element = np.concatenate([np.full(total + count, CENTRE), hops[exists]])
    order = np.argsort(rows, kind="stable")
    bag = np.searchsorted(rows[order], np.arange(total + count + 1))
    tensor, weight = torch.from_numpy, weight[order].astype(np.float32)
    return Contexts(
        tensor(np.append(first, total + count)), tensor(owner), tensor(bag), tensor(element[order]),
        tensor(weight), _digest(count, members, edges),
    )  # fmt: skip


def _digest(count: int, members: Ragged, edges: tuple[Ints, Ints]) -> UInt64[np.ndarray, " _"]:
    """Hash each subgraph to 64 bits: sums of mixed members and edges, which no order changes."""
    digest = np.zeros(count, dtype=np.uint64)
    owner, value = members
    np.add.at(digest, owner, mixed(value, 1))
    with np.errstate(over="ignore"):
        ends = mixed(value[edges[0]], 2) * mixed(value[edges[1]], 3)
    np.add.at(digest, owner[edges[0]], mixed(ends.view(np.int64), 4))
    return digest
