"""Weighted sums of ragged rows, and attention over them.

A weighted sum is a product with a sparse matrix, and its gradient a product with the transposed matrix:
each reads the rows once. Autograd (gather, multiply, scatter) would read them several times.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag


def offsets_of(lengths: Int64[Tensor, " lists"]) -> Int64[Tensor, " offsets"]:
    """The offset of each list in their concatenation, and the end of the last one."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def weighted_sums(
    table: Float[Tensor, "rows dim"],
    element: Int64[Tensor, " entries"],
    offsets: Int64[Tensor, " offsets"],
    weight: Float[Tensor, " entries"],
) -> Float[Tensor, "sums dim"]:
    """Sum weighted rows of a table; only the table gets a gradient.

    Args:
        element, weight: the row of each entry, and its weight.
        offsets: (sums + 1,) of the entries of each sum.

    Raises:
        ValueError: weights require a gradient.
    """
    if weight.requires_grad:
        raise ValueError("weights are constants here and get no gradient: detach them")
    sums: Tensor = _WeightedSums.apply(table, element, offsets, weight)
    return sums


def attention_sums(
    rows: Float[Tensor, "rows dim"],
    query: Float[Tensor, "owners dim"],
    offsets: Int64[Tensor, " offsets"],
    owner: Int64[Tensor, " rows"],
) -> Float[Tensor, "owners dim"]:
    """Sum the rows of each owner, weighted by the softmax of their products with the owner's query.

    Args:
        offsets: (owners + 1,) of the rows of each owner.
        owner: of each row.
    """
    sums: Tensor = _AttentionSums.apply(rows, query, offsets, owner)
    return sums


class _WeightedSums(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, element: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(element, offsets, weight)
        ctx.count = len(table)
        return _bags(table, element, offsets, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        element, offsets, weight = ctx.saved_tensors
        by_element = offsets_of(torch.bincount(element, minlength=ctx.count))
        order = _order(element, ctx.count)
        owner = torch.repeat_interleave(torch.arange(len(grad)), offsets.diff())
        return _bags(grad, owner[order], by_element, weight[order]), None, None, None


class _AttentionSums(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, query: Tensor, offsets: Tensor, owner: Tensor) -> Tensor:
        share = _softmax((rows * query.index_select(0, owner)).sum(1), offsets, owner)
        sums = _bags(rows, torch.arange(len(rows)), offsets, share)
        ctx.save_for_backward(rows, query, offsets, owner, share, sums)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, query, offsets, owner, share, sums = ctx.saved_tensors
        by_share = (rows * grad.index_select(0, owner)).sum(1)
        by_score = share * (by_share - (sums * grad).sum(1)[owner])
        # of each row: its share of its owner's gradient, and the effect of its score on the query
        both = torch.stack([owner, owner + len(query)], dim=1).flatten()
        weight = torch.stack([share, by_score], dim=1).flatten()
        by_row = _bags(torch.cat([grad, query]), both, torch.arange(0, len(both) + 1, 2), weight)
        return by_row, _bags(rows, torch.arange(len(rows)), offsets, by_score), None, None


def _bags(table: Tensor, element: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    return embedding_bag(
        element, table, offsets, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _order(element: Tensor, count: int) -> Tensor:
    """Sort the positions of the elements; 16-bit numbers take a fifth of the time."""
    narrow = torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32
    return torch.argsort(element.to(narrow), stable=True)


def _softmax(scores: Tensor, offsets: Tensor, owner: Tensor) -> Tensor:
    """Softmax over the scores of each owner."""
    raised = torch.exp(scores - torch.segment_reduce(scores, "max", offsets=offsets)[owner])
    return raised / torch.segment_reduce(raised, "sum", offsets=offsets)[owner]
