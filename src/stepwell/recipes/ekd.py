"""Train a nested network: all depths in one run, the full net teaching the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import nn

from stepwell.data.image_flags import Images
from stepwell.flags import Flags, Hidden, checked, shown_as, unset
from stepwell.losses.attention import Attention
from stepwell.methods import EmbeddedKD, PrivateNorms, Supervised
from stepwell.nets.nested.net import NestedNet, NormSharing
from stepwell.recipes.flags import (
    Calibrated,
    Data,
    Depths,
    Init,
    Net,
    Out,
    SoftTargets,
    Stem,
    TeacherNames,
    file_of,
)
from stepwell.recipes.full_net_watch import OnDrop, watch_full_net
from stepwell.tasks.classification import (
    finish,
    open_task,
    prepare_images,
    read_splits,
    start_network,
    untrained_depths,
    validator,
)
from stepwell.teachers import Frozen
from stepwell.training import Loop, fit
from stepwell.training.optimisation import SgdTraining

Schedule = Literal["one-run", "two-phase", "taught", "plain"]

#: What each schedule sets where the caller does not.
SCHEDULES: dict[str, dict[str, Any]] = {
    "one-run": {"full_weight": 1.5, "distill_from": 0.5, "ema_teacher": 0.99, "teach_full": True},
    "two-phase": {"full_weight": 1.0, "distill_from": 0.0, "ema_teacher": 0.99, "teach_full": True},
    "taught": {"full_weight": 1.0, "distill_from": 0.0, "ema_teacher": 0.0, "teach_full": True},
    "plain": {"full_weight": 1.0, "distill_from": 0.0, "ema_teacher": 0.0, "teach_full": False},
}


@dataclass(frozen=True, kw_only=True)
class EkdAblation:
    """Options for studies.

    Attributes:
        norms: of the sub-nets behind the fork: private or shared.
        attention_mode: kind of attention transfer.
        distill_from: share of training before which only the full net trains; by default 0.5 in
            one-run, else 0.
        ema_teacher: decay of the moving average that teaches, 0: none (then a frozen copy teaches in
            two-phase); by default 0.99 in one-run and two-phase.
        teach_full: the teacher teaches the full net, too; by default in all schedules but plain.
    """

    norms: NormSharing = "private"
    attention_mode: Attention = "at"
    distill_from: float | None = None
    ema_teacher: float | None = None
    teach_full: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Teaching(SoftTargets):
    """Schedule and losses of embedded distillation.

    Attributes:
        schedule: two-phase: train the full net (or take it from --init), then its moving
            average teaches all depths at half the rate; one-run: the full net alone for half of the
            training, then the same; taught: --teacher teaches all depths; plain: the paper's loss
            from the first step.
        full_weight: weight of the full net's own loss.
        sample: train one drawn sub-net and the full net in each step.
    """

    schedule: Annotated[Schedule, shown_as("SCHEDULE")] = "two-phase"
    attention: float = 2.0
    full_weight: Annotated[float | None, unset("FLOAT", "1.5 in one-run, else 1")] = None
    sample: bool = False

    def check_teacher(self, teacher: Sequence[str]) -> None:
        """Refuse a teacher that would not teach, and a normalisation without a teacher.

        Raises:
            ValueError: either.
        """
        if bool(teacher) != (self.schedule == "taught"):
            raise ValueError(
                "--schedule taught needs a --teacher, and the other schedules bring their own: give "
                "both, or neither"
            )
        if not teacher and (self.teacher_mean or self.teacher_std):
            raise ValueError("--teacher-mean and --teacher-std say more about --teacher")

    def options(self, ablation: EkdAblation) -> dict[str, Any]:
        """The options that `EmbeddedKD` and `PrivateNorms` share."""
        names = ("temperature", "ce", "kl", "attention", "sample")
        return {n: getattr(self, n) for n in names} | {"attention_mode": ablation.attention_mode}

    def objective(
        self,
        net: NestedNet,
        teacher: nn.Module | None,
        ablation: EkdAblation,
        label_smoothing: float,
    ) -> EmbeddedKD:
        """The objective of this schedule for `net` as it stands.

        Raises:
            ValueError: as for `EmbeddedKD`.
        """
        options = dict(SCHEDULES[self.schedule])
        own = {name: getattr(ablation, name, None) for name in options}
        own["full_weight"] = self.full_weight
        options |= {name: value for name, value in own.items() if value is not None}
        if self.schedule == "two-phase" and not options["ema_teacher"]:
            teacher = Frozen(net.module)
        return EmbeddedKD(
            net,
            teacher=teacher,
            label_smoothing=label_smoothing,
            **self.options(ablation),
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class Training(SgdTraining):
    """Training of the full net and of its sub-nets.

    Attributes:
        nest_epochs: passes of the second phase in two-phase.
        on_drop: if the full net loses more than --max-drop: warn, or rollback, which restores
            it and trains only the sub-nets' own norms.
        max_drop: points of validation accuracy (percent).
    """

    nest_epochs: Annotated[int | None, unset("INT", "half of --epochs")] = None
    on_drop: Annotated[OnDrop, shown_as("ACTION")] = "warn"
    max_drop: float = 0.5

    def second_phase(self) -> int:
        """Passes of the second phase."""
        return max(1, self.epochs // 2) if self.nest_epochs is None else self.nest_epochs

    def check_rollback(self, net: NestedNet, *, validated: bool, why_untrained: str) -> None:
        """Refuse a rollback that could not happen.

        Args:
            why_untrained: why there is no trained full net to go back to; empty if there is one.

        Raises:
            ValueError: there is nothing to go back to, nothing to compare, or nothing to train.
        """
        if self.on_drop != "rollback":
            return
        if not validated:
            raise ValueError(
                "--on-drop rollback compares the full net on a validation part: set --val-fraction "
                "above 0"
            )
        if not len(net.private_norms):
            raise ValueError(
                "--on-drop rollback trains the sub-nets' own norms, and they have none"
            )
        if why_untrained:
            raise ValueError(
                f"--on-drop rollback goes back to a trained full net, and {why_untrained}: use "
                "--schedule two-phase, which trains it first"
            )


def ekd(
    *,
    data: Data,
    out: Out,
    net: Net = "resnet32",
    depths: Depths = ("20", "26"),
    calibrated: Calibrated = (),
    stem: Stem = "auto",
    init: Init = None,
    teacher: TeacherNames = (),
    images: Flags[Images] = Images(),
    teaching: Flags[Teaching] = Teaching(),
    training: Flags[Training] = Training(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[EkdAblation] = EkdAblation(),
) -> dict[str, Any]:
    """Train a nested network with embedded knowledge distillation; report accuracy at every depth.

    Examples:
        stepwell train ekd --data digits --out runs/digits
        stepwell train ekd --data photos/ --out runs/photos --net resnet34 --depths 18 --size 64
        stepwell train ekd --data photos/ --out runs/own --depths half=3,3,3 tiny=1,1,1
        stepwell train ekd --data photos/ --out runs/by-big --schedule taught --teacher big.onnx
    """
    init = file_of(init)
    arguments = checked(locals())
    teaching.check_teacher(teacher)
    opened = teaching.open(teacher) if teacher else None
    torch.manual_seed(training.seed)  # not before: opening a teacher draws numbers, too
    splits = read_splits(data, out, images)
    nested, start = start_network(splits, net, depths, stem=stem, norms=ablation.norms, init=init)
    added = untrained_depths(nested, calibrated)
    inputs = prepare_images(splits, images, training, start=start, init=init, teacher=opened)
    two_phase, known = teaching.schedule == "two-phase", start is not None and not start.fresh
    training.check_rollback(
        nested,
        validated=inputs.validation is not None,
        why_untrained="" if two_phase or known else _no_full_net(init),
    )
    method = partial(teaching.objective, nested, inputs.teacher, ablation, training.label_smoothing)
    method()  # refuses options that do not fit, before there is a run
    with open_task("ekd", out, loop, arguments, inputs) as task:
        learn = partial(fit, train=task.train, run=task.run, loop=loop)
        epochs, optim = training.epochs, training.optim()
        if two_phase and not known:
            full = Supervised(nested.module, label_smoothing=training.label_smoothing)
            learn(full, optim=optim, phase="full", epochs=epochs,
                  validate=validator(nested, task, [nested.full]))  # fmt: skip
            nested.load_full(nested.module.state_dict())
        if two_phase:
            epochs, optim = training.second_phase(), training.optim(0.5)
        watch = watch_full_net(nested, task, training.max_drop, start, trained=two_phase or known)
        objective, validate = method(), validator(nested, task)
        learn(objective, optim=optim, phase="nest", epochs=epochs, validate=validate,
              select=watch.select if watch else None)  # fmt: skip
        if watch and watch.roll_back(training.on_drop):
            objective = PrivateNorms(nested, **teaching.options(ablation))
            learn(objective, optim=optim, phase="norms", epochs=epochs, validate=validate)
            nested.requires_grad_(True)
        record = watch.record() if watch else {}
        return finish(task, nested, added, record, trained=objective.trained_depths)


def _no_full_net(init: object) -> str:
    return f"--init {init} brings no classifier for these classes" if init else "there is none yet"
