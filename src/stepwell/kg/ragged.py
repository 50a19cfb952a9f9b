"""Sums over ragged rows, and attention over them.

A sum of weighted rows is a product with a sparse matrix, and so are its gradients, with the matrix
transposed. Written so, each step passes once over the rows; what autograd makes of the parts (gather,
multiply, scatter) passes over them several times.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag


def weighted_sums(table: Tensor, element: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    """Sums of weighted rows of a table; the gradient is that of the table alone.

    Args:
        table: (n, dim).
        element, weight: (entries,) which rows, and how much of each.
        start: (sums + 1,) where the entries of a sum begin.

    Returns:
        (sums, dim).

    Raises:
        ValueError: weights require a gradient.
    """
    if weight.requires_grad:
        raise ValueError("weights are constants here: they get no gradient")
    found: Tensor = _WeightedSums.apply(table, element, start, weight)
    return found


def attended(rows: Tensor, query: Tensor, start: Tensor, owner: Tensor) -> Tensor:
    """Sums of rows weighted by attention: softmax over an owner's rows of their product with its query.

    Args:
        rows: (n, dim).
        query: (owners, dim).
        start: (owners + 1,) where the rows of an owner begin.
        owner: (n,) the same, by row.

    Returns:
        (owners, dim).
    """
    found: Tensor = _Attended.apply(rows, query, start, owner)
    return found


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
        begin = torch.zeros(ctx.count + 1, dtype=torch.long)
        torch.cumsum(torch.bincount(element, minlength=ctx.count), 0, out=begin[1:])
        order = _order(element, ctx.count)
        owner = torch.repeat_interleave(torch.arange(len(grad)), start.diff())
        return _bags(grad, owner[order], begin, weight[order]), None, None, None


class _Attended(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, query: Tensor, start: Tensor, owner: Tensor) -> Tensor:
        share = _softmax((rows * query.index_select(0, owner)).sum(1), start, owner)
        found = _bags(rows, torch.arange(len(rows)), start, share)
        ctx.save_for_backward(rows, query, start, owner, share, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, query, start, owner, share, found = ctx.saved_tensors
        by_share = (rows * grad.index_select(0, owner)).sum(1)
        by_score = share * (by_share - (found * grad).sum(1)[owner])
        # of each row: its share of its owner's gradient, and what its score moves of its owner's query
        both = torch.stack([owner, owner + len(query)], dim=1).flatten()
        by_row = _bags(
            torch.cat([grad, query]),
            both,
            torch.arange(0, len(both) + 1, 2),
            torch.stack([share, by_score], dim=1).flatten(),
        )
        return by_row, _bags(rows, torch.arange(len(rows)), start, by_score), None, None


def _bags(table: Tensor, element: Tensor, start: Tensor, weight: Tensor) -> Tensor:
    return embedding_bag(
        element, table, start, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _order(element: Tensor, count: int) -> Tensor:
    """Positions of the elements, sorted; numbers of 16 bits are sorted in a fifth of the time."""
    narrow = torch.int16 if count <= torch.iinfo(torch.int16).max else torch.int32
    return torch.argsort(element.to(narrow), stable=True)


def _softmax(scores: Tensor, start: Tensor, owner: Tensor) -> Tensor:
    """Softmax over the scores of each owner."""
    raised = torch.exp(scores - torch.segment_reduce(scores, "max", offsets=start)[owner])
    return raised / torch.segment_reduce(raised, "sum", offsets=start)[owner]
