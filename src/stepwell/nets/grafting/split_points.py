"""Split points of networks after their stages, and pairs of them at the same resolution."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.plan import channels_last
from stepwell.train_mode import in_eval_mode

#: Layers without weights that do not commute with a 1×1 convolution. After a stage they belong to it,
#: as in VGG, whose stages end with a pooling.
_TAIL = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish)


class SplitPoint(NamedTuple):
    """The place after a stage.

    stage: the stage's name.
    at: number of steps of the path before it.
    shape: of the features there, without the batch: (channels, height, width), (height, width,
        channels) or (tokens, channels).
    last: true if channels are the last axis.
    """

    stage: str
    at: int
    shape: tuple[int, ...]
    last: bool

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.shape[-1 if self.last else 0]

    @property
    def resolution(self) -> tuple[int, ...]:
        """Height and width, or the number of tokens."""
        return self.shape[:-1] if self.last else self.shape[1:]

    def __str__(self) -> str:
        size = "×".join(map(str, self.resolution))
        return f"{self.stage} {size}{' tokens' if len(self.resolution) == 1 else ''}"


@torch.no_grad()
def split_points(
    net: NestedNet, input_shape: Sequence[int], depth: str | None = None
) -> list[SplitPoint]:
    """The split points after each stage of one depth (the full net by default), shallow to deep."""
    depth = net.full if depth is None else depth
    path = net.path(depth)
    last = channels_last(net.module)
    x = next(net.parameters()).new_zeros(1, *input_shape)
    points, at, run = [], 0, 0
    counts = net.depths[depth]
    with in_eval_mode(net):
        for stage, gap, blocks, count in zip(
            net.stages, net.plan.gaps, net.plan.blocks, counts, strict=False
        ):
            at += len(gap) + sum(len(steps) for steps in blocks[:count])
            end = at
            while end < len(path) and isinstance(path[end], _TAIL):
                end += 1
            for step in path[run:end]:
                x = step(x)
            run = end
            points.append(SplitPoint(stage, end, tuple(x.shape[1:]), last or x.dim() != 4))
    return points


def pair_split_points(
    student: Sequence[SplitPoint], teacher: Sequence[SplitPoint], names: str | Sequence[str] = ()
) -> list[tuple[SplitPoint, SplitPoint]]:
    """Pairs of split points of two networks at the same resolution, shallow to deep.

    Of several stages at one resolution the last counts.

    Args:
        names: one or several; "layer2=stages.1.blocks" is the student's and the teacher's stage,
            "layer2" a stage of both.

    Raises:
        ValueError: no resolution is common to both; a named pair differs in resolution, does not exist,
            or is out of order.
    """
    if names:
        return _named(student, teacher, [names] if isinstance(names, str) else names)
    mine, theirs = ({point.resolution: point for point in side} for side in (student, teacher))
    pairs = [(point, theirs[at]) for at, point in mine.items() if at in theirs]
    if not pairs:
        raise ValueError(
            "student and teacher have no resolution in common after a stage: the "
            f"student has {_list(student)}, the teacher {_list(teacher)}; take another student"
        )
    return pairs


def _named(
    student: Sequence[SplitPoint], teacher: Sequence[SplitPoint], names: Sequence[str]
) -> list[tuple[SplitPoint, SplitPoint]]:
    pairs = []
    for name in names:
        a, _, b = name.partition("=")
        ours, theirs = _find("student", student, a), _find("teacher", teacher, b or a)
        if ours.resolution != theirs.resolution:
            raise ValueError(
                f"stages {ours} of the student and {theirs} of the teacher differ in resolution, which "
                f"no 1×1 convolution bridges: the student has {_list(student)}, the teacher "
                f"{_list(teacher)}"
            )
        pairs.append((ours, theirs))
    for (ours, theirs), (later, beyond) in pairwise(pairs):
        if ours.at >= later.at or theirs.at >= beyond.at:
            raise ValueError(
                f"{later.stage}={beyond.stage} does not come after {ours.stage}={theirs.stage} in both "
                "networks: name them from shallow to deep, each once"
            )
    return pairs


def _find(who: str, points: Sequence[SplitPoint], stage: str) -> SplitPoint:
    if matches := [point for point in points if point.stage == stage]:
        return matches[0]
    raise ValueError(f"the {who} has no stage {stage!r}; it has {_list(points)}")


def _list(points: Sequence[SplitPoint]) -> str:
    return ", ".join(map(str, points))


class Adaption(nn.Module):
    """Map the channels at one split point to those at another: a 1×1 convolution without bias.

    Without bias it can be merged into the next convolution exactly, even at zero-padded borders.

    Args:
        a, b: the split points; of equal resolution, but maybe another order of axes.
    """

    def __init__(self, a: SplitPoint, b: SplitPoint) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(b.channels, a.channels))
        self.last_in, self.last_out = a.last, b.last
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Features with the channels of `a` to features with the channels of `b`."""
        x = nn.functional.linear(x if self.last_in else x.movedim(1, -1), self.weight)
        return x if self.last_out else x.movedim(-1, 1)
