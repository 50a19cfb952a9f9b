"""Embedded knowledge distillation: a nested net in which the full depth teaches the shallower ones.

After "Elegant depth-level dynamic neural network with embedded knowledge distillation", of which the
abstract is public; the equations are a *reconstruction*:

    L = w_F · CE(full) + Σ_k w_k · [ a · CE(sub_k) + b · T² · KL( softmax(z_F/T) || softmax(z_k/T) )
                                     + g · Σ_stages A( sg(F_full,s), F_k,s ) ]

`sg` stops the gradient. `distill_from`, `ema_teacher` and `teach_full` are additions: in our
experiments the plain loss from the first step drags the shared weights towards sub-nets that learn
from a teacher that knows nothing yet (see the results of `stepwell verify ekd`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stepwell.losses import attention_loss, class_cross_entropy, soft_target_kl
from stepwell.losses.attention import Attention
from stepwell.methods.objective import Objective
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import NOT_NEGATIVE, check_number, check_numbers
from stepwell.teachers.adapters import AsLogits
from stepwell.teachers.teacher import MovingAverage, Teacher, check_teacher
from stepwell.types import Batch, Exit, Step


class EmbeddedKD(Objective):
    """Train all depths of a nested net in one step, the full net teaching (DDNN + EKD).

    Args:
        net: the nested net.
        temperature: T of the soft targets.
        ce: a, the weight of the labels for each sub-net.
        kl: b, the weight of the teacher's soft targets.
        attention: g, the weight of attention on the stages' features; needs equal resolutions.
        attention_mode: `at` (attention maps), `sad` (self-attention) or `gram`.
        full_weight: w_F, the weight of the full net's own loss.
        weights: w_k by depth; 1 where a depth is not named.
        distill_from: share of training before which only the full net trains (the moving average,
            where there is one, does not teach before either).
        sample: train the full net and one randomly drawn sub-net a step, for many depths.
        ema_teacher: decay of a moving average of the full net that replaces it as teacher of the
            soft targets (0: none), updated once a step. Attention still looks at the full net's
            own features.
        teacher: another teacher of the soft targets, such as `Frozen(trained_full_net)`. Where its
            first answers are probabilities, a warning says so, and their logarithm is taken.
        teach_full: the teacher's soft targets are part of the full net's loss, too.
        label_smoothing: of the full net's cross entropy (regularisation belongs to it alone).

    Attributes:
        loss_scale: for loops in float16: what `NestedNet.joint_loss` takes as `scale`, set before
            each step, such as `scaler.get_scale()`.

    Raises:
        ValueError: a value out of range, an unknown depth or the full one in `weights`, two teachers,
            one that is not frozen, or `teach_full` with the full net as its own teacher or without
            soft targets (`kl=0`); in a step, `teacher` gives no `Exit`.
    """

    loss_scale: float | None = None

    def __init__(
        self,
        net: NestedNet,
        *,
        temperature: float = 3.0,
        ce: float = 1.0,
        kl: float = 1.0,
        attention: float = 2.0,
        attention_mode: Attention = "at",
        full_weight: float = 1.0,
        weights: Mapping[str, float] | None = None,
        distill_from: float = 0.5,
        sample: bool = False,
        ema_teacher: float = 0.0,
        teacher: Teacher | None = None,
        teach_full: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_numbers(
            {
                "temperature": temperature,
                "ce": ce,
                "kl": kl,
                "attention": attention,
                "full_weight": full_weight,
                "distill_from": distill_from,
                "ema_teacher": ema_teacher,
                "label_smoothing": label_smoothing,
            },
            flags=False,
        )
        _check_weights(net, weights or {})
        if not (ce or kl or attention):
            raise ValueError("the sub-nets have no loss: ce, kl and attention are all 0")
        if ema_teacher and teacher is not None:
            raise ValueError("give ema_teacher or teacher, not both: one of them would never teach")
        if teach_full and not ema_teacher and teacher is None:
            raise ValueError(
                "teach_full needs a teacher besides the full net: set ema_teacher or teacher"
            )
        if teach_full and not kl:
            raise ValueError(
                "teach_full teaches by soft targets, and kl=0 leaves these out: drop one"
            )
        if teacher is not None:
            check_teacher(teacher)
        self.net = net
        self.temperature = temperature
        self.ce = ce
        self.kl = kl
        self.attention = attention
        self.attention_of = attention_loss(attention_mode)
        self.full_weight = full_weight
        self.weights = dict(weights or {})
        self.distill_from = distill_from
        self.sample = sample
        self.average = MovingAverage(net.module, ema_teacher) if ema_teacher else None
        self.fixed_teacher = teacher
        self._as_logits = AsLogits()
        self.teach_full = teach_full
        self.label_smoothing = label_smoothing
        self._names = tuple(net.depths)
        self.ran: Tensor  # 1 for each depth that these weights were trained at, else 0
        # In the state dict, so that it is of the weights that are kept (of an epoch, an average). Of
        # floats, because a moving average of whole numbers stays at 0.
        self.register_buffer("ran", torch.zeros(len(self._names)))

    @property
    def trained_depths(self) -> tuple[str, ...]:
        """The depths that have taken a step, shallow to deep; a sub-net that comes late or is never
        drawn is none of them."""
        return tuple(d for d, ran in zip(self._names, self.ran.tolist(), strict=True) if ran)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Checkpoints of before kept no record, and every depth counted as trained.
        state.setdefault(f"{prefix}ran", torch.ones_like(self.ran))
        super()._load_from_state_dict(state, prefix, *rest)

    def training_step(self, batch: Batch) -> Step:
        """The joint loss of the active depths; each common prefix runs once."""
        images, labels = batch
        depths = self.active_depths()
        if self.average is not None and not self.accumulating:
            self.average.update(self.net.module)
        teacher = self.average or self.fixed_teacher
        target: Tensor | None = None
        asked = self.kl and self.distilling and (self.teach_full or len(depths) > 1)
        if teacher is not None and asked:
            target = self._as_logits(teacher(images)).logits

        def loss_of(
            depth: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            if depth == self.net.full:
                return self._full_loss(exit, labels, target if self.teach_full else None)
            full = done[self.net.full]
            return self._sub_loss(
                depth, exit, labels, full, full.logits if target is None else target
            )

        step = Step(
            *self.net.joint_loss(
                images,
                loss_of,
                depths,
                scale=self.loss_scale,
                keep_features=bool(self.attention),
            )
        )
        for i, name in enumerate(self._names):
            if name in depths:
                self.ran[i] = 1.0
        return step

    @property
    def distilling(self) -> bool:
        """Whether the sub-nets train yet, and the teacher teaches."""
        return self.progress >= self.distill_from

    def active_depths(self) -> list[str]:
        """The depths that this step trains, shallow to deep."""
        *subs, full = self.net.depths
        if not self.distilling or not subs:
            return [full]
        if self.sample:
            # Torch's global generator, which the training loop seeds by step.
            return [subs[int(torch.randint(len(subs), ()))], full]
        return [*subs, full]

    def _full_loss(
        self, exit: Exit, labels: Tensor, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        ce = class_cross_entropy(exit.logits, labels, label_smoothing=self.label_smoothing)
        if target is None:
            return self.full_weight * ce, {"ce": ce}
        kl = soft_target_kl(exit.logits, target, self.temperature)
        return self.full_weight * (ce + self.kl * kl), {"ce": ce, "kl": kl}

    def _sub_loss(
        self, depth: str, exit: Exit, labels: Tensor, full: Exit, target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weighted: dict[str, tuple[float, Tensor]] = {}
        if self.ce:
            weighted["ce"] = (self.ce, class_cross_entropy(exit.logits, labels))
        if self.kl:
            weighted["kl"] = (self.kl, soft_target_kl(exit.logits, target, self.temperature))
        if self.attention:
            # An exit has the features of the stages that it runs, which are the first ones.
            pairs = zip(exit.features, full.features[: len(exit.features)], strict=True)
            # Stages before the fork are the full net's own: no distance, no gradient.
            apart = [self.attention_of(f, t) for f, t in pairs if not f.is_set_to(t)]
            weighted["attention"] = (self.attention, sum(apart, exit.logits.new_zeros(())))
        loss = torch.stack([w * value for w, value in weighted.values()]).sum()
        return self.weights.get(depth, 1.0) * loss, {k: v for k, (_, v) in weighted.items()}


def _check_weights(net: NestedNet, weights: Mapping[str, float]) -> None:
    for depth, weight in weights.items():
        net.path(depth)
        if depth == net.full:
            raise ValueError(
                f"{depth!r} is the full net, whose weight is full_weight, not in weights"
            )
        check_number(f"the weight of depth {depth!r}", weight, NOT_NEGATIVE)
