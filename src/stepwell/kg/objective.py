"""Dynamic knowledge-graph embedding, learnt from scratch (Wu et al. 2022, section 4)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from stepwell.kg.contexts import Contexts
from stepwell.kg.embedding import KINDS, GraphEmbedding, Kind
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.translation import Corruption, Translation
from stepwell.kg.triple_index import HEAD, TAIL


class DKGE(Translation):
    """All vectors of a graph, learnt by translation.

    Args:
        net: of as many elements as there are numbers in `facts`, or more.
        facts: the graph that contexts and triples come from.
        margin, negatives, removed, unlearn: as for `Translation`.
    """

    def __init__(
        self,
        net: GraphEmbedding,
        facts: Snapshot,
        *,
        margin: float = 4.0,
        negatives: int = 1,
        removed: Tensor | None = None,
        unlearn: float = 0.0,
    ) -> None:
        rows = facts.index.rows
        corrupt = Corruption(facts.index, rows, np.unique(rows[:, [HEAD, TAIL]]))
        super().__init__(
            corrupt, margin=margin, negatives=negatives, removed=removed, unlearn=unlearn
        )
        self.net = net
        self.contexts = all_contexts(net, facts)

    def joint(self, kind: Kind, which: Tensor) -> Tensor:
        """Joint vectors of the elements `which`."""
        contexts = self.contexts[kind]
        return self.net.joint(kind, which, None if contexts is None else contexts.select(which))

    def all_joint(self) -> dict[Kind, Tensor]:
        """The joint vectors of all elements as they are now, without gradients."""
        return _all_joint(self.net, self.contexts)


def all_contexts(net: GraphEmbedding, facts: Snapshot) -> dict[Kind, Contexts | None]:
    """The contexts of all elements of a net, if it has any use for them."""
    return {
        kind: facts.contexts(kind, np.arange(len(net.knowledge[kind]))) if net.has_context else None
        for kind in KINDS
    }


def joint_vectors(net: GraphEmbedding, facts: Snapshot) -> dict[Kind, Tensor]:
    """The joint vectors of all elements, without gradients."""
    return _all_joint(net, all_contexts(net, facts))


@torch.no_grad()
def _all_joint(net: GraphEmbedding, contexts: Mapping[Kind, Contexts | None]) -> dict[Kind, Tensor]:
    return {kind: net.all_joint(kind, contexts[kind]) for kind in KINDS}
