"""Weighted sums of ragged rows, and attention over them.

A weighted sum is a product with a sparse matrix; its gradient is a product with the transposed matrix.
So each step reads the rows once. The same steps in autograd (gather, multiply, scatter) read them
several times.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag


def starts(lengths: Int64[Tensor, " lists"]) -> Int64[Tensor, " starts"]:
    """The start of each list if they lie end to end, and the end of the last one."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def weighted_sums(
    table: Float[Tensor, "rows dim"],
    element: Int64[Tensor, " entries"],
    start: Int64[Tensor, " starts"],
    weight: Float[Tensor, " entries"],
) -> Float[Tensor, "sums dim"]:
    """Sum weighted rows of a table; only the table gets a gradient.

    Args:
        table: the rows.
        element, weight: the row of each entry, and its weight.
        start: (sums + 1,) where the entries of a sum begin.

    Raises:
        ValueError: weights require a gradient.
    """
    if weight.requires_grad:
        raise ValueError("weights are constants here and get no gradient: detach them")
    sums: Tensor = _WeightedSums.apply(table, element, start, weight)
    return sums


def attention_sums(
    rows: Float[Tensor, "rows dim"],
    query: Float[Tensor, "owners dim"],
    start: Int64[Tensor, " starts"],
    owner: Int64[Tensor, " rows"],
) -> Float[Tensor, "owners dim"]:
    """Sum the rows of each owner, weighted by the softmax of their products with the owner's query.

    Args:
        start: (owners + 1,) where the rows of an owner begin.
        owner: the owner of each row.
    """
    sums: Tensor = _AttentionSums.apply(rows, query, start, owner)
    return sums


class _WeightedSums(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, element: Tensor, start: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(element, start, weight)
        ctx.count = len(table)
        return _bags(table, element, start, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        element, start, weight = ctx.saved_tensors
        begin = starts(torch.bincount(element, minlength=ctx.count))
        order = _order(element, ctx.count)
        owner = torch.repeat_interleave(torch.arange(len(grad)), start.diff())
        return _bags(grad, owner[order], begin, weight[order]), None, None, None


class _AttentionSums(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, query: Tensor, start: Tensor, owner: Tensor) -> Tensor:
        share = _softmax((rows * query.index_select(0, owner)).sum(1), start, owner)
        sums = _bags(rows, torch.arange(len(rows)), start, share)
        ctx.save_for_backward(rows, query, start, owner, share, sums)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, query, start, owner, share, sums = ctx.saved_tensors
        by_share = (rows * grad.index_select(0, owner)).sum(1)
        by_score = share * (by_share - (sums * grad).sum(1)[owner])
        # of each row: its share of its owner's gradient, and the effect of its score on the query
        both = torch.stack([owner, owner + len(query)], dim=1).flatten()
        weight = torch.stack([share, by_score], dim=1).flatten()
        by_row = _bags(torch.cat([grad, query]), both, torch.arange(0, len(both) + 1, 2), weight)
        return by_row, _bags(rows, torch.arange(len(rows)), start, by_score), None, None


def _bags(table: Tensor, element: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    return embedding_bag(
        element, table, start, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _order(element: Tensor, count: int) -> Tensor:
    """Sort the positions of the elements; 16-bit numbers take a fifth of the time."""
    narrow = torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32
    return torch.argsort(element.to(narrow), stable=True)


def _softmax(scores: Tensor, start: Tensor, owner: Tensor) -> Tensor:
    """Softmax over the scores of each owner."""
    raised = torch.exp(scores - torch.segment_reduce(scores, "max", offsets=start)[owner])
    return raised / torch.segment_reduce(raised, "sum", offsets=start)[owner]
