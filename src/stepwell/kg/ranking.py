"""Ranks of triples against all entities, in blocks of matrices."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from stepwell.evaluation.link_prediction import Ranks, filtered_ranks, joined
from stepwell.kg.embedding import Kind
from stepwell.kg.triple_index import HEAD, RELATION, TAIL, Ints, TripleIndex

#: Which end of a triple is asked for.
Side = Literal["head", "tail"]
SIDES: tuple[Side, Side] = ("head", "tail")
#: Distances computed at once.
BLOCK = 1 << 23


def distances_to_all(joint: Mapping[Kind, Tensor], rows: Ints, side: Side) -> Tensor:
    """||h* + r* - t*|| with each entity as the end that is asked for, (triples, entities)."""
    triples = torch.from_numpy(rows)
    relation = joint["relation"][triples[:, RELATION]]
    if side == "tail":
        return torch.cdist(joint["entity"][triples[:, HEAD]] + relation, joint["entity"])
    return torch.cdist(joint["entity"][triples[:, TAIL]] - relation, joint["entity"])


def distances(joint: Mapping[Kind, Tensor], rows: Ints) -> Tensor:
    """||h* + r* - t*|| of triples (n, 3)."""
    h, r, t = torch.from_numpy(rows).unbind(1)
    return (joint["entity"][h] + joint["relation"][r] - joint["entity"][t]).norm(dim=1)


#: Triples (n, 3) and the end that is asked for, to the distances of all entities as that end.
Far = Callable[[Ints, Side], Tensor]


def rank_triples(
    far: Far,
    rows: Ints,
    known: TripleIndex,
    candidate: Tensor,
    sides: tuple[Side, ...] = SIDES,
) -> Ranks:
    """Realistic filtered ranks of both ends of triples (n, 3), first all heads, then all tails.

    Args:
        far: such as `distances_to_all` of joint vectors.
        known: triples that are right; other known answers do not compete.
        candidate: (entities,) which of them compete.
        sides: which ends are asked for.
    """
    count = max(1, BLOCK // max(1, len(candidate)))
    parts = []
    for side in sides:
        for start in range(0, len(rows), count):
            block = rows[start : start + count]
            h, r, t = block.T
            found = known.tails(h, r) if side == "tail" else known.heads(r, t)
            answer = torch.from_numpy(t if side == "tail" else h)
            parts.append(
                filtered_ranks(
                    far(block, side),
                    answer,
                    torch.from_numpy(found.owner),
                    torch.from_numpy(found.value),
                    candidate,
                )
            )
    none = torch.zeros(0)
    return joined(parts) if parts else Ranks(none.double(), none.long())
