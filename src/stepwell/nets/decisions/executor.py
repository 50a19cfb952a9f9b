"""Executors: run each example of a batch only where it chose to go.

The compacted forms here equal the masked ones, which compute every way and multiply by the choice, in
eval mode; in training, norms see other examples.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

Rows = Int[Tensor, " rows"]


def groups(who: Int[Tensor, " batch"], choices: int) -> Iterator[tuple[int, Rows]]:
    """Each choice that some example makes, by `who`, and the rows of these examples."""
    for choice in range(choices):
        rows = (who == choice).nonzero().flatten()
        if len(rows):
            yield choice, rows


def gathered(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Join parts of a batch by their rows."""
    (rows, values), *others = parts
    if not others:
        return values
    order = torch.cat([rows, *(r for r, _ in others)])
    joined = torch.cat([values, *(v for _, v in others)])
    return torch.empty_like(joined).index_copy(0, order, joined)


#: The share of a batch's time in one group that a further group must save.
MARGIN = 0.03
#: The time of a group, by its number of images.
GroupTimes = Mapping[int, float]


def fewer_groups(counts: Sequence[int], times: Sequence[GroupTimes]) -> list[int]:
    """Join groups of a batch with costlier ones, so that the whole batch takes the least time.

    A batch of few images is faster in one group, because each group has a constant cost. A further
    group must save `MARGIN` of the batch's time, because sizes between the measured ones may be slower.

    Args:
        counts: images of each choice, from costly to cheap.
        times: of each choice.

    Returns:
        For each choice the one that its images run at: itself, or a costlier one of the batch.
    """
    made = [i for i, count in enumerate(counts) if count]
    margin = MARGIN * time_of(times[made[0]], sum(counts)) if made else 0.0
    # for each number of the costliest choices made, the least time, and where its last group begins
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(made) + 1):
        tried = []
        for start in range(stop):
            time = time_of(times[made[start]], sum(counts[i] for i in made[start:stop]))
            tried.append((best[start][0] + time + margin * (start > 0 and time > 0), start))
        best.append(min(tried, key=lambda t: (t[0], -t[1])))  # of equals, more groups
    runs = [*range(len(counts))]
    stop = len(made)
    while stop:
        start = best[stop][1]
        for i in made[start:stop]:
            runs[i] = made[start]
        stop = start
    return runs


def time_of(times: GroupTimes, images: int) -> float:
    """The time of a group, by lines between the measured sizes, and beyond the largest through 0."""
    sizes = sorted(times)
    if images >= sizes[-1]:
        return times[sizes[-1]] * images / sizes[-1]
    if images <= sizes[0]:
        return times[sizes[0]]
    low, high = next((a, b) for a, b in pairwise(sizes) if a <= images <= b)
    share = (images - low) / (high - low)
    return times[low] + share * (times[high] - times[low])


#: By batch size, the largest share of the examples at which the compacted form is the faster one.
BreakEven = Mapping[int, float]


def with_branch(
    base: Float[Tensor, "batch ..."], x: Float[Tensor, "batch ..."], rows: Rows,
    branch: Callable[[Tensor], Tensor], break_even: BreakEven | None = None,
) -> Float[Tensor, "batch ..."]:  # fmt: skip
    """Add `branch(x)` to `base` in some rows, which alone are computed where that is faster.

    Args:
        break_even: above its share of rows, for the nearest batch size, all rows are computed and the
            others multiplied by zero. Without it only the chosen rows are computed.
    """
    if torch.onnx.is_in_onnx_export():  # the graph runs for any number of rows, also for none
        not_empty_for_export(rows)
        return base.index_add(0, rows, branch(x.index_select(0, rows)))
    count, batch = len(rows), len(x)
    if not count:
        return base
    if count == batch:
        return base + branch(x)
    if count > limit(break_even, batch) * batch:
        mask = base.new_zeros(batch, *(1,) * (base.dim() - 1))
        return torch.addcmul(base, mask.index_fill(0, rows, 1), branch(x))  # in one pass
    return _added(base, rows, branch(x[rows]))


def limit(break_even: BreakEven | None, batch: int) -> float:
    """The break-even share for the nearest batch size; 1 where none is known, or the batch is empty."""
    if not break_even or not batch:
        return 1.0
    return break_even[min(break_even, key=lambda size: abs(math.log(size / batch)))]


def mixture(
    x: Float[Tensor, "rows width"], who: Int[Tensor, "rows k"], weights: Float[Tensor, "rows k"],
    parts: Sequence[Callable[[Tensor], Tensor]], break_even: BreakEven | None = None,
) -> Float[Tensor, "rows width"]:  # fmt: skip
    """The sum of each row's k parts, `who`, times their weights; each part runs on its own rows.

    The rows are sorted by part, so that a part runs once on contiguous rows. Gradients flow through it.

    Args:
        break_even: where k is a larger share of the parts than it allows, all parts run on all rows,
            and weights of zero drop most results. It was measured without gradients, and counts only
            without them. Compiled and exported graphs run all parts, too, except those of ONNX.
    """
    rows, k = who.shape
    if torch.onnx.is_in_onnx_export():  # a graph may hold as many rows as the values say
        y = torch.zeros_like(x)
        for i, part in enumerate(parts):
            chosen, place = (who == i).nonzero(as_tuple=True)
            y = y.index_add(0, chosen, part(x[chosen]) * weights[chosen, place, None])
        return y
    # a graph first: its number of rows has no value to compare
    if torch.compiler.is_compiling() or (
        not torch.is_grad_enabled() and k > limit(break_even, rows) * len(parts)
    ):
        shares = weights.new_zeros(rows, len(parts)).scatter(1, who, weights)
        return torch.stack([shares[:, i, None] * part(x) for i, part in enumerate(parts)]).sum(0)
    flat = who.flatten()
    if x.is_meta:  # no values: equally many rows for each part
        counts = [
            (i + 1) * len(flat) // len(parts) - i * len(flat) // len(parts) for i in range(len(parts))
        ]
    else:
        counts = flat.bincount(minlength=len(parts)).tolist()
    order = flat.argsort(stable=True)
    sorted_rows = order // k if k > 1 else order
    inputs = x.index_select(0, sorted_rows).split(counts)
    every_part = torch.is_grad_enabled() or not rows  # each has a gradient, if only of zeros
    values = torch.cat(
        [part(given) for part, given in zip(parts, inputs, strict=True) if every_part or len(given)]
    )
    values = values * weights.flatten().index_select(0, order)[:, None]
    return values.new_zeros(rows, values.shape[1]).index_add(0, sorted_rows, values)


def not_empty_for_export(rows: Rows) -> None:
    """Let torch's exporter trace steps on some rows of a batch, whose number only the values tell.

    It knows no convolution of no rows. The graph that it writes for ONNX does not keep the check.
    """
    torch._check(rows.shape[0] != 0)


def _added(base: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Add values to some rows; maps whose channels are last in memory are added as they lie.

    torch adds them element by element otherwise, 10 to 20 times as slowly.
    """
    if base.dim() == 4 and not base.is_contiguous():
        # (batch, channels, height, width) to (batch, height, width, channels), and back
        lying = base.permute(0, 2, 3, 1).index_add(0, rows, values.permute(0, 2, 3, 1))
        return lying.permute(0, 3, 1, 2)
    return base.index_add(0, rows, values)


#: Positions that a convolution computes at once; their inputs stay in a processor's cache.
PIECE = 256


class Positions(NamedTuple):
    """Some positions of maps: their indices in (batch, height, width), as it lies flat."""

    batch: int
    height: int
    width: int
    flat: Int[Tensor, " n"]

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch height width"]) -> "Positions":
        """The positions where a mask is true."""
        batch, height, width = mask.shape
        return cls(batch, height, width, mask.flatten().nonzero().flatten())

    def padded(self, stride: int, height: int, width: int) -> Int[Tensor, " n"]:
        """Indices of the first value that a 3×3 kernel reads, in maps padded by one on each side.

        Args:
            height, width: of the maps that it reads, without padding.
        """
        line = self.flat // self.width
        image, row = line // self.height, line % self.height
        column = self.flat % self.width
        return (image * (height + 2) + row * stride) * (width + 2) + column * stride

    def spread(self, values: Float[Tensor, "n channels"]) -> "Padded":
        """Put values at the positions of maps that are zero elsewhere."""
        rows = values.new_zeros(self.batch * (self.height + 2) * (self.width + 2), values.shape[1])
        at = self.padded(1, self.height, self.width) + self.width + 3  # the middle of the kernel
        return Padded(rows.index_copy_(0, at, values), self.height, self.width)


class Padded(NamedTuple):
    """Maps padded by one on each side, a row of channels for each position."""

    rows: Float[Tensor, "positions channels"]
    height: int
    width: int

    @classmethod
    def of(cls, x: Float[Tensor, "batch channels height width"]) -> "Padded":
        """Maps, padded."""
        rows = pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        return cls(rows.reshape(-1, x.shape[1]), x.shape[2], x.shape[3])


def at_positions(
    x: Float[Tensor, "..."] | Padded, where: Positions, conv: nn.Module, norm: nn.Module, *,
    relu: bool = False,
) -> Float[Tensor, "n channels"]:  # fmt: skip
    """A convolution and its BatchNorm in eval mode, at some positions of the output.

    Args:
        x: maps, padded maps, or of a 1×1 convolution its inputs at the positions (n, channels).
        conv: 1×1 of stride 1, or 3×3 with a padding of one; without groups or a bias.
    """
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    # (out, in, height, width) to (height · width · in, out)
    weight = (conv.weight.permute(2, 3, 1, 0) * scale).flatten(0, 2)
    if conv.kernel_size == (1, 1):
        if not isinstance(x, Padded) and x.dim() == 4:
            x = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).index_select(0, where.flat)
        assert isinstance(x, Tensor)
        y = torch.addmm(shift, x, weight)
        return y.relu_() if relu else y
    if not isinstance(x, Padded):
        x = Padded.of(x)
    first = where.padded(conv.stride[0], x.height, x.width)
    steps = torch.arange(3, device=first.device)
    kernel = (steps[:, None] * (x.width + 2) + steps).flatten()
    rows, pieces = x.rows, first.split(PIECE)

    def read(piece: Int[Tensor, " n"]) -> Float[Tensor, "n values"]:
        return rows.index_select(0, (piece[:, None] + kernel).flatten()).view(len(piece), -1)

    if torch.is_grad_enabled():  # which forbids to write into a part of y
        y = torch.cat([torch.addmm(shift, read(piece), weight) for piece in pieces])
        return y.relu() if relu else y
    y = rows.new_empty(len(first), weight.shape[1])
    shift, weight = shift.to(y.dtype), weight.to(y.dtype)  # `out=` is not for autocast
    for piece, part in zip(pieces, y.split(PIECE), strict=True):
        torch.addmm(shift, read(piece), weight, out=part)
    return y.relu_() if relu else y


def with_added_rows(
    base: Float[Tensor, "batch channels height width"], where: Positions,
    values: Float[Tensor, "n channels"],
) -> Float[Tensor, "batch channels height width"]:  # fmt: skip
    """Add values to some positions of maps."""
    lying = base.permute(0, 2, 3, 1)  # (batch, height, width, channels)
    rows = lying.reshape(-1, base.shape[1]).index_add(0, where.flat, values)
    return rows.view(lying.shape).permute(0, 3, 1, 2)
