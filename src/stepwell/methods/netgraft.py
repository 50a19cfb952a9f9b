"""Few-shot distillation by grafting (Shen et al. 2021): a student learned block by block.

Teacher and student are cut into blocks at equal resolutions. First every student block stands alone in
the teacher, in the place of the teacher's, and learns to let the whole give the teacher's logits; then
the blocks are joined from the first on, until nothing of the teacher is left. No label is looked at.

Where widths differ, 1×1 convolutions adapt them. They have no bias here (the authors' have), so that
those between two student blocks merge into the layers that follow, exactly, at padded borders, too.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from itertools import pairwise
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stepwell.losses import feature_mse, feature_nmse, logit_direction
from stepwell.methods.objective import Objective
from stepwell.methods.teacher_outputs import TeacherOutputs
from stepwell.modes import in_eval_mode
from stepwell.nets.calibrate import estimate_all
from stepwell.nets.cuts import Adaption, Cut, cuts, pair_cuts
from stepwell.nets.merging import absorb, keep_adaptions
from stepwell.nets.nested import NestedNet
from stepwell.types import Batch, Step

Start = Literal["teacher", "fresh"]
Statistics = Literal["frozen", "batch"]
GraftLoss = Literal["direction", "mse", "features"]


class Grafting(nn.Module):
    """A student's blocks, each with what it needs to stand in its teacher.

    Its parameters are the student's and the adaptions'; the teacher is a frozen copy in eval mode,
    through which gradients flow, and in no state dict.

    Args:
        student: the network to train, of one depth; its weights change in place.
        teacher: of the same classes; in eval mode.
        input_shape: of one image, such as (3, 32, 32).
        pairs: stages behind which both are cut: "layer2" or, of the student and of the teacher,
            "layer2=stages.1.blocks", one or several; by default wherever their resolutions agree.
        depth: of the teacher; its full net by default.
        start: "teacher": layers that have the same shapes as the teacher's at the same place in its
            block begin with its weights, and a block that is wholly like the teacher's stays so,
            frozen. "fresh": the student begins as it is.
        statistics: of the student's BatchNorm in training. "batch": those of each batch; "frozen": it
            gets those of all images before its block trains, and keeps them.

    Raises:
        ValueError: no two stages lie at one resolution, or `pairs` do not fit; the teacher is in train
            mode; the student has several depths, other classes, or no block that is not the teacher's
            own.
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
        ours, theirs = cuts(student, input_shape), cuts(teacher, input_shape, depth)
        self.pairs = pair_cuts(ours, theirs, pairs)
        blocks = _cut(deepcopy(teacher.path(depth)), [b.at for _, b in self.pairs])
        self._teacher = [block.eval().requires_grad_(False) for block in blocks]  # hidden
        own = _cut(student.path(), [a.at for a, _ in self.pairs])
        self._check_classes()
        self.copied = tuple(
            start == "teacher" and _take(block, taught)
            for block, taught in zip(own, self._teacher, strict=True)
        )
        if all(self.copied):
            raise ValueError("nothing to learn: every block of the student is like the teacher's")
        self.blocks = nn.ModuleList(self._wrapped(i, block) for i, block in enumerate(own))
        for block, same in zip(self.blocks, self.copied, strict=True):
            block.requires_grad_(not same)

    @property
    def grafted(self) -> tuple[int, ...]:
        """The blocks that train: those that are not copies of the teacher's."""
        return tuple(i for i, same in enumerate(self.copied) if not same)

    @property
    def names(self) -> tuple[str, ...]:
        """What to call each block: the stage that it ends with; the last is the head."""
        return (*(a.stage for a, _ in self.pairs), "head")

    def mixed(self, first: int, last: int) -> nn.Sequential:
        """The teacher with the student's blocks `first` to `last` in it, in eval mode."""
        ours = list(self.blocks[first : last + 1])
        mixed = nn.Sequential(*self._teacher[:first], *ours, *self._teacher[last + 1 :])
        return mixed.eval()

    @torch.no_grad()
    def merged(self, images: Iterable[Batch]) -> tuple[NestedNet, dict[str, dict[str, int]]]:
        """The student as a network of its own, in eval mode.

        Each pair of adaptions becomes one 1×1 convolution, and that a part of the layers behind it, or
        it stays where a shortcut or a norm reads it, too. The logits are brought to the teacher's
        scale, which the loss leaves free, on `images`, if a linear layer gives them. This takes the
        student's weights: it can be done once, and no block can stand in the teacher any more.

        Returns:
            The network, and "channels" and "macs" (an image) of each 1×1 convolution that stayed, by
            the name of the module that it stands behind.

        Raises:
            ValueError: it was merged before.
        """
        if self._spent:
            raise ValueError("the student was merged before: make another Grafting")
        self._spent = True
        factor = self._scale(images)
        self.eval()
        left: dict[str, tuple[Tensor, bool]] = {}
        costs: dict[str, dict[str, int]] = {}
        names = _step_names(self.student)
        for i, (ours, _) in enumerate(self.pairs):
            block = list(self.blocks[i + 1].children())
            behind, ahead = list(self.blocks[i].children())[-1], block[0]
            if not isinstance(behind, Adaption) or not isinstance(ahead, Adaption):
                continue
            weight = ahead.weight @ behind.weight
            steps = [step for step in block if not isinstance(step, Adaption)]
            if not absorb(steps, weight, (2, *ours.shape), last=ours.last):
                name, channels = names[ours.at - 1], ours.channels
                left[name] = (weight, ours.last)
                costs[name] = {"channels": channels, "macs": channels**2 * prod(ours.resolution)}
        net = keep_adaptions(self.student, left).eval().requires_grad_(True)
        _rescale(net, factor, self.input_shape)
        return net, costs

    def _scale(self, images: Iterable[Batch]) -> float:
        """The factor of the student's logits that is nearest to the teacher's, by least squares."""
        student, teacher = self.mixed(0, len(self.blocks) - 1), self.mixed(0, -1)
        device = next(self.student.parameters()).device
        both = square = 0.0
        for x, _ in images:
            ours, theirs = student(x.to(device)).double(), teacher(x.to(device)).double()
            both += float((ours * theirs).sum())
            square += float(ours.square().sum())
        return both / square if both > 0 and square > 0 else 1.0

    def _wrapped(self, i: int, block: nn.Sequential) -> nn.Sequential:
        """Block `i` between the adaptions that let it stand in the teacher."""
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


class Graft(Objective):
    """Student blocks `first` to `last` stand in the teacher and learn to let it give its own logits.

    One block is the first stage of grafting, blocks from the first grafted one on the second.

    Args:
        grafting: student and teacher; the objective trains its blocks in place.
        first, last: counted from 0.
        images: all that will come, in batches: what the teacher makes of each is then computed once,
            before the first step, and found by the image's pixels. None: it is computed in every step.
        settle: blocks among these whose BatchNorm gets the statistics of `images` before the first
            step, those that have not trained before; with `statistics="frozen"` only.
        loss: "direction" of the logits (the paper's); "mse", their mean squared difference; or
            "features": their direction, and for each block but the head the mean squared difference of
            its output from the teacher's, in shares of the teacher's mean square (hints).
    """

    def __init__(
        self,
        grafting: Grafting,
        first: int,
        last: int,
        *,
        images: Iterable[Batch] | None = None,
        settle: Sequence[int] = (),
        loss: GraftLoss = "direction",
    ) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.blocks = nn.ModuleList(grafting.blocks[first : last + 1])
        self.loss = loss
        self.settle = (
            tuple(settle) if grafting.statistics == "frozen" and images is not None else ()
        )
        self._grafting = [grafting]  # hidden: its other blocks are no part of this objective
        self._images = images
        self._known: TeacherOutputs | None = None

    def training_step(self, batch: Batch) -> Step:
        """The loss of one batch; its labels are not looked at."""
        if self._known is None:
            self._known = TeacherOutputs(
                self._before, self._after, self._images, batch.images.device
            )
            if self.progress == 0.0:  # a run that goes on has its statistics
                self._settle(self._known)
        x, target = self._known(batch.images)
        hints, features = [], x
        for i, block in enumerate(self.blocks, start=self.first):
            x = block(x)
            if self.loss == "features" and i < len(self._grafting[0].pairs):
                features = self._taught(i, features)
                hints.append(feature_nmse(x, features))
        logits = self._rest(x)
        if self.loss == "mse":
            loss = feature_mse(logits, target)
        else:
            loss = torch.stack([logit_direction(logits, target), *hints]).sum()
        return Step(loss, {"graft": loss})

    def train(self, mode: bool = True) -> "Graft":
        """Copied blocks, and frozen statistics, stay in eval mode."""
        super().train(mode)
        (grafting,) = self._grafting
        for i, block in enumerate(self.blocks, start=self.first):
            if grafting.copied[i]:
                block.eval()
        if grafting.statistics == "frozen":
            for norm in self.blocks.modules():
                if isinstance(norm, _NormBase):
                    norm.eval()
        return self

    def _settle(self, known: "TeacherOutputs") -> None:
        """Give the blocks that begin now the statistics of what they will see."""
        mode = self.training
        for i in self.settle:
            block, run = self.blocks[i - self.first], self.blocks[: i - self.first]
            estimate_all(block, (Batch(run_all(run, x), x) for x in known.features()))
        self.train(mode)

    @torch.no_grad()
    def _taught(self, i: int, x: Tensor) -> Tensor:
        """The output of the teacher's block `i`, whose input `x` stays as it is."""
        output: Tensor = self._grafting[0]._teacher[i](x.clone())
        return output

    def _before(self, images: Tensor) -> Tensor:
        return run_all(self._grafting[0]._teacher[: self.first], images)

    def _after(self, x: Tensor) -> Tensor:
        return run_all(self._grafting[0]._teacher[self.first :], x)

    def _rest(self, x: Tensor) -> Tensor:
        return run_all(self._grafting[0]._teacher[self.last + 1 :], x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Graft":
        self._grafting[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)


def run_all(steps: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The output of modules that run one after the other."""
    for step in steps:
        x = step(x)
    return x


def _cut(path: Sequence[nn.Module], at: Sequence[int]) -> list[nn.Sequential]:
    """The parts of a path between these positions."""
    ends = [0, *at, len(path)]
    return [nn.Sequential(*path[a:b]) for a, b in pairwise(ends)]


def _adaption(a: Cut, b: Cut) -> Adaption | None:
    """From cut `a` to cut `b`; none where they are alike."""
    return None if (a.channels, a.last) == (b.channels, b.last) else Adaption(a, b)


@torch.no_grad()
def _take(block: nn.Sequential, taught: nn.Sequential) -> bool:
    """Start the layers of a block with the teacher's weights, where their shapes are the same.

    Returns:
        Whether the two blocks are now one function, weight by weight.
    """
    same = len(block) == len(taught)
    for mine, theirs in zip(block, taught, strict=False):
        state, other = mine.state_dict(), theirs.state_dict()
        shapes, others = ({k: v.shape for k, v in s.items()} for s in (state, other))
        alike = shapes == others and type(mine) is type(theirs)
        if alike:
            mine.load_state_dict(other)
        same = same and alike and str(mine) == str(theirs)
    return same


def _step_names(net: NestedNet) -> list[str]:
    """The names of the steps of the full path; empty for those that are no module of the network."""
    names: list[str] = []
    for gap, blocks in zip(net.plan.gaps, (*net.plan.blocks, ()), strict=True):
        names += [step if isinstance(step, str) else "" for step in gap]
        names += [name for steps in blocks for name in steps]
    return names


@torch.no_grad()
def _rescale(net: NestedNet, factor: float, input_shape: Sequence[int]) -> None:
    """Multiply the logits by `factor`, in the weights of the last layer, if that is a linear one."""
    linear = [m for name in net.plan.head for m in net.module.get_submodule(name).modules()]
    heads = [m for m in linear if isinstance(m, nn.Linear)]
    if not heads:
        return
    x = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    x = x.to(next(net.parameters()).device)
    before = factor * net(x)
    kept = [p.clone() for p in heads[-1].parameters()]
    for p in heads[-1].parameters():
        p.mul_(factor)
    if not torch.allclose(net(x), before, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        for p, old in zip(heads[-1].parameters(), kept, strict=True):
            p.copy_(old)
