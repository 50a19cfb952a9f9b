"""Ranks of triples against all entities, computed in blocks."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepwell.evaluation.link_prediction import Ranks, concatenate, filtered_ranks
from stepwell.kg.embedding import COLUMNS, Kind, Table
from stepwell.kg.triple_index import HEAD, RELATION, TAIL, Rows, TripleIndex

#: The queried end of a triple.
Side = Literal["head", "tail"]
SIDES: tuple[Side, Side] = ("head", "tail")
#: Distances computed at once.
BLOCK = 1 << 23


def distances_to_all(
    joint: Mapping[Kind, Table], rows: Rows, side: Side
) -> Float[Tensor, "triples entities"]:
    """||h* + r* - t*|| of each triple, with each entity at the queried end."""
    triples = torch.from_numpy(rows)
    given, sign = (HEAD, 1) if side == "tail" else (TAIL, -1)
    relation = joint["relation"][triples[:, RELATION]]
    return torch.cdist(joint["entity"][triples[:, given]] + sign * relation, joint["entity"])


def distances(joint: Mapping[Kind, Table], rows: Rows) -> Float[Tensor, " triples"]:
    """||h* + r* - t*|| of triples."""
    triples = torch.from_numpy(rows)
    h, r, t = (joint[kind][triples[:, i]] for i, kind in COLUMNS)
    return (h + r - t).norm(dim=1)


#: Maps triples and the queried end to the distances of all entities at that end.
Far = Callable[[Rows, Side], Float[Tensor, "triples entities"]]


def rank_triples(
    far: Far, rows: Rows, known: TripleIndex, candidate: Bool[Tensor, " entities"],
    sides: tuple[Side, ...] = SIDES,
) -> Ranks:  # fmt: skip
    """Realistic filtered ranks of both ends of triples: first all heads, then all tails.

    Args:
        far: such as `distances_to_all` of joint vectors.
        known: true triples; other true answers do not compete.
        candidate: marks the entities that compete.
        sides: the queried ends.
    """
    count = max(1, BLOCK // max(1, len(candidate)))
    parts = [Ranks(torch.zeros(0).double(), torch.zeros(0).long())]
    for side in sides:
        for first in range(0, len(rows), count):
            block = rows[first : first + count]
            h, r, t = block.T
            answers = known.tails(h, r) if side == "tail" else known.heads(r, t)
            right = torch.from_numpy(t if side == "tail" else h)
            owner, value = map(torch.from_numpy, answers)
            parts.append(filtered_ranks(far(block, side), right, owner, value, candidate))
    return concatenate(parts)
