"""Grafting of a student's blocks into its teacher: splitting, copied weights, and merging."""

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import deepcopy
from itertools import pairwise
from math import prod
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from stepwell.nets.grafting.merging import Added, absorb, add_adaptions
from stepwell.nets.grafting.split_points import Adaption, SplitPoint, pair_split_points, split_points
from stepwell.nets.nested.interpolation import differing
from stepwell.nets.nested.net import NestedNet
from stepwell.train_mode import in_eval_mode
from stepwell.types import Batch

Start = Literal["teacher", "fresh"]
Statistics = Literal["frozen", "batch"]


class Grafting(nn.Module):
    """A student's blocks, each with the adaptions that let it replace a block of the teacher.

    Its parameters are the student's and the adaptions'. The teacher is a frozen copy in eval mode, in
    no state dict; gradients flow through it.

    Args:
        student: the network to train, of one depth; its weights change in place.
        teacher: a network of the same classes, in eval mode.
        input_shape: of one image, such as (3, 32, 32).
        pairs: stages after which both are split, as for `pair_split_points`; by default wherever
            resolutions agree.
        depth: of the teacher; its full net by default.
        start: "teacher": layers of the teacher's shapes get its weights, and a block that is then
            identical to the teacher's stays frozen. "fresh": the student keeps its own weights.
        statistics: of the student's BatchNorm in training: "batch", of each batch; "frozen", of all
            images, estimated before its block trains.

    Raises:
        ValueError: a network is no nested net; no resolution is common to both, or `pairs` do not fit;
            the teacher is in train mode; the student has several depths, other classes, no block to
            train, or a split point whose 1×1 convolution can neither be merged nor added.
    """

    def __init__(
        self,
        student: NestedNet,
        teacher: NestedNet,
        *,
        input_shape: Sequence[int],
        pairs: str | Sequence[str] = (),
        depth: str | None = None,
        start: Start = "teacher",
        statistics: Statistics = "batch",
    ) -> None:
        super().__init__()
        _check_nested("student", student)
        _check_nested("teacher", teacher)
        if teacher.training:
            raise ValueError(
                "the teacher is in train mode, so the few images would change its BatchNorm "
                "statistics: call teacher.eval() first"
            )
        if student.subnets:
            raise ValueError(
                f"the student is a nested net ({', '.join(student.depths)}): grafting trains one path, "
                "and changes layers that the others share. Give a net of one depth; for a sub-net of "
                "the teacher, build(NAME, kept=BLOCKS) (--keep)"
            )
        self.student = student
        self.statistics = statistics
        self.input_shape = tuple(input_shape)
        self._spent = False
        ours, theirs = split_points(student, input_shape), split_points(teacher, input_shape, depth)
        self.pairs = pair_split_points(ours, theirs, pairs)
        blocks = _cut(deepcopy(teacher.path(depth)), [b.at for _, b in self.pairs])
        self._teacher = [block.eval().requires_grad_(False) for block in blocks]  # hidden
        student_blocks = _cut(student.path(), [a.at for a, _ in self.pairs])
        self._check_classes()
        shapes = [self.input_shape, *(a.shape for a, _ in self.pairs)]
        self.copied = tuple(
            start == "teacher" and _take(block, taught, shape)
            for block, taught, shape in zip(student_blocks, self._teacher, shapes, strict=True)
        )
        if all(self.copied):
            raise ValueError(_nothing_to_learn(teacher, teacher.depths[depth or teacher.full]))
        self.blocks = nn.ModuleList(self._wrapped(i, block) for i, block in enumerate(student_blocks))
        for block, same in zip(self.blocks, self.copied, strict=True):
            block.requires_grad_(not same)
        for i in range(len(self.pairs)):
            self._check_place(i)

    @property
    def grafted(self) -> tuple[int, ...]:
        """The indices of the blocks that train, which are not copies of the teacher's."""
        return tuple(i for i, same in enumerate(self.copied) if not same)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each block: its last stage, or "head"."""
        return (*(a.stage for a, _ in self.pairs), "head")

    def mixed(self, first: int, last: int) -> nn.Module:
        """The teacher with the student's blocks `first` to `last` in it, in eval mode."""
        ours = list(self.blocks[first : last + 1])
        return _Evaluated(*self._teacher[:first], *ours, *self._teacher[last + 1 :])

    @torch.no_grad()
    def merged(self, images: Iterable[Batch]) -> tuple[NestedNet, dict[str, dict[str, int]]]:
        """The student as a network of its own, in eval mode.

        Each pair of adaptions becomes one 1×1 convolution, merged into the next layers, or added if a
        shortcut or a norm also reads it. The logits are scaled to the teacher's on `images`, because
        the loss leaves their scale free (a warning says if no layer can be scaled). Merging uses up
        the student's weights: it works once, and no block can be grafted afterwards.

        Returns:
            The network, and the added 1×1 convolutions by the name of the module before them (after
            them, if "before" is 1), each with "channels" and "macs" per image.

        Raises:
            ValueError: it was merged before; there are no images; or the merged network gives other
                logits than the blocks in sequence (its weights are then unchanged).
        """
        if self._spent:
            raise ValueError("the student was merged before: make another Grafting")
        x = _random(self.student, self.input_shape)
        factor, unmerged = self._scale(images), deepcopy(self.student.state_dict())
        before = factor * self.mixed(0, len(self.blocks) - 1)(x)
        self.eval()
        added: dict[str, Added] = {}
        costs: dict[str, dict[str, int]] = {}
        for i, (ours, _) in enumerate(self.pairs):
            weight = self._between(i)
            if weight is None or self._absorbed(i, weight):
                continue
            place = self._place(i, added)
            assert place is not None  # or there would be no Grafting
            name, ahead = place
            added[name] = Added(weight, ours.last, ahead)
            costs[name] = {
                "channels": ours.channels, "macs": ours.channels**2 * prod(ours.resolution)
            } | ({"before": 1} if ahead else {})  # fmt: skip
        net = add_adaptions(self.student, added).eval().requires_grad_(True)
        if not _rescale(net, factor, x):
            before /= factor
            warnings.warn(
                "no linear layer or convolution gives the student's logits, so they are not brought to "
                "the teacher's scale: calibrate them before probabilities are read",
                stacklevel=2,
            )
        if not _close(net(x), before):
            self.student.load_state_dict(unmerged)
            raise ValueError(
                "merged, the student gives other logits than its blocks in sequence: one of its "
                "modules runs in several places. Split elsewhere (pairs, --blocks)"
            )
        self._spent = True
        return net, costs

    def _between(self, i: int) -> Tensor | None:
        """The product of the two adaptions at split point `i`, (channels, channels), or None."""
        behind, ahead = list(self.blocks[i].children())[-1], next(self.blocks[i + 1].children())
        if not isinstance(behind, Adaption) or not isinstance(ahead, Adaption):
            return None
        return ahead.weight @ behind.weight

    def _absorbed(self, i: int, weight: Tensor) -> bool:
        """True if the block after split point `i` absorbed a 1×1 convolution; others do not change."""
        block = self.blocks[i + 1]
        elsewhere = {id(p) for b in self.blocks if b is not block for p in b.parameters()}
        if any(id(p) in elsewhere for p in block.parameters()):
            return False
        steps = [step for step in block.children() if not isinstance(step, Adaption)]
        ours, _ = self.pairs[i]
        return absorb(steps, weight, (2, *ours.shape), last=ours.last)

    def _place(self, i: int, taken: Collection[str]) -> tuple[str, bool] | None:
        """The module after which (True: before which) a 1×1 convolution fits at split `i`, if any."""
        path, at, plan = self.student.path(), self.pairs[i][0].at, self.student.plan
        names: list[str] = []  # of the steps; empty for steps that are no module of the network
        for gap, blocks in zip(plan.gaps, (*plan.blocks, ()), strict=True):
            names += [step if isinstance(step, str) else "" for step in gap]
            names += [name for steps in blocks for name in steps]
        for k in (at - 1, at):
            once = sum(step is path[k] for step in path) == 1
            if names[k] and names[k] not in taken and once:
                return names[k], k == at
        return None

    def _check_place(self, i: int) -> None:
        weight = self._between(i)
        if weight is None or self._place(i, ()) is not None:
            return
        unmerged = deepcopy(self.student.state_dict())
        with in_eval_mode(self.student):
            absorbed = self._absorbed(i, weight)
        self.student.load_state_dict(unmerged)
        if not absorbed:
            raise ValueError(
                f"behind {self.pairs[i][0].stage} of the student a 1×1 convolution must stay, and the "
                "modules around it run in several places, or are none: cut elsewhere (pairs, --blocks)"
            )

    def _scale(self, images: Iterable[Batch]) -> float:
        """The factor that fits the student's logits to the teacher's, by least squares."""
        student, teacher = self.mixed(0, len(self.blocks) - 1), self.mixed(0, -1)
        device = next(self.student.parameters()).device
        both = square = 0.0
        count = 0
        for x, _ in images:
            count += len(x)
            ours, theirs = student(x.to(device)).double(), teacher(x.to(device)).double()
            both += float((ours * theirs).sum())
            square += float(ours.square().sum())
        if not count:
            raise ValueError("no images to bring the logits to the teacher's scale: give some batches")
        return both / square if both > 0 and square > 0 else 1.0

    def _wrapped(self, i: int, block: nn.Sequential) -> nn.Sequential:
        before = [_adaption(*self.pairs[i - 1][::-1])] if i else []
        after = [_adaption(*self.pairs[i])] if i < len(self.pairs) else []
        return nn.Sequential(*(m for m in (*before, *block, *after) if m is not None))

    def _check_classes(self) -> None:
        with torch.no_grad(), in_eval_mode(self.student):
            x = next(self.student.parameters()).new_zeros(1, *self.input_shape)
            theirs, ours = run_all(self._teacher, x).shape, self.student(x).shape
        if ours != theirs:
            raise ValueError(
                f"the student has {ours[-1]} classes, the teacher {theirs[-1]}: they must be the same"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Grafting":
        for block in self._teacher:
            block._apply(fn, recurse)
        return super()._apply(fn, recurse)


def run_all(steps: Iterable[nn.Module], x: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch ..."]:
    """The output of modules in sequence."""
    for step in steps:
        x = step(x)
    return x


def _cut(path: Sequence[nn.Module], at: Sequence[int]) -> list[nn.Sequential]:
    ends = [0, *at, len(path)]
    return [nn.Sequential(*path[a:b]) for a, b in pairwise(ends)]


def _adaption(a: SplitPoint, b: SplitPoint) -> Adaption | None:
    """An adaption from split point `a` to `b`, or None if they match."""
    return None if (a.channels, a.last) == (b.channels, b.last) else Adaption(a, b)


@torch.no_grad()
def _take(block: nn.Sequential, taught: nn.Sequential, shape: Sequence[int]) -> bool:
    """Copy the teacher's weights to layers of the same shapes; True if the blocks are then equal."""
    same = len(block) == len(taught)
    for mine, theirs in zip(block, taught, strict=False):
        alike = type(mine) is type(theirs) and differing(mine, theirs) is None
        if alike:
            mine.load_state_dict(theirs.state_dict())
        same = same and alike and str(mine) == str(theirs)
    if not same:
        return False
    x = _random(taught, shape)  # modules do not show everything, such as a function's arguments
    with in_eval_mode(block):
        return _close(block(x.clone()), taught(x))


def _random(like: nn.Module, shape: Sequence[int]) -> Tensor:
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    parameter = next(like.parameters(), x)
    return x.to(parameter.device, parameter.dtype)


def _close(output: Tensor, expected: Tensor) -> bool:
    """True if two outputs are equal up to rounding."""
    limit = 1e-4 * float(expected.abs().max())
    return output.shape == expected.shape and torch.allclose(output, expected, 1e-3, limit)


def _nothing_to_learn(teacher: NestedNet, blocks: Sequence[int]) -> str:
    stages = ", ".join(f"{n} in {stage}" for stage, n in zip(teacher.stages, blocks, strict=False))
    remedy = "no stage can keep fewer (--keep), so give another student"
    if max(blocks) > 1:
        remedy = "give a smaller student, or keep fewer blocks of a stage (--keep)"
    return f"nothing to learn: every block of the student is like the teacher's ({stages}): {remedy}"


def _check_nested(who: str, net: nn.Module) -> None:
    if not isinstance(net, NestedNet):
        raise ValueError(
            f"the {who} is a plain {type(net).__name__}, without stages to split after: wrap it with "
            "stepwell.nest(module, stages=['layer1', ...], depths={}), which names them"
        )


class _Evaluated(nn.Sequential):
    """Run modules in eval mode, and restore their modes."""

    def forward(self, x: Tensor) -> Tensor:
        with in_eval_mode(self):
            return super().forward(x)


@torch.no_grad()
def _rescale(net: NestedNet, factor: float, x: Tensor) -> bool:
    """Multiply the logits by `factor` in the last layer's weights; False if it has none to scale."""
    head = [m for name in net.plan.head for m in net.module.get_submodule(name).modules()]
    layers = [m for m in head if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        return False
    expected = factor * net(x)
    unscaled = [p.clone() for p in layers[-1].parameters()]
    for p in layers[-1].parameters():
        p.mul_(factor)
    if _close(net(x), expected):
        return True
    for p, old in zip(layers[-1].parameters(), unscaled, strict=True):
        p.copy_(old)
    return False
