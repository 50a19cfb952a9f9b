"""A knowledge graph at one moment, and what a change of it touches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stepwell.kg.contexts import Contexts, RelationPaths, entity_contexts, relation_contexts
from stepwell.kg.embedding import Kind
from stepwell.kg.triple_index import (
    HEAD,
    RELATION,
    TAIL,
    Found,
    Ints,
    Neighbours,
    TripleIndex,
    distinct,
    sampled,
)

#: Of affected relations, triples are looked for in a sample of the graph of this size.
SAMPLED_TRIPLES = 8192

#: Which elements a change affects: `context`: those whose context is another (the definition in the
#: paper's text); `neighbour`: entities with a neighbour that is new or gone (the authors' code);
#: `touched`: `context`, and the ends of each triple that was added or removed.
Rule = Literal["context", "neighbour", "touched"]


@dataclass(frozen=True)
class Snapshot:
    """The triples of a graph in every form that contexts are made from; never changed.

    size: members of a context, at most.
    seed: of the samples that contexts are cut to.
    """

    index: TripleIndex
    neighbours: Neighbours
    paths: RelationPaths
    size: int
    seed: int

    @staticmethod
    def of(rows: Ints, *, size: int, seed: int) -> "Snapshot":
        """Those of triples (n, 3); repeated ones count once."""
        index = TripleIndex(rows)
        neighbours = Neighbours(index.rows, seed)
        return Snapshot(index, neighbours, RelationPaths.of(index), size, seed)

    def changed(self, added: Ints, removed: Ints) -> "Snapshot":
        """The facts without `removed` and with `added`, each in just one of the two."""
        index = self.index.changed(added, removed)
        a, _, b = np.concatenate([added, removed]).T
        a, b = a[a != b], b[a != b]
        joined = index.linked(a, b) | index.linked(b, a)
        return Snapshot(
            index,
            self.neighbours.changed(a, b, joined),
            self.paths.changed(self.index, index, added, removed),
            self.size,
            self.seed,
        )

    def contexts(self, kind: Kind, which: Ints) -> Contexts:
        """The contexts of these elements, in their order."""
        if kind == "entity":
            return entity_contexts(self.neighbours, which, self.size)
        return relation_contexts(self.paths, which, self.size, self.seed)

    def present(self, entities: Ints) -> np.ndarray:
        """Whether each of these entities stands in any triple."""
        return np.asarray((self.index.out_degree(entities) + self.index.in_degree(entities)) > 0)


def affected_entities(before: Snapshot, after: Snapshot, changes: Ints, rule: Rule) -> Ints:
    """Entities of both graphs that a change touches, sorted.

    The cost follows the change: what is compared are the ends of changed triples and the common
    neighbours of each two.

    Args:
        changes: triples that are in just one of the graphs.
    """
    ends = np.unique(changes[:, [HEAD, TAIL]])
    if rule == "neighbour":
        there = before.present(ends) & after.present(ends)
        come_or_gone = ends[~there]
        around = [f.neighbours.of(come_or_gone).value for f in (before, after)]
        found = np.unique(np.concatenate(around))
    else:
        a, b = changes[:, HEAD], changes[:, TAIL]
        common = [f.neighbours.common(a, b).value for f in (before, after)]
        found = np.unique(np.concatenate([ends, *common]))
    found = found[before.present(found) & after.present(found)]
    if rule == "neighbour":
        return found
    other = before.contexts("entity", found).digest != after.contexts("entity", found).digest
    if rule == "touched":
        other |= np.isin(found, ends)
    return np.asarray(found[other])


def affected_relations(before: Snapshot, after: Snapshot, relations: Ints, rule: Rule) -> Ints:
    """Those of `relations` whose context a change touches.

    (The authors' code finds them by a test of names, which means nothing; by its rule we take none.)
    """
    if rule == "neighbour":
        return relations[:0]
    relations = np.intersect1d(relations, before.paths.may_differ(after.paths))
    digests = [f.contexts("relation", relations).digest for f in (before, after)]
    return np.asarray(relations[digests[0] != digests[1]])


@dataclass(frozen=True)
class About:
    """The triples that an update learns: what its elements stand in, a sample of what hubs stand in.

    always: (n, 3) those of elements with few, and all that were added. sides: of entities with many,
    all triples that begin in one, and all that end in one: whose each is, and the triple.
    """

    always: Ints
    sides: tuple[tuple[Found, Ints], ...]
    hubs: Ints
    at_most: int
    seed: int

    @staticmethod
    def of(
        after: Snapshot, added: Ints, which: Mapping[Kind, Ints], at_most: int, seed: int
    ) -> "About":
        """The triples with any of these elements.

        Args:
            added: triples that are always learnt, if any of `which` is in them. In them, and in a
                sample of the graph, those of a relation are looked for: no order has all of a relation
                together.
            at_most: triples that begin in one entity, and that end in it.
        """
        index, entities = after.index, which["entity"]
        many = np.maximum(index.out_degree(entities), index.in_degree(entities)) > at_most
        mine = np.isin(added[:, [HEAD, TAIL]], entities).any(1)
        always = [added[mine], *(rows for _, rows in _sides(after, entities[~many]))]
        if len(which["relation"]):
            some = np.concatenate([added, index.sample(SAMPLED_TRIPLES, seed)])
            always.append(some[np.isin(some[:, RELATION], which["relation"])])
        hubs = entities[many]
        return About(np.concatenate(always), _sides(after, hubs), hubs, at_most, seed)

    def draw(self, epoch: int) -> Ints:
        """The triples (n, 3) of an epoch."""
        drawn = [
            rows[sampled(found, self.at_most, self.seed + epoch, self.hubs)]
            for found, rows in self.sides
        ]
        return distinct(np.concatenate([self.always, *drawn]))


def _sides(after: Snapshot, entities: Ints) -> tuple[tuple[Found, Ints], ...]:
    """The triples that begin in each entity, and those that end in it."""
    begin, relation, tail = after.index.out(entities)
    end, other, head = after.index.into(entities)
    return (
        (Found(begin, tail), np.stack([entities[begin], relation, tail], axis=1)),
        (Found(end, head), np.stack([head, other, entities[end]], axis=1)),
    )
