"""Training from scratch: corrupted triples, their margin to true triples, and DKGE.

DKGE is dynamic knowledge-graph embedding (Wu et al. 2022, section 4).
"""

from abc import abstractmethod

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from stepwell.kg.contexts import Contexts
from stepwell.kg.embedding import KINDS, GraphEmbedding, Kind, Table, Vectors, distance
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.triple_index import HEAD, RELATION, TAIL, Ints, Rows, TripleIndex
from stepwell.methods.objective import Objective
from stepwell.types import Step

Triples = Int64[Tensor, "_ 3"]
AllContexts = dict[Kind, Contexts | None]
#: Times that a corrupted triple is drawn again if it is true.
REDRAWS = 3


def by_kind(triples: Triples) -> tuple[tuple[Kind, Int64[Tensor, "..."]], ...]:
    """The entities (batch, 2) and the relations (batch,) of triples."""
    return ("entity", triples[:, [HEAD, TAIL]]), ("relation", triples[:, RELATION])


class Corruption:
    """Draws false triples: it replaces the head or the tail of true triples.

    It replaces the head with probability tph / (tph + hpt), by relation (Wang et al. 2014, "bern"); tph
    is the mean number of tails of a head, and hpt the mean number of heads of a tail.

    Args:
        index: the true triples.
        rows: the triples to corrupt; they give the probabilities.
        entities: the replacements.
    """

    def __init__(self, index: TripleIndex, rows: Rows, entities: Ints) -> None:
        self.index = index
        self.entities = torch.from_numpy(entities)
        self.replace_head = torch.from_numpy(_head_probability(rows)).float()

    def __call__(
        self, triples: Int64[Tensor, "batch 3"], times: int
    ) -> tuple[Int64[Tensor, "false 3"], Bool[Tensor, " false"]]:
        """Draw `times` corrupted triples of each, and mark the false ones: a few may stay true."""
        drawn = triples.repeat_interleave(times, dim=0)
        head = torch.rand(len(drawn)) < self.replace_head[drawn[:, RELATION]]
        side = torch.where(head, HEAD, TAIL)
        row = torch.arange(len(drawn))
        true = torch.ones(len(drawn), dtype=torch.bool)
        for _ in range(1 + REDRAWS):
            again = true.nonzero().flatten()
            if not len(again):
                break
            other = self.entities[torch.randint(len(self.entities), (len(again),))]
            drawn[row[again], side[again]] = other
            true[again] = torch.from_numpy(self.index.holds(drawn[again].numpy()))
        return drawn, ~true


def _head_probability(rows: Rows) -> Float64[np.ndarray, " relations"]:
    """The probability of replacing the head, by relation; half for relations without triples."""
    relation = rows[:, RELATION]
    count = int(relation.max()) + 1 if len(rows) else 0
    heads, tails = (
        np.bincount(np.unique(rows[:, [RELATION, side]], axis=0)[:, 0], minlength=count)
        for side in (HEAD, TAIL)
    )
    # tph / (tph + hpt), where tph is triples / heads, and hpt is triples / tails
    return np.where(heads > 0, tails / np.maximum(heads + tails, 1), 0.5)


def margin_loss(
    true: Float[Tensor, " batch"],
    false: Float[Tensor, "batch times"],
    margin: float,
    counts: Bool[Tensor, "batch times"],
) -> Float[Tensor, ""]:
    """Mean of max(0, margin + true - false) over the pairs that count (Bordes et al. 2013).

    `true` and `false` are distances of true and of corrupted triples.
    """
    pairs = torch.relu(margin + true[:, None] - false)
    return (pairs * counts).sum() / counts.sum().clamp(min=1)


class Translation(Objective):
    """Learns joint vectors with h* + r* near t* for true triples, and far from it for false ones.

    Args:
        margin: the distance by which a false triple has to be farther.
        negatives: false triples per true triple.
        removed: triples that are no longer true. unlearn: the weight of their loss.
    """

    def __init__(
        self, corrupt: Corruption, *, margin: float, negatives: int, removed: Triples | None = None,
        unlearn: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.corrupt, self.margin, self.negatives = corrupt, margin, negatives
        self._removed = removed if removed is not None and unlearn else torch.zeros(0, 3).long()
        self.unlearn = unlearn

    @abstractmethod
    def joint(self, kind: Kind, which: Int64[Tensor, " elements"]) -> Vectors:
        """Joint vectors of the elements `which`, which are distinct and sorted."""

    def training_step(self, batch: Triples) -> Step:
        """The margin loss, plus the mean amount by which removed triples are nearer than true ones.

        The second term is needed because a removed triple is seldom drawn among all false ones. It has
        no
        margin: with a margin, held-out triples that resemble removed ones rank worse.
        """
        some = self._removed[torch.randperm(len(self._removed))[: len(batch)]]
        false, counts = self.corrupt(batch, self.negatives)
        far = self.distances(torch.cat([batch, false, some]))
        true, others, left = far.split([len(batch), len(false), len(some)])
        others = others.view(len(batch), -1)
        loss = margin_loss(true, others, self.margin, counts.view_as(others))
        if len(some):
            nearer = torch.relu(true[torch.randint(len(batch), (len(some),))] - left)
            loss = loss + self.unlearn * nearer.mean()
        return Step(loss, {})

    def distances(self, triples: Int64[Tensor, "batch 3"]) -> Float[Tensor, " batch"]:
        """||h* + r* - t*|| of each triple."""
        vectors = {}
        for kind, which in by_kind(triples):
            used, place = which.unique(return_inverse=True)
            vectors[kind] = self.joint(kind, used)[place]
        head, tail = vectors["entity"].unbind(1)
        return distance(head + vectors["relation"] - tail)


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
