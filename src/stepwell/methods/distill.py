"""Knowledge distillation from a separate teacher (Hinton et al. 2015), and from its stages."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from stepwell.losses import attention_loss, label_cross_entropy, soft_target_kl
from stepwell.losses.attention import Attention
from stepwell.methods.objective import Objective
from stepwell.ranges import check_numbers
from stepwell.teachers.adapters import AsLogits
from stepwell.teachers.stages import Hints, check_resolution, pair_stages
from stepwell.teachers.teacher import Teacher, check_teacher, exit_of
from stepwell.types import Batch, Step


class Distill(Objective):
    """a · CE(student) + b · T² · KL(teacher || student) + g · attention + h · hints.

    Terms of weight 0 are not computed: with `ce=0` the labels are unused.

    Args:
        student: the network to train; gives logits or an `Exit`. A nested net trains its full depth.
        teacher: a callable `images -> Exit` without gradients, such as `Frozen(net)`. Probabilities
            are replaced by their logarithm, with a warning.
        temperature: T, the softening of both sides.
        ce: a, the weight of the labels.
        kl: b, the weight of the teacher's soft targets.
        attention: g, the weight of attention transfer, summed over its stages.
        attention_mode: `at` (attention maps), `sad` (self-attention) or `gram`.
        attention_stages: one or several, as for `pair_stages`: "layer2" or "layer2=stages.1.blocks".
        hint: h, the weight of hints (FitNets, Romero et al. 2015), summed over their stages. Their
            regressors train with the student and belong to this objective.
        hint_stages: as `attention_stages`.
        input_shape: of one image, such as (3, 32, 32), to check the stages before training.

    Raises:
        ValueError: a weight is negative, or all are 0; the temperature is not positive; an unknown
            attention mode; the teacher is not frozen; stages are missing or do not fit; no
            `input_shape` for attention or hints; in a step, the teacher gives no `Exit`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        *,
        temperature: float = 3.0,
        ce: float = 1.0,
        kl: float = 1.0,
        attention: float = 0.0,
        attention_mode: Attention = "at",
        attention_stages: str | Sequence[str] = (),
        hint: float = 0.0,
        hint_stages: str | Sequence[str] = (),
        input_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_numbers(locals(), flags=False)
        if not (ce or kl or attention or hint):
            raise ValueError("the student has no loss: ce, kl, attention and hint are all 0")
        if (attention or hint) and not input_shape:
            raise ValueError(
                "attention and hints need input_shape, the shape of one image, such as (3, 32, 32)"
            )
        check_teacher(teacher)
        self.student = student
        self.teacher = teacher
        self._as_logits = AsLogits()
        self.temperature = temperature
        self.ce, self.kl, self.attention, self.hint = ce, kl, attention, hint
        self.attention_of = attention_loss(attention_mode)
        pairs = partial(pair_stages, student, teacher, input_shape=input_shape)
        self.attended = pairs(attention_stages) if attention else []
        check_resolution(self.attended)
        self.hints = Hints(pairs(hint_stages)) if hint else None

    def training_step(self, batch: Batch) -> Step:
        """The weighted terms of one batch; an unlabeled image has the teacher's terms only."""
        images, labels = batch
        exit = exit_of(self.student, images)
        logs, loss = {}, []
        if self.ce:
            logs["ce"] = label_cross_entropy(exit.logits, labels)
            loss.append(self.ce * logs["ce"])
        if self.kl or self.attention or self.hint:
            target = self._as_logits(self.teacher(images))
        if self.kl:
            logs["kl"] = soft_target_kl(exit.logits, target.logits, self.temperature)
            loss.append(self.kl * logs["kl"])
        if self.attention:
            ours, theirs, attention_of = exit.features, target.features, self.attention_of
            apart = [attention_of(ours[p.student], theirs[p.teacher]) for p in self.attended]
            logs["attention"] = torch.stack(apart).sum()
            loss.append(self.attention * logs["attention"])
        if self.hints is not None:
            logs["hint"] = self.hints(exit.features, target.features)
            loss.append(self.hint * logs["hint"])
        return Step(torch.stack(loss).sum(), logs)
