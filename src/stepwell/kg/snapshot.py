"""A knowledge graph at one moment, and the elements and triples that an update trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stepwell.kg.contexts import Contexts, entity_contexts, relation_contexts
from stepwell.kg.embedding import Kind
from stepwell.kg.relation_paths import RelationPaths
from stepwell.kg.triple_index import (
    HEAD,
    RELATION,
    TAIL,
    Flags,
    Ints,
    Neighbours,
    Ragged,
    Rows,
    TripleIndex,
    distinct,
    sampled,
)

#: Size of the sample of the graph in which triples of affected relations are searched.
SAMPLED_TRIPLES = 8192
#: The elements that a change affects. `context`: elements with a changed context (the definition in the
#: paper's text). `neighbour`: entities with a new or vanished neighbour (the authors' code). `touched`:
#: as `context`, and both ends of each added or removed triple.
Rule = Literal["context", "neighbour", "touched"]


@dataclass(frozen=True)
class Snapshot:
    """The triples of a graph at one moment, in all forms that contexts need; immutable.

    size: the most members of a context.
    seed: of the samples of large contexts.
    """

    index: TripleIndex
    neighbours: Neighbours
    paths: RelationPaths
    size: int
    seed: int

    @staticmethod
    def of(rows: Rows, *, size: int, seed: int) -> "Snapshot":
        """The snapshot of these triples; repeated triples count once."""
        index = TripleIndex(rows)
        neighbours = Neighbours(index.rows, seed)
        return Snapshot(index, neighbours, RelationPaths.of(index), size, seed)

    def changed(self, added: Rows, removed: Rows) -> "Snapshot":
        """The snapshot after a change; no triple is in both `added` and `removed`."""
        index = self.index.changed(added, removed)
        a, _, b = np.concatenate([added, removed]).T
        a, b = a[a != b], b[a != b]
        joined = index.linked(a, b) | index.linked(b, a)
        neighbours = self.neighbours.changed(a, b, joined)
        paths = self.paths.changed(self.index, index, added, removed)
        return Snapshot(index, neighbours, paths, self.size, self.seed)

    def contexts(self, kind: Kind, which: Ints) -> Contexts:
        """The contexts of these elements, in their order."""
        if kind == "entity":
            return entity_contexts(self.neighbours, which, self.size)
        return relation_contexts(self.paths, which, self.size, self.seed)

    def present(self, entities: Ints) -> Flags:
        """Check which of these entities are in any triple."""
        return np.asarray((self.index.out_degree(entities) + self.index.in_degree(entities)) > 0)


def affected_entities(before: Snapshot, after: Snapshot, changes: Rows, rule: Rule) -> Ints:
    """The entities of both snapshots that the change affects, sorted.

    Only contexts of the ends of changed triples, and of the common neighbours of two ends, are
    compared.

    Args:
        changes: triples in just one of the two snapshots.
    """
    ends = np.unique(changes[:, [HEAD, TAIL]])
    if rule == "neighbour":
        new_or_vanished = ends[~(before.present(ends) & after.present(ends))]
        near = [s.neighbours.of(new_or_vanished).value for s in (before, after)]
    else:
        head, tail = changes[:, HEAD], changes[:, TAIL]
        near = [ends, *(s.neighbours.common(head, tail).value for s in (before, after))]
    candidates = np.unique(np.concatenate(near))
    candidates = candidates[before.present(candidates) & after.present(candidates)]
    if rule == "neighbour":
        return candidates
    affected = _changed_contexts(before, after, "entity", candidates)
    if rule == "touched":
        affected |= np.isin(candidates, ends)
    return np.asarray(candidates[affected])


def affected_relations(before: Snapshot, after: Snapshot, relations: Ints, rule: Rule) -> Ints:
    """The relations whose context the change affects.

    The rule `neighbour` gives an empty list: the authors' code compares names, which means nothing.
    """
    if rule == "neighbour":
        return relations[:0]
    relations = np.intersect1d(relations, before.paths.may_differ(after.paths))
    return np.asarray(relations[_changed_contexts(before, after, "relation", relations)])


def _changed_contexts(before: Snapshot, after: Snapshot, kind: Kind, which: Ints) -> Flags:
    return np.asarray(before.contexts(kind, which).digest != after.contexts(kind, which).digest)


@dataclass(frozen=True)
class UpdateTriples:
    """The triples of the elements that an update trains; a sample of them for hubs.

    always: triples of elements with few triples, and added triples.
    sides: the triples with a hub as head, and with a hub as tail; each with the hub it belongs to.
    hubs: entities with more than `at_most` triples on one side.
    """

    always: Rows
    sides: tuple[tuple[Ragged, Rows], ...]
    hubs: Ints
    at_most: int
    seed: int

    @staticmethod
    def of(
        after: Snapshot, added: Rows, which: Mapping[Kind, Ints], at_most: int, seed: int
    ) -> "UpdateTriples":
        """The triples with any element of `which`.

        Triples of a relation are searched in `added` and in a sample of the graph, because the index
        has no order by relation.

        Args:
            added: triples that are always included if they have an element of `which`.
            at_most: triples of one entity as head, and as tail.
        """
        index, entities = after.index, which["entity"]
        many = np.maximum(index.out_degree(entities), index.in_degree(entities)) > at_most
        with_entity = np.isin(added[:, [HEAD, TAIL]], entities).any(1)
        always = [added[with_entity], *(rows for _, rows in _sides(after, entities[~many]))]
        if len(which["relation"]):
            some = np.concatenate([added, index.sample(SAMPLED_TRIPLES, seed)])
            always.append(some[np.isin(some[:, RELATION], which["relation"])])
        hubs = entities[many]
        return UpdateTriples(np.concatenate(always), _sides(after, hubs), hubs, at_most, seed)

    def draw(self, epoch: int) -> Rows:
        """The triples of an epoch."""
        drawn = [
            rows[sampled(lists, self.at_most, self.seed + epoch, self.hubs)]
            for lists, rows in self.sides
        ]
        return distinct(np.concatenate([self.always, *drawn]))


def _sides(after: Snapshot, entities: Ints) -> tuple[tuple[Ragged, Rows], ...]:
    """The triples with each entity as head, and with each as tail."""
    as_head, relation, tail = after.index.out(entities)
    as_tail, other, head = after.index.into(entities)
    return (
        (Ragged(as_head, tail), np.stack([entities[as_head], relation, tail], axis=1)),
        (Ragged(as_tail, head), np.stack([head, other, entities[as_tail]], axis=1)),
    )
