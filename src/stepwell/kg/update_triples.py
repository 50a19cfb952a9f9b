"""The triples that an update trains on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stepwell.kg.embedding import Kind
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.triple_index import HEAD, RELATION, TAIL, Ints, Ragged, Rows, distinct, sampled

#: Triples of affected relations are searched in a sample of the graph of this size.
SAMPLED_TRIPLES = 8192


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

        Args:
            added: triples that are always trained on if they have an element of `which`. Triples of a
                relation are searched in them and in a sample of the graph: the index has no order by
                relation.
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
    begin, relation, tail = after.index.out(entities)
    end, other, head = after.index.into(entities)
    return (
        (Ragged(begin, tail), np.stack([entities[begin], relation, tail], axis=1)),
        (Ragged(end, head), np.stack([head, other, entities[end]], axis=1)),
    )
