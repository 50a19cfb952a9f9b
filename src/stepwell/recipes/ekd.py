"""Train a nested network: all depths in one run, the full net teaching the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from torch import nn

from stepwell.losses.attention import Attention
from stepwell.methods import EmbeddedKD, Objective, PrivateNorms, Supervised
from stepwell.nets import build, named_depths
from stepwell.nets.files.nested import Start
from stepwell.nets.nested.net import NestedNet, NormSharing
from stepwell.recipes.full_net_watch import OnDrop, watch_full_net
from stepwell.tasks.classification import finish, open_classifier, validator
from stepwell.teachers import Frozen, open_teacher
from stepwell.training import Loop, fit, sgd

Schedule = Literal["one-run", "two-phase", "taught", "plain"]

#: What each schedule sets where the caller does not.
SCHEDULES: dict[str, dict[str, Any]] = {
    "one-run": {"full_weight": 1.5, "distill_from": 0.5, "ema_teacher": 0.99, "teach_full": True},
    "two-phase": {"full_weight": 1.0, "distill_from": 0.0, "ema_teacher": 0.99, "teach_full": True},
    "taught": {"full_weight": 1.0, "distill_from": 0.0, "ema_teacher": 0.0, "teach_full": True},
    "plain": {"full_weight": 1.0, "distill_from": 0.0, "ema_teacher": 0.0, "teach_full": False},
}


def ekd(
    *,
    data: str,
    out: Path,
    net: str = "resnet32",
    depths: tuple[str, ...] = ("20", "26"),
    calibrated: tuple[str, ...] = (),
    norms: NormSharing = "private",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    init: Literal["pretrained"] | Path | None = None,
    on_drop: OnDrop = "warn",
    max_drop: float = 0.5,
    schedule: Schedule = "two-phase",
    teacher: tuple[str, ...] = (),
    teacher_mean: tuple[float, float, float] | None = None,
    teacher_std: tuple[float, float, float] | None = None,
    epochs: int = 40,
    nest_epochs: int | None = None,
    batch_size: int = 128,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    temperature: float = 3.0,
    ce: float = 1.0,
    kl: float = 1.0,
    attention: float = 2.0,
    attention_mode: Attention = "at",
    full_weight: float | None = None,
    distill_from: float | None = None,
    ema_teacher: float | None = None,
    teach_full: bool | None = None,
    sample: bool = False,
    label_smoothing: float = 0.0,
    size: int | None = None,
    flip: bool | None = None,
    part: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    loop: Annotated[Loop, tyro.conf.OmitArgPrefixes] = Loop(),
) -> dict[str, Any]:
    """Train a nested network with embedded knowledge distillation; report accuracy at every depth.

    Examples:
        stepwell train ekd --data digits --out runs/digits
        stepwell train ekd --data photos/ --out runs/photos --net resnet34 --depths 18 --size 64
        stepwell train ekd --data photos/ --out runs/own --depths half=3,3,3 tiny=1,1,1
        stepwell train ekd --data photos/ --out runs/by-big --schedule taught --teacher big.onnx

    Args:
        data: a folder of class folders, or a name (`stepwell list`).
        out: the run directory; if it holds this run already, training goes on where it stopped.
        net: the full network (`stepwell list`).
        depths: sub-nets, by the family's names (20) or as NAME=BLOCKS,BLOCKS,... a stage.
        calibrated: sub-nets that are not trained but added at the end, with norm statistics from the
            training images.
        norms: of the sub-nets behind the fork; `shared` is an ablation, which costs accuracy.
        stem: first layers, where there is a choice; `auto` takes the small ones below 64 pixels.
        init: weights to start from: a Stepwell file, weights under torchvision's names, or `pretrained`
            for those that torchvision or timm publish (a download).
        on_drop: when a trained full net loses more than `max_drop` on the validation part while its
            sub-nets train: `warn`, or `rollback`: it gets its weights back to the bit, and only the
            sub-nets' own norms are trained.
        max_drop: points of accuracy (percent).
        schedule: `two-phase`: train the full net (or take it from `init`), then a moving average that
            starts there (a frozen copy, with `ema_teacher` 0) teaches all depths at half the rate.
            `one-run`: the full net alone until `distill_from`, then a
            moving average of it teaches every depth, the full one included. `taught`: `teacher` teaches
            every depth from the first step. `plain`: the paper's loss from the first step.
        teacher: for `taught`: one or several trained networks, as for `stepwell train distill`.
        teacher_mean: of pixels scaled to [0, 1], per channel, for a teacher that does not say how its
            images are normalised (most ONNX files).
        teacher_std: as --teacher-mean.
        epochs: passes over the training part, of the first phase in `two-phase`.
        nest_epochs: passes of the second phase in `two-phase`; half of `epochs` by default.
        ce: weight of the labels for each sub-net.
        kl: weight of the teacher's soft targets.
        attention: weight of attention transfer on the stages' features.
        full_weight: weight of the full net's own loss; 1.5 in `one-run`, else 1.
        distill_from: share of training before which only the full net trains; 0.5 in `one-run`.
        ema_teacher: decay of the moving average that teaches, 0: none; 0.99 but in `plain`.
        teach_full: whether the teacher teaches the full net, too; yes but in `plain`.
        sample: train the full net and one drawn sub-net a step, for many depths.
        size: height and width of the images; by default their own.
        flip: mirror training images; by default where the data allows it.
        part: train on a part of the training images, I/N: 1/2 and 2/2 are halves that share none.
        val_fraction: share of the training part set aside to choose the best epoch; 0: keep the last.
        seed: of weights, order, augmentation and steps.
    """
    arguments = dict(locals())
    _check_teacher(schedule, teacher, teacher_mean, teacher_std)
    taught_by = open_teacher(teacher, mean=teacher_mean, std=teacher_std) if teacher else None
    torch.manual_seed(seed)  # not before: opening a teacher draws numbers, too
    method = _Method.of(arguments)
    extra = _try_out(method, arguments)
    two_phase = schedule == "two-phase"

    def check(_: NestedNet, __: object, ___: int, start: Start | None) -> None:
        if on_drop == "rollback" and start is not None and start.fresh and not two_phase:
            raise ValueError(
                f"--on-drop rollback goes back to a trained full net, and --init {init} brings no "
                "classifier for these classes: use --schedule two-phase, which trains it first"
            )

    opened = open_classifier("ekd", arguments, net, depths, teacher=taught_by, check=check)
    with opened as (task, nested, start):
        known = start is not None and not start.fresh  # a full net that is trained already

        def train(phase: str, objective: Objective, epochs: int, lr: float, **how: Any) -> None:
            optim = sgd(lr, weight_decay=weight_decay)
            how = {"validate": validator(nested, task), "loop": loop} | how
            fit(objective, task.train, optim, task.run, phase=phase, epochs=epochs, **how)

        def train_norms() -> None:
            objectives.append(PrivateNorms(nested, **method.teaching))
            train("norms", objectives[-1], epochs, lr)
            nested.requires_grad_(True)

        if two_phase and not known:
            full = Supervised(nested.module, label_smoothing=label_smoothing)
            train("full", full, epochs, lr, validate=validator(nested, task, [nested.full]))
            nested.load_full(nested.module.state_dict())
        if two_phase:
            epochs, lr = max(1, epochs // 2) if nest_epochs is None else nest_epochs, lr / 2
        watch = watch_full_net(nested, task, max_drop, start, trained=two_phase or known)
        objectives = [method.make(nested, task.teacher)]
        train("nest", objectives[0], epochs, lr, select=watch.select if watch else None)
        kept = watch.settle(on_drop, train_norms) if watch else {}
        return finish(task, nested, extra, kept, trained=objectives[-1].trained_depths)


class _Method(NamedTuple):
    """The objective that a recipe's arguments ask for.

    teaching: what `EmbeddedKD` and `PrivateNorms` share; options: what the schedule sets, too.
    """

    schedule: Schedule
    teaching: dict[str, Any]
    options: dict[str, Any]
    label_smoothing: float

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "_Method":
        options = dict(SCHEDULES[arguments["schedule"]])
        options |= {name: arguments[name] for name in options if arguments[name] is not None}
        names = ("temperature", "ce", "kl", "attention", "attention_mode", "sample")
        teaching = {name: arguments[name] for name in names}
        return cls(arguments["schedule"], teaching, options, arguments["label_smoothing"])

    def make(self, net: NestedNet, teacher: nn.Module | None) -> EmbeddedKD:
        if self.schedule == "two-phase" and not self.options["ema_teacher"]:
            teacher = Frozen(net.module)
        return EmbeddedKD(
            net,
            teacher=teacher,
            label_smoothing=self.label_smoothing,
            **self.teaching,
            **self.options,
        )


def _check_teacher(schedule: Schedule, teacher: Sequence[str], *about: object) -> None:
    """Refuse a teacher that does not teach, and words `about` one that is not there.

    Raises:
        ValueError: either.
    """
    if bool(teacher) != (schedule == "taught"):
        raise ValueError(
            "--schedule taught needs a --teacher, and the other schedules bring their own: give both, "
            "or neither"
        )
    if not teacher and any(about):
        raise ValueError("--teacher-mean and --teacher-std say more about --teacher")


def _try_out(method: _Method, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Make everything once without arithmetic: what cannot work shows before any time is spent.

    Returns:
        The depths that are `calibrated`, as blocks a stage.

    Raises:
        ValueError: a depth, a norm or an option that does not fit; a rollback to nothing.
    """
    with torch.device("meta"):
        trial = build(arguments["net"], arguments["depths"], norms=arguments["norms"])
        method.make(trial, Frozen(trial.module) if arguments["teacher"] else None)
        if arguments["on_drop"] == "rollback":
            PrivateNorms(trial, **method.teaching)
            if method.schedule != "two-phase" and arguments["init"] is None:
                raise ValueError(
                    "--on-drop rollback goes back to a trained full net: use --schedule two-phase, or "
                    "--init"
                )
        extra = named_depths(arguments["net"], arguments["calibrated"])
        for name, blocks in extra.items():
            trial.add_depth(name, blocks)
    return extra
