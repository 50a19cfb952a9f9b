"""Link prediction: the rank of the true answer to (head, relation, ?) among all entities.

Ranks are realistic: the mean of the best and the worst rank that ties allow (Berrendorf et al. 2020).
A model that gives every entity the same score gets the middle rank, not the first. NaN is an error.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

HITS = (1, 3, 10)


class Ranks(NamedTuple):
    """Ranks of true answers, where 1 is best, and the number of candidates of each."""

    rank: Float[Tensor, " queries"]
    candidates: Int[Tensor, " queries"]


def filtered_ranks(
    distance: Float[Tensor, "queries entities"],
    answer: Int[Tensor, " queries"],
    known_query: Int[Tensor, " known"],
    known_entity: Int[Tensor, " known"],
    candidate: Bool[Tensor, " entities"] | None = None,
) -> Ranks:
    """The rank of each query's answer among the candidates, without other known answers.

    Args:
        distance: how implausible each entity is as the answer; ValueError if not finite.
        answer: the true one.
        known_query, known_entity: distinct pairs of a query and a known right entity, maybe the answer.
        candidate: marks the entities that compete; all by default.
    """
    if not distance.isfinite().all():
        raise ValueError("distances are not finite: the vectors are damaged; train them again")
    true = distance.gather(1, answer[:, None])
    competes = torch.ones_like(distance, dtype=torch.bool)
    if candidate is not None:
        competes &= candidate
    competes[known_query, known_entity] = False
    competes.scatter_(1, answer[:, None], False)
    better = ((distance < true) & competes).sum(1)
    equal = ((distance == true) & competes).sum(1)
    return Ranks(1 + better.double() + equal / 2, 1 + competes.sum(1))


def concatenate(parts: Iterable[Ranks]) -> Ranks:
    """The ranks of several blocks of queries, in order."""
    rank, candidates = zip(*parts, strict=True)
    return Ranks(torch.cat(rank), torch.cat(candidates))


def link_measures(ranks: Ranks) -> Mapping[str, float]:
    """MRR, Hits@1, 3 and 10, the mean rank, and the adjusted mean rank index.

    The index is 1 if all ranks are first and 0 for chance, whatever the number of candidates
    (Berrendorf et al. 2020). Without queries, all are NaN.
    """
    rank = ranks.rank
    measures = {"mrr": (1 / rank).mean()}
    measures |= {f"hits@{k}": (rank <= k).double().mean() for k in HITS}
    chance = (ranks.candidates.double() + 1) / 2
    measures["mean_rank"] = rank.mean()
    measures["adjusted"] = 1 - (rank - 1).sum() / (chance - 1).sum()
    return {name: float(value) for name, value in measures.items()}


def retained_auc(retained: Float[Tensor, " retained"], deleted: Float[Tensor, " deleted"]) -> float:
    """The share of pairs of distances in which a deleted triple is farther than a retained one.

    0.5 means that nothing was unlearned. Ties count half (the statistic of Mann and Whitney).
    """
    retained = retained.sort().values
    below = torch.searchsorted(retained, deleted)
    up_to = torch.searchsorted(retained, deleted, right=True)
    return float(((below + up_to).double() / 2).mean() / len(retained))
