"""Dynamic knowledge-graph embedding, learned from scratch (Wu et al. 2022, section 4)."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from stepwell.kg.contexts import Contexts
from stepwell.kg.embedding import KINDS, GraphEmbedding, Kind, Table, Vectors
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.translation import Corruption, Translation, Triples
from stepwell.kg.triple_index import HEAD, TAIL

AllContexts = dict[Kind, Contexts | None]


class DKGE(Translation):
    """The training rule of all vectors of a graph.

    Args:
        net: with a vector for each number in `snapshot`, or more.
        snapshot: the source of contexts and triples.
        margin, negatives, removed, unlearn: as for `Translation`.
    """

    def __init__(
        self, net: GraphEmbedding, snapshot: Snapshot, *, margin: float = 4.0, negatives: int = 1,
        removed: Triples | None = None, unlearn: float = 0.0,
    ) -> None:  # fmt: skip
        rows = snapshot.index.rows
        corrupt = Corruption(snapshot.index, rows, np.unique(rows[:, [HEAD, TAIL]]))
        super().__init__(corrupt, margin=margin, negatives=negatives, removed=removed, unlearn=unlearn)
        self.net, self.snapshot = net, snapshot
        self.contexts = all_contexts(net, snapshot)

    def joint(self, kind: Kind, which: Int64[Tensor, " elements"]) -> Vectors:
        """Joint vectors of the elements `which`."""
        contexts = self.contexts[kind]
        return self.net.joint(kind, which, None if contexts is None else contexts.select(which))

    def all_joint(self) -> dict[Kind, Table]:
        """The current joint vectors of all elements, without gradients."""
        return joint_vectors(self.net, self.snapshot, self.contexts)


def all_contexts(net: GraphEmbedding, snapshot: Snapshot) -> AllContexts:
    """The contexts of all elements; None for a net without context."""
    return {
        k: snapshot.contexts(k, np.arange(len(net.knowledge[k]))) if net.has_context else None
        for k in KINDS
    }


@torch.no_grad()
def joint_vectors(
    net: GraphEmbedding, snapshot: Snapshot, contexts: AllContexts | None = None
) -> dict[Kind, Table]:
    """The joint vectors of all elements, without gradients; `contexts` of `snapshot` may be given."""
    contexts = contexts or all_contexts(net, snapshot)
    return {kind: net.all_joint(kind, contexts[kind]) for kind in KINDS}
