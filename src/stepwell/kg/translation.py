"""Training by translation: corrupted triples, and the margin between them and true ones."""

from abc import abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepwell.kg.embedding import Kind, distance
from stepwell.kg.triple_index import HEAD, RELATION, TAIL, Ints, TripleIndex
from stepwell.methods.objective import Objective
from stepwell.types import Step

Triples = Int[Tensor, "batch 3"]
#: How often a corrupted triple that is a true one is drawn again.
REDRAWN = 3


def by_kind(triples: Triples) -> tuple[tuple[Kind, Tensor], ...]:
    """The entities (batch, 2) and the relations (batch,) of triples."""
    return ("entity", triples[:, [HEAD, TAIL]]), ("relation", triples[:, RELATION])


class Corruption:
    """Draws false triples: the head or the tail of a true one is replaced.

    Which of the two is drawn for each relation by itself (Wang et al. 2014, "bern"): the head with
    probability tph / (tph + hpt), where tph is the mean number of tails a head has and hpt that of
    heads a tail has. So the side that has few right answers is replaced more often.

    Args:
        index: the true triples.
        rows: those that are corrupted, (n, 3); from them comes which side is replaced how often.
        entities: what replaces.
    """

    def __init__(self, index: TripleIndex, rows: Ints, entities: Ints) -> None:
        self.index = index
        self.entities = torch.from_numpy(entities)
        self.replace_head = torch.from_numpy(_replace_head(rows)).float()

    def __call__(self, triples: Triples, times: int) -> tuple[Tensor, Tensor]:
        """`times` false triples of each, (batch · times, 3), and which of them are false indeed.

        What is a true triple after a few draws stays one, and is marked.
        """
        drawn = triples.repeat_interleave(times, dim=0)
        head = torch.rand(len(drawn)) < self.replace_head[drawn[:, RELATION]]
        side = torch.where(head, HEAD, TAIL)
        row = torch.arange(len(drawn))
        true = torch.ones(len(drawn), dtype=torch.bool)
        for _ in range(1 + REDRAWN):
            again = true.nonzero().flatten()
            if not len(again):
                break
            other = self.entities[torch.randint(len(self.entities), (len(again),))]
            drawn[row[again], side[again]] = other
            true[again] = torch.from_numpy(self.index.holds(drawn[again].numpy()))
        return drawn, ~true


def _replace_head(rows: Ints) -> np.ndarray:
    """For each relation, how often its head is to be replaced; half for those without triples."""
    relation = rows[:, RELATION]
    count = int(relation.max()) + 1 if len(rows) else 0
    triples = np.bincount(relation, minlength=count)
    share = np.full(count, 0.5)
    heads, tails = (
        np.bincount(np.unique(rows[:, [RELATION, side]], axis=0)[:, 0], minlength=count)
        for side in (HEAD, TAIL)
    )
    some = triples > 0
    tph, hpt = triples[some] / heads[some], triples[some] / tails[some]
    share[some] = tph / (tph + hpt)
    return share


def margin_loss(
    true: Float[Tensor, " batch"],
    false: Float[Tensor, "batch times"],
    margin: float,
    counts: Tensor,
) -> Float[Tensor, ""]:
    """Mean of max(0, margin + true - false) over pairs that count (Bordes et al. 2013).

    Args:
        true, false: distances of true triples and of corrupted ones.
        margin: how much farther a false triple has to be.
        counts: (batch, times) which pairs do.
    """
    pairs = torch.relu(margin + true[:, None] - false)
    return (pairs * counts).sum() / counts.sum().clamp(min=1)


class Translation(Objective):
    """Joint vectors such that h* + r* is near t* for true triples, and far from it for others.

    Each element of a batch is encoded once, whatever the number of its triples.

    Args:
        corrupt: draws false triples.
        margin: how much farther a false triple has to be.
        negatives: false triples a true one.
        removed: triples (n, 3) that are true no more. unlearn: weight of their loss.
    """

    def __init__(
        self,
        corrupt: Corruption,
        *,
        margin: float,
        negatives: int,
        removed: Tensor | None = None,
        unlearn: float = 0.0,
    ) -> None:
        super().__init__()
        self.corrupt, self.margin, self.negatives = corrupt, margin, negatives
        self._removed = removed if removed is not None and unlearn else torch.zeros(0, 3).long()
        self.unlearn = unlearn

    @abstractmethod
    def joint(self, kind: Kind, which: Tensor) -> Tensor:
        """Joint vectors (elements, dim) of the elements `which`, each once, sorted."""

    def training_step(self, batch: Triples) -> Step:
        """The margin loss of true triples, and by how much removed ones are nearer than drawn others.

        What leaves the graph would else be one of very many false triples, seldom drawn, while its
        ends are pulled together by what stays. There is no margin: with one, held-out triples, many of
        which are like those that left, rank worse.
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

    def distances(self, triples: Triples) -> Tensor:
        """||h* + r* - t*|| of each triple."""
        vectors = {}
        for kind, which in by_kind(triples):
            used, place = which.unique(return_inverse=True)
            vectors[kind] = self.joint(kind, used)[place]
        head, tail = vectors["entity"].unbind(1)
        return distance(head + vectors["relation"] - tail)
