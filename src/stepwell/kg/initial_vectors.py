"""Vectors that new elements start from, computed from their triples without training."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from stepwell.kg.embedding import COLUMNS, KINDS, Kind, Table, xavier
from stepwell.kg.triple_index import Ints, Rows


def initial_vectors(
    joint: Mapping[Kind, Table], added: Rows, new: Mapping[Kind, Ints], passes: int = 3
) -> dict[Kind, Table]:
    """Compute joint vectors for new elements from their triples.

    An entity gets the mean of t* - r* and h* + r* over its triples, and a relation the mean of t* - h*.
    Only triples whose other elements have a vector count; several passes serve new elements beside new
    ones. Elements that no pass reaches get a random vector.

    Args:
        joint: joint vectors by kind; rows of new elements are not used.
        added: triples, with all triples of the new elements among them.
        new: elements without a vector, by kind, sorted.
    """
    number = {kind: torch.from_numpy(new[kind]) for kind in KINDS}
    vectors = {kind: xavier(len(new[kind]), joint[kind].shape[1]) for kind in KINDS}
    known = {kind: torch.zeros(len(new[kind]), dtype=torch.bool) for kind in KINDS}
    rows = torch.from_numpy(added)
    for _ in range(passes):
        h, r, t = (
            _Column.of(rows[:, i].contiguous(), joint[k], number[k], vectors[k], known[k])
            for i, k in COLUMNS
        )
        estimates: dict[Kind, list[tuple[_Column, Tensor, Tensor]]] = {
            "entity": [(h, t.vector - r.vector, r.known & t.known),
                       (t, h.vector + r.vector, h.known & r.known)],
            "relation": [(r, t.vector - h.vector, h.known & t.known)],
        }  # fmt: skip
        for kind in KINDS:
            _take_means(vectors[kind], known[kind], estimates[kind])
    return vectors


class _Column(NamedTuple):
    """The elements in one column of triples: current vectors, and places among new ones (-1: old)."""

    vector: Tensor
    known: Tensor
    place: Tensor

    @staticmethod
    def of(which: Tensor, joint: Tensor, new: Tensor, vectors: Tensor, known: Tensor) -> "_Column":
        vector, has_vector = joint[which], torch.ones(len(which), dtype=torch.bool)
        place = positions(new, which)
        is_new = place >= 0
        vector[is_new], has_vector[is_new] = vectors[place[is_new]], known[place[is_new]]
        return _Column(vector, has_vector, place)


def positions(
    numbers: Int64[Tensor, " numbers"], which: Int64[Tensor, " which"]
) -> Int64[Tensor, " which"]:
    """The positions of `which` among sorted `numbers`; -1 for absent ones."""
    if not len(numbers):
        return torch.full_like(which, -1)
    at = torch.searchsorted(numbers, which).clamp(max=len(numbers) - 1)
    return torch.where(numbers[at] == which, at, -1)


def _take_means(
    vectors: Tensor, known: Tensor, estimates: list[tuple[_Column, Tensor, Tensor]]
) -> None:
    """Set the vectors of new elements to the mean of their estimates, if there are any."""
    total, count = torch.zeros_like(vectors), torch.zeros(len(vectors))
    for column, estimate, usable in estimates:
        take = usable & (column.place >= 0)
        total.index_add_(0, column.place[take], estimate[take])
        count.index_add_(0, column.place[take], torch.ones(int(take.sum())))
    some = count > 0
    vectors[some] = total[some] / count[some, None]
    known |= some
