"""A knowledge graph at one moment, and what a change of it touches."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from stepwell.nets.contexts import Contexts, RelationPaths, entity_contexts, relation_contexts
from stepwell.nets.graph import Kind
from stepwell.nets.triple_index import HEAD, TAIL, Ints, Neighbours, TripleIndex

#: Which elements a change affects: `context`: those whose context is another (the definition in the
#: paper's text); `neighbour`: entities with a neighbour that is new or gone (the authors' code);
#: `touched`: `context`, and the ends of each triple that was added or removed.
Rule = Literal["context", "neighbour", "touched"]


@dataclass(frozen=True)
class Facts:
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
    def of(rows: Ints, *, size: int, seed: int) -> "Facts":
        """Those of triples (n, 3); repeated ones count once."""
        index = TripleIndex(rows)
        neighbours = Neighbours(index.rows, seed)
        return Facts(index, neighbours, RelationPaths.of(index), size, seed)

    def changed(self, added: Ints, removed: Ints) -> "Facts":
        """The facts without `removed` and with `added`, each in just one of the two."""
        index = self.index.changed(added, removed)
        a, _, b = np.concatenate([added, removed]).T
        a, b = a[a != b], b[a != b]
        joined = index.linked(a, b) | index.linked(b, a)
        return Facts(
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


def affected_entities(before: Facts, after: Facts, changes: Ints, rule: Rule) -> Ints:
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


def affected_relations(before: Facts, after: Facts, relations: Ints, rule: Rule) -> Ints:
    """Those of `relations` whose context a change touches.

    (The authors' code finds them by a test of names, which means nothing; by its rule we take none.)
    """
    if rule == "neighbour":
        return relations[:0]
    relations = np.intersect1d(relations, before.paths.may_differ(after.paths))
    digests = [f.contexts("relation", relations).digest for f in (before, after)]
    return np.asarray(relations[digests[0] != digests[1]])
