"""Few-shot distillation by grafting (Shen et al. 2021): a student learned block by block.

Teacher and student are cut into blocks at equal resolutions. First every student block stands alone in
the teacher, in the place of the teacher's, and learns to let the whole give the teacher's logits; then
the blocks are joined from the first on, until nothing of the teacher is left. No label is looked at.

Where widths differ, 1×1 convolutions adapt them. They have no bias here (the authors' have), so that
those between two student blocks merge into the layers that follow, exactly, at padded borders, too.
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stepwell.losses import feature_mse, feature_nmse, logit_direction
from stepwell.methods.objective import Objective
from stepwell.nets.grafting.surgery import Grafting, run_all
from stepwell.nets.nested.calibrate import estimate_all
from stepwell.teachers.block_outputs import TeacherOutputs
from stepwell.types import Batch, Step

GraftLoss = Literal["direction", "mse", "features"]


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

    Raises:
        ValueError: there are no such blocks, or all of them are the teacher's own; no images.
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
        _check_span(grafting, first, last)
        if isinstance(images, Sized) and not len(images):
            raise ValueError(
                "no images to graft on: give batches of some, or images=None for those of each step"
            )
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
        hinted, hints, features = self.loss == "features", [], x
        for i, block in enumerate(self.blocks, start=self.first):
            x = block(x.clone() if hinted else x)  # a block may work in place on what a hint reads
            if hinted and i < len(self._grafting[0].pairs):
                features = self._taught(i, features)
                hints.append(feature_nmse(x, features))
        logits = self._rest(x.clone() if hinted else x)
        if self.loss == "mse":
            loss = feature_mse(logits, target)
        else:
            loss = torch.stack([logit_direction(logits, target), *hints]).sum()
        return Step(loss, {"graft": loss})

    def forget(self) -> None:
        """Let go of what the teacher made of the images: the phase is over."""
        self._known = None

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

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graft":
        """Of the blocks: whoever averages their weights copies no teacher, and no images."""
        for shared in (self._grafting[0], self._images, self._known):
            memo[id(shared)] = shared
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = deepcopy(self.__dict__, memo)
        return copied

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Graft":
        self._grafting[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _check_span(grafting: Grafting, first: int, last: int) -> None:
    """Refuse blocks among which none trains."""
    if not 0 <= first <= last < len(grafting.blocks):
        named = ", ".join(f"{i} {name}" for i, name in enumerate(grafting.names))
        raise ValueError(
            f"no blocks {first} to {last} of the student: they are {named}, and the first of a span "
            "is not behind its last"
        )
    if all(grafting.copied[first : last + 1]):
        named = ", ".join(f"{i} {grafting.names[i]}" for i in grafting.grafted)
        raise ValueError(
            f"blocks {first} to {last} of the student are copies of the teacher's, which stay: those "
            f"that train are {named}"
        )
