"""Dynamic knowledge-graph embedding, learnt from scratch (Wu et al. 2022, section 4)."""

import numpy as np
import torch
from torch import Tensor

from stepwell.methods.objective import Objective
from stepwell.methods.translation import Corruption, Triples, by_kind, margin_loss
from stepwell.nets.contexts import Contexts
from stepwell.nets.facts import Facts
from stepwell.nets.graph import KINDS, GraphEmbedding, Kind, distance
from stepwell.nets.triple_index import HEAD, TAIL
from stepwell.types import Step


class DKGE(Objective):
    """Joint vectors such that h* + r* is near t* for true triples, and far from it for others.

    Each element of a batch is encoded once, whatever the number of its triples.

    Args:
        net: of as many elements as there are numbers in `facts`, or more.
        facts: the graph that contexts and triples come from.
        margin: how much farther a false triple has to be.
        negatives: false triples a true one.
    """

    def __init__(
        self, net: GraphEmbedding, facts: Facts, *, margin: float = 4.0, negatives: int = 1
    ) -> None:
        super().__init__()
        self.net = net
        self.margin, self.negatives = margin, negatives
        self.contexts = all_contexts(net, facts)
        rows = facts.index.rows
        self.corrupt = Corruption(facts.index, rows, np.unique(rows[:, [HEAD, TAIL]]))

    def training_step(self, batch: Triples) -> Step:
        """The margin loss of a batch of true triples."""
        false, counts = self.corrupt(batch, self.negatives)
        far = self.distances(torch.cat([batch, false]))
        true, others = far[: len(batch)], far[len(batch) :].view(len(batch), -1)
        return Step(margin_loss(true, others, self.margin, counts.view_as(others)), {})

    def distances(self, triples: Triples) -> Tensor:
        """||h* + r* - t*|| of each triple."""
        vectors = {}
        for kind, which in by_kind(triples):
            used, place = which.unique(return_inverse=True)
            contexts = self.contexts[kind]
            here = None if contexts is None else contexts.select(used)
            vectors[kind] = self.net.joint(kind, used, here)[place]
        head, tail = vectors["entity"].unbind(1)
        return distance(head + vectors["relation"] - tail)


def all_contexts(net: GraphEmbedding, facts: Facts) -> dict[Kind, Contexts | None]:
    """The contexts of all elements of a net, if it has any use for them."""
    return {
        kind: facts.contexts(kind, np.arange(len(net.knowledge[kind]))) if net.has_context else None
        for kind in KINDS
    }


@torch.no_grad()
def joint_vectors(net: GraphEmbedding, facts: Facts) -> dict[Kind, Tensor]:
    """The joint vectors of all elements."""
    contexts = all_contexts(net, facts)
    return {kind: net.all_joint(kind, contexts[kind]) for kind in KINDS}
