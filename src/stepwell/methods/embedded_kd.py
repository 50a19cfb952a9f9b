"""Embedded knowledge distillation: the full depth of a nested net teaches the shallower depths.

After "Elegant depth-level dynamic neural network with embedded knowledge distillation". Only its
abstract is public; the equations are a *reconstruction*:

    L = w_F · CE(full) + Σ_k w_k · [ a · CE(sub_k) + b · T² · KL( softmax(z_F/T) || softmax(z_k/T) )
                                     + g · Σ_stages A( sg(F_full,s), F_k,s ) ]

`sg` stops the gradient. Where labels are numbers, CE and KL are squared errors. `distill_from`,
`ema_teacher` and `teach_full` are additions: the full net teaches nothing useful in the first steps,
and in our experiments the plain loss then pulls the shared weights towards the sub-nets (see the
results of `stepwell verify ablation`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepwell.losses import attention_loss, label_loss, teacher_loss
from stepwell.losses.attention import Attention
from stepwell.methods.objective import Objective
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import NOT_NEGATIVE, check_number, check_numbers
from stepwell.teachers.adapters import AsLogits
from stepwell.teachers.teacher import MovingAverage, Teacher, check_teacher
from stepwell.types import Batch, Exit, Step


class EmbeddedKD(Objective):
    """Train all depths of a nested net in one step; the full net teaches the others (DDNN + EKD).

    Args:
        net: the nested net.
        temperature: T of the soft targets.
        ce: a, the weight of the labels for each sub-net.
        kl: b, the weight of the teacher's soft targets.
        attention: g, the weight of attention on the stages' features; needs equal resolutions.
        attention_mode: `at` (attention maps), `sad` (self-attention) or `gram`.
        full_weight: w_F, the weight of the full net's own loss.
        weights: w_k by depth; 1 for the depths not named.
        distill_from: share of training before which only the full net trains, and no teacher teaches.
        sample: train the full net and one random sub-net a step, for networks of many depths.
        ema_teacher: decay of a moving average of the full net, updated once a step, that gives the
            soft targets in place of the full net (0: none). Attention still uses the full net's own
            features.
        teacher: another teacher of the soft targets, such as `Frozen(trained_full_net)`. Probabilities
            are replaced by their logarithm, with a warning.
        teach_full: add the teacher's soft targets to the full net's loss as well.
        label_smoothing: of the full net's cross entropy only.

    Raises:
        ValueError: a value is out of range; `weights` names an unknown depth or the full one; two
            teachers; a teacher that is not frozen; `teach_full` without another teacher or without
            soft targets (`kl=0`); in a step, `teacher` gives no `Exit`.
    """

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
        check_numbers(locals(), flags=False)
        for depth, weight in (weights or {}).items():
            net.path(depth)
            if depth == net.full:
                raise ValueError(f"weights names {depth!r}, the full net: set full_weight instead")
            check_number(f"the weight of depth {depth!r}", weight, NOT_NEGATIVE)
        if not (ce or kl or attention):
            raise ValueError("the sub-nets have no loss: ce, kl and attention are all 0")
        if ema_teacher and teacher is not None:
            raise ValueError("give ema_teacher or teacher, not both: one of them would never teach")
        if teach_full and not ema_teacher and teacher is None:
            raise ValueError(
                "teach_full needs another teacher than the full net: set ema_teacher or teacher"
            )
        if teach_full and not kl:
            raise ValueError("teach_full needs soft targets, which kl=0 turns off: drop one of the two")
        if teacher is not None:
            check_teacher(teacher)
        self.net = net
        self.temperature, self.label_smoothing = temperature, label_smoothing
        self.ce, self.kl, self.attention = ce, kl, attention
        self.attention_of = attention_loss(attention_mode)
        self.full_weight, self.weights = full_weight, dict(weights or {})
        self.distill_from, self.sample = distill_from, sample
        self.average = MovingAverage(net.module, ema_teacher) if ema_teacher else None
        self.fixed_teacher = teacher
        self._as_logits = AsLogits()
        self.teach_full = teach_full
        self._names = tuple(net.depths)
        self.ran: Tensor  # 1 for each depth that these weights were trained at, else 0
        # In the state dict, so that it matches the chosen weights (best epoch, moving average). Floats,
        # because a moving average of integers stays at 0.
        self.register_buffer("ran", torch.zeros(len(self._names)))

    @property
    def trained_depths(self) -> tuple[str, ...]:
        """The depths that have taken a step, shallow to deep."""
        return tuple(d for d, ran in zip(self._names, self.ran.tolist(), strict=True) if ran)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Older checkpoints have no record; in them every depth counts as trained.
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
            soft = full.logits if target is None else target
            return self._sub_loss(depth, exit, labels, full, soft)

        joint = self.net.joint_loss(images, loss_of, depths, keep_features=bool(self.attention))
        self.ran[[self._names.index(name) for name in depths]] = 1.0
        return Step(*joint)

    @property
    def distilling(self) -> bool:
        """True once the sub-nets train and the teacher teaches."""
        return self.progress >= self.distill_from

    def active_depths(self) -> list[str]:
        """The depths that this step trains, shallow to deep."""
        *subs, full = self.net.depths
        if not self.distilling or not subs:
            return [full]
        if self.sample:
            # Torch's global generator: the training loop seeds it at each step.
            return [subs[int(torch.randint(len(subs), ()))], full]
        return [*subs, full]

    def _full_loss(
        self, exit: Exit, labels: Tensor, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        hard = label_loss(exit.logits, labels, label_smoothing=self.label_smoothing)
        if target is None:
            return self.full_weight * hard.value, dict([hard])
        soft = teacher_loss(exit.logits, target, self.temperature)
        return self.full_weight * (hard.value + self.kl * soft.value), dict([hard, soft])

    def _sub_loss(
        self, depth: str, exit: Exit, labels: Tensor, full: Exit, target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weighted: dict[str, tuple[float, Tensor]] = {}
        if self.ce:
            name, value = label_loss(exit.logits, labels)
            weighted[name] = (self.ce, value)
        if self.kl:
            name, value = teacher_loss(exit.logits, target, self.temperature)
            weighted[name] = (self.kl, value)
        if self.attention:
            # An exit has the features of the stages that it runs, which are the first ones.
            pairs = zip(exit.features, full.features[: len(exit.features)], strict=True)
            # Stages before the fork are the full net's own: no distance, no gradient.
            apart = [self.attention_of(f, t) for f, t in pairs if not f.is_set_to(t)]
            weighted["attention"] = (self.attention, sum(apart, exit.logits.new_zeros(())))
        loss = torch.stack([w * value for w, value in weighted.values()]).sum()
        return self.weights.get(depth, 1.0) * loss, {k: v for k, (_, v) in weighted.items()}


class _PartOnly(EmbeddedKD):
    """Embedded distillation that trains one part of the net only.

    All other weights of `net` have `requires_grad=False` afterwards (`net.requires_grad_(True)` undoes
    it), and the shared norms stay in eval mode: the full net's outputs do not change by a bit.
    """

    part: ClassVar[str]
    lacking: ClassVar[str]

    def __init__(self, net: NestedNet, **arguments: Any) -> None:
        super().__init__(net, distill_from=0.0, **arguments)
        if not len(net.get_submodule(self.part)._modules):
            raise ValueError(self.lacking)
        net.requires_grad_(False)
        net.get_submodule(self.part).requires_grad_(True)

    def train(self, mode: bool = True) -> "_PartOnly":
        """Set the mode of the part; everything else stays in eval mode."""
        super().train(False)
        self.net.get_submodule(self.part).train(mode)
        return self


class PrivateNorms(_PartOnly):
    """Embedded distillation that trains the sub-nets' private norms only; the full net stays as it is.

    Args:
        net: a nested net whose sub-nets have private norms.
        arguments: as for `EmbeddedKD`.

    Raises:
        ValueError: the sub-nets share all their norms, so there is nothing to train.
    """

    part, lacking = "private_norms", "the sub-nets of this net have no private norms to train"


class ExitHeads(_PartOnly):
    """Embedded distillation that trains the exits' heads only (as DeeBERT, Xin et al. 2020).

    The full net stays as it is. Args as for `EmbeddedKD`; ValueError for a net without exits.
    """

    part, lacking = "exit_heads", "this net has no exits: add them with net.add_exit"
