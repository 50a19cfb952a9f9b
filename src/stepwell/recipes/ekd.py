"""Train a nested network: all depths in one run, the full net teaching the others."""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn

from stepwell.data.image_flags import TrainingImages
from stepwell.data.pictures.flags import Pictures
from stepwell.data.text_files import TextFiles
from stepwell.flags import Flags, Hidden, Together, checked, flag
from stepwell.losses.attention import Attention
from stepwell.methods import EmbeddedKD, PrivateNorms, Supervised
from stepwell.nets.build import further_depths, usual_depths
from stepwell.nets.nested.net import NestedNet, NormSharing
from stepwell.recipes import flags
from stepwell.recipes.full_net_watch import OnDrop, watch_full_net
from stepwell.tasks import task_of
from stepwell.teachers import Frozen
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.optimisation import Smoothed
from stepwell.training.progress import tell

Schedule = Literal["one-run", "two-phase", "taught", "plain"]

#: What each schedule sets where the caller does not. In two-phase the full net's own loss counts as
#: many times as there are depths: otherwise the sum of the sub-nets' losses on shared weights harms it.
SCHEDULES: dict[str, dict[str, Any]] = {
    "one-run": {"full_weight": 1.5, "distill_from": 0.5, "ema_teacher": 0.99, "teach_full": True},
    "two-phase": {"distill_from": 0.0, "ema_teacher": 0.99, "teach_full": True},
    "taught": {"full_weight": 1.0, "distill_from": 0.0, "ema_teacher": 0.0, "teach_full": True},
    "plain": {"full_weight": 1.0, "distill_from": 0.0, "ema_teacher": 0.0, "teach_full": False},
}


@dataclass(frozen=True, kw_only=True)
class EkdAblation(Together):
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
class Network:
    """The network, its depths and its initial weights."""

    net: flags.NetOrEncoder = "resnet32"
    depths: flags.Depths = None
    calibrated: flags.Calibrated = ()
    stages: flags.Stages = ()
    stem: flags.Stem = "auto"
    init: flags.Init = None


@dataclass(frozen=True, kw_only=True)
class Losses(flags.Losses):
    """Losses of embedded distillation.

    Attributes:
        ce: weight of the labels for each sub-net.
        full_weight: weight of the full net's own loss. two-phase: the number of depths;
            one-run: 1.5; else 1.
        sample: train one drawn sub-net and the full net in each step.
    """

    ce: float = 1.0
    full_weight: Annotated[float | None, flag("X", "by --schedule")] = None
    sample: Annotated[bool, flag()] = False


@dataclass(frozen=True, kw_only=True)
class Teaching(Losses, flags.Teachers):
    """Who teaches the depths, and by which losses."""

    TITLE: ClassVar = "teaching"


@dataclass(frozen=True, kw_only=True)
class Training(Smoothed):
    """Training of the full net and of its sub-nets.

    Attributes:
        schedule: two-phase: train the full net (or take it from --init), then its moving
            average teaches all depths at half the rate; one-run: the full net alone for half the
            training, then the same; taught: by --teacher; plain: the paper's loss throughout.
        nest_epochs: passes of the second phase in two-phase.
        on_drop: if the full net loses more than --max-drop: warn, or rollback, which restores
            it and trains only the sub-nets' own norms.
        max_drop: points of validation accuracy that the full net may lose.
    """

    schedule: Annotated[Schedule, flag("SCHEDULE")] = "two-phase"
    nest_epochs: Annotated[int | None, flag("N", "as --epochs")] = None
    on_drop: Annotated[OnDrop, flag("ACTION")] = "warn"
    max_drop: float = 0.5


def ekd(
    *,
    data: flags.Labelled,
    out: flags.Out,
    network: Flags[Network] = Network(),
    images: Flags[TrainingImages] = TrainingImages(),
    texts: Flags[TextFiles] = TextFiles(),
    pictures: Flags[Pictures] = Pictures(),
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
    init, depths = flags.file_of(network.init), network.depths
    if depths is None:
        depths = usual_depths(task_of(data, network.net).name_of(network.net), network.stages)
    network = replace(network, init=init, depths=depths)
    training = task_of(data, network.net).settled(training)
    arguments = checked(locals())
    check_resumes("ekd", arguments)
    kind = task_of(data, network.net)
    _check_teacher(training.schedule, teaching)
    opened = teaching.open(teaching.teacher) if teaching.teacher else None
    torch.manual_seed(training.seed)  # not before: opening a teacher draws numbers, too
    splits = kind.read_splits(data, out, images, network.net, texts, pictures)
    if splits.train.input == "text" and teaching.attention:
        raise ValueError(
            f"--attention {teaching.attention:g} compares the energy of positions, which a text "
            "encoder's norms make equal, so it would teach nothing: leave it out (train bert teaches "
            "attention maps)"
        )
    nested, start = kind.start_network(
        splits, network.net, depths, stages=network.stages, stem=network.stem,
        norms=ablation.norms, init=init,
    )  # fmt: skip
    added = further_depths(nested, network.calibrated)
    if depths and nested.full in depths and len(nested.depths) == 1:
        raise ValueError(
            f"--depths {' '.join(depths)} is the whole {network.net}: name a shallower depth, too, or "
            "train one network with `stepwell train supervised`"
        )
    inputs = kind.prepare(splits, images, training, start=start, init=init, teacher=opened)
    two_phase = training.schedule == "two-phase"
    known = start is not None and not start.fresh  # a full net that is trained already
    if training.on_drop == "rollback":
        _check_rollback(nested, inputs.validation is not None, two_phase or known, init)
    method = partial(_objective, nested, inputs.teacher, teaching, training, ablation)
    objective = method()  # refuses options that do not fit, before there is a run
    if training.patience is not None and objective.distill_from:
        raise ValueError(
            f"--patience {training.patience} could stop before the sub-nets begin to train, at "
            f"{objective.distill_from:g} of --schedule {training.schedule}: use --schedule two-phase"
        )
    with kind.open_task("ekd", out, loop, arguments, inputs, nested) as task:
        learn = partial(fit, train=task.train, run=task.run, loop=loop, patience=training.patience)
        epochs, optim = training.epochs, training.optim()
        assert epochs is not None
        nest_epochs = training.nest_epochs or epochs
        if two_phase and not known:
            text = (
                f"two phases: the full net alone (epochs: {epochs}), then all depths together, which "
                f"it teaches (epochs: {nest_epochs})"
            )
            tell(text, quiet=not task.run.writes)
            full = Supervised(nested.module, label_smoothing=training.label_smoothing)
            validate = kind.validator(nested, task, [nested.full])
            learn(full, optim=optim, phase="full", epochs=epochs, validate=validate)
            nested.load_full(nested.module.state_dict())
        if two_phase:
            epochs, optim = nest_epochs, training.optim(0.5)
        validate = kind.validator(nested, task, [nested.full])
        begun = start if known or init else None  # an encoder's folder alone trains no full net
        watch = watch_full_net(
            nested, task, training.max_drop, begun, trained=two_phase or known, validate=validate
        )
        validate = kind.validator(nested, task)
        learn = partial(learn, optim=optim, epochs=epochs, validate=validate)
        objective = method()
        learn(objective, phase="nest", select=watch.select if watch else None)
        if watch and watch.roll_back(training.on_drop):
            options = _own_options(teaching, ablation)
            by_schedule = SCHEDULES[training.schedule]
            objective = PrivateNorms(nested, **{n: options[n] for n in options if n not in by_schedule})
            learn(objective, phase="norms")
            nested.requires_grad_(True)
        record = watch.record() if watch else {}
        results: dict[str, Any] = kind.finish(task, nested, added, record, objective.trained_depths)
        return results


def _objective(
    net: NestedNet, teacher: nn.Module | None, losses: Losses, training: Training,
    ablation: EkdAblation,
) -> EmbeddedKD:  # fmt: skip
    """The objective of a schedule for `net` as it stands."""
    schedule = SCHEDULES[training.schedule]
    if not losses.kl:  # no soft targets to teach by
        schedule = schedule | {"teach_full": False}
    options = {"full_weight": float(len(net.depths))} | schedule | _own_options(losses, ablation)
    if training.schedule == "two-phase" and not options["ema_teacher"]:
        teacher = Frozen(net.module)
    return EmbeddedKD(net, teacher=teacher, label_smoothing=training.label_smoothing, **options)


def _own_options(losses: Losses, ablation: EkdAblation) -> dict[str, Any]:
    """The options of `EmbeddedKD` that the caller sets."""
    options = {f.name: getattr(losses, f.name) for f in fields(Losses)} | vars(ablation)
    return {n: value for n, value in options.items() if value is not None and n != "norms"}


def _check_teacher(schedule: Schedule, teachers: flags.Teachers) -> None:
    """Refuse a teacher that would not teach, and a normalisation without a teacher."""
    if bool(teachers.teacher) != (schedule == "taught"):
        raise ValueError(
            "--schedule taught needs --teacher, and the other schedules take no --teacher: give both, "
            "or neither"
        )
    if not teachers.teacher and (teachers.teacher_mean or teachers.teacher_std):
        raise ValueError("--teacher-mean and --teacher-std need --teacher")


def _check_rollback(net: NestedNet, validated: bool, trained: bool, init: object) -> None:
    """Refuse a rollback with nothing to compare, nothing to train, or nothing to go back to."""
    if not validated:
        raise ValueError(
            "--on-drop rollback compares the full net on a validation part: set --val-fraction above 0"
        )
    if not len(net.private_norms):
        raise ValueError("--on-drop rollback trains the sub-nets' own norms, and they have none")
    if not trained:
        unfit = f"--init {init} brings no classifier for these classes"
        lacking = unfit if init else "there is none"
        raise ValueError(
            f"--on-drop rollback goes back to a trained full net, and {lacking}: use --schedule "
            "two-phase, which trains it first"
        )
