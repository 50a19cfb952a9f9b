"""Few-shot distillation by grafting (Shen et al. 2021): a student learned block by block.

Teacher and student are split into blocks at equal resolutions. In the first stage each student block
replaces the teacher's block alone and learns to reproduce the teacher's logits. In the second stage the
student blocks are joined one by one, from the first on, until no teacher block is left. It uses no
labels.

Where widths differ, 1×1 convolutions adapt them. They have no bias here (the authors' have one):
adaptions between two student blocks then merge into the next layers exactly, at padded borders, too.
"""

from collections.abc import Callable, Iterable, Sequence, Sized
from copy import deepcopy
from functools import partial
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
    """Student blocks `first` to `last` replace the teacher's and learn to reproduce its logits.

    One block: the first stage of grafting. Several, from the first grafted block on: the second stage.

    Args:
        grafting: student and teacher; the objective trains its blocks in place.
        first, last: indices of the blocks, from 0.
        images: every training image, in batches. The teacher's outputs are then computed once, before
            the first step, and looked up by pixels. None: they are computed in every step.
        settle: blocks that have not trained before. Their BatchNorm takes the statistics of `images`
            before the first step; with `statistics="frozen"` only.
        loss: "direction" of the logits (the paper's); "mse", their mean squared difference; or
            "features": their direction, plus hints, the mean squared difference of each block's output
            (but the head's) from the teacher's, relative to the teacher's mean square.

    Raises:
        ValueError: there are no such blocks, all of them are copies of the teacher's, or no images.
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
                "no images to graft on: give batches, or images=None to use each step's own"
            )
        self.first, self.last = first, last
        self.blocks = nn.ModuleList(grafting.blocks[first : last + 1])
        self.loss = loss
        settles = grafting.statistics == "frozen" and images is not None
        self.settle = tuple(settle) if settles else ()
        self._settled: Tensor  # in the checkpoint, so that a resumed run keeps its statistics
        self.register_buffer("_settled", torch.tensor(not self.settle))
        self._grafting = [grafting]  # in a list: this objective does not own the other blocks
        self._images = images
        self._known: TeacherOutputs | None = None

    def training_step(self, batch: Batch) -> Step:
        """The loss of one batch; its labels are not used."""
        if self._known is None:
            teacher = self._grafting[0]._teacher
            before, after = teacher[: self.first], teacher[self.first :]
            run = partial(run_all, before), partial(run_all, after)
            self._known = TeacherOutputs(*run, self._images, batch.images.device)
            if not self._settled:
                self._settle(self._known)
        x, target = self._known(batch.images)
        hinted, hints, features = self.loss == "features", [], x
        for i, block in enumerate(self.blocks, start=self.first):
            x = block(x.clone() if hinted else x)  # a block may work in place on what a hint reads
            if hinted and i < len(self._grafting[0].pairs):
                features = self._taught(i, features)
                hints.append(feature_nmse(x, features))
        logits = run_all(self._grafting[0]._teacher[self.last + 1 :], x.clone() if hinted else x)
        if self.loss == "mse":
            loss = feature_mse(logits, target)
        else:
            loss = torch.stack([logit_direction(logits, target), *hints]).sum()
        return Step(loss, {"graft": loss})

    def forget(self) -> None:
        """Free the teacher's outputs once the phase is over."""
        self._known = None

    def train(self, mode: bool = True) -> "Graft":
        """Set the mode; copied blocks and frozen statistics stay in eval mode."""
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
        """Estimate the norms of the new blocks from the inputs that they will get."""
        mode = self.training
        for i in self.settle:
            block, run = self.blocks[i - self.first], self.blocks[: i - self.first]
            estimate_all(block, (Batch(run_all(run, x), x) for x in known.features()))
        self.train(mode)
        self._settled.fill_(True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Checkpoints without the flag are older; they were written after the first step.
        state_dict.setdefault(f"{prefix}_settled", torch.tensor(True))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def _taught(self, i: int, x: Tensor) -> Tensor:
        """The output of the teacher's block `i`, whose input `x` stays as it is."""
        output: Tensor = self._grafting[0]._teacher[i](x.clone())
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graft":
        """A copy of the blocks alone (for an average of their weights): no teacher, no images."""
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
    if not 0 <= first <= last < len(grafting.blocks):
        named = ", ".join(f"{i} {name}" for i, name in enumerate(grafting.names))
        raise ValueError(
            f"the student has no blocks {first} to {last}: it has {named}, and a span starts at its "
            "lower index"
        )
    if all(grafting.copied[first : last + 1]):
        named = ", ".join(f"{i} {grafting.names[i]}" for i in grafting.grafted)
        raise ValueError(
            f"blocks {first} to {last} of the student are copies of the teacher's and do not train: "
            f"the trainable blocks are {named}"
        )
