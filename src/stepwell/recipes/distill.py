"""Teach a student network by a trained teacher, or by several, offline."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from stepwell.data.distill_data import DistillData
from stepwell.data.image_flags import LabelledImages
from stepwell.data.pictures.flags import Pictures
from stepwell.flags import Flags, Hidden, Together, checked, flag
from stepwell.losses.attention import Attention
from stepwell.methods import Distill
from stepwell.nets.nested.interpolation import check_line, start_interpolated
from stepwell.recipes import flags
from stepwell.tasks import classification, features
from stepwell.tasks.generator import with_generated
from stepwell.tasks.task import Inputs, Task
from stepwell.teachers import CachedLogits, LogitCache
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.optimisation import Optimisation
from stepwell.training.run import plain


@dataclass(frozen=True, kw_only=True)
class DistillAblation(Together):
    """Options for studies.

    Attributes:
        attention_mode: kind of attention transfer.
        start_from_teacher: start the student at this share of the teacher's weights and the rest of
            its own; both have one architecture, best one without BatchNorm (resnet20_ln).
    """

    attention_mode: Attention = "at"
    start_from_teacher: float | None = None


@dataclass(frozen=True, kw_only=True)
class Losses(flags.Losses):
    """Losses of distillation, and the cache of its teacher.

    Attributes:
        attention_stages: stages to compare: layer2, or layer2=stages.1.blocks where the teacher
            has another name.
        hint: weight of hints: a regressor maps the student's features to the teacher's.
        hint_stages: stages of the hints, written like --attention-stages.
    """

    ce: Annotated[float | None, flag("X", "1; without --data 0")] = None
    kl: Annotated[float | None, flag("X", "1; without --data 0")] = None
    hint: Annotated[float | None, flag("X", "0; without --data 1")] = None
    attention_stages: Annotated[tuple[str, ...], flag("S ...", "all")] = ()
    hint_stages: Annotated[tuple[str, ...], flag("S ...", "all")] = ()

    def on(self, data: str | None) -> "Losses":
        """These losses with the defaults for this data; ValueError if one needs labelled data."""
        if data is None and (wrong := [name for name in ("ce", "kl") if getattr(self, name)]):
            raise ValueError(
                f"--{wrong[0]} {getattr(self, wrong[0])} needs classes, which --unlabeled images alone "
                "do not have: add --data, or leave it out to teach the features"
            )
        labelled = float(data is not None)
        usual = {"ce": labelled, "kl": labelled, "hint": 1 - labelled}
        if data is None and self.attention:
            usual["hint"] = 0.0
        unset: dict[str, Any] = {n: v for n, v in usual.items() if getattr(self, n) is None}
        return replace(self, **unset)

    def check(self) -> None:
        """Refuse stages of a loss without weight."""
        for name in ("hint", "attention"):
            if (stages := getattr(self, f"{name}_stages")) and not getattr(self, name):
                raise ValueError(f"--{name}-stages {' '.join(stages)}: give a weight, --{name}")


def distill(
    *,
    data: Annotated[str | None, flag("DATA", "none: --unlabeled alone")] = None,
    out: flags.Out,
    teacher: flags.TeacherNames,
    student: flags.Net = "resnet20",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    cache: Annotated[Path | None, flag("FOLDER")] = None,
    teacher_images: Flags[flags.TeacherImages] = flags.TeacherImages(),
    images: Flags[LabelledImages] = LabelledImages(),
    pictures: Flags[Pictures] = Pictures(),
    losses: Flags[Losses] = Losses(),
    training: Flags[Optimisation] = Optimisation(),
    distill_data: Flags[DistillData] = DistillData(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[DistillAblation] = DistillAblation(),
) -> dict[str, Any]:
    """Teach a student by a trained teacher (Hinton et al. 2015), or by an ensemble of teachers.

    Images without a label are taught by the teacher alone. Without --data, the student learns the
    features of the teacher on --unlabeled images, and is a start (--init) for a training on labels.

    Examples:
        stepwell train distill --data digits --out runs/student --teacher runs/alone --student resnet20
        stepwell train distill --data digits --out runs/by-two --teacher runs/one runs/two --ce 0
        stepwell train distill --data digits --out runs/hints --teacher runs/alone --hint 1 --ce 0
        stepwell train distill --data photos/ --out runs/more --teacher runs/alone --unlabeled extra/
        stepwell train distill --data digits --out runs/mixed --teacher runs/alone --mix mixup --ce 0
        stepwell train distill --teacher timm/resnet50 --student resnet18 --unlabeled new/ --out runs/f

    Args:
        data: class folders in a folder, or a name (`stepwell list`).
        cache: folder of the teacher's logits, for students with the same data, seed and batch size.
    """
    init = flags.file_of(init)
    losses = losses.on(data)
    training = classification.settled(training)
    arguments = checked(locals())
    check_resumes("distill", arguments)
    _check_cache(cache, losses)
    opened = teacher_images.open(teacher)
    share = ablation.start_from_teacher
    origin = None if share is None else opened.module
    torch.manual_seed(training.seed)  # the student's, and not before: opening draws numbers, too
    if data is None:
        splits = features.read_unlabeled(distill_data.unlabeled, out, images, student)
        distill_data = replace(distill_data, unlabeled=None)
    else:
        splits = classification.read_splits(data, out, images, student, pictures=pictures)
    nested, start = classification.start_network(splits, student, stem=stem, init=init)
    inputs = classification.prepare(
        splits, images, training, start=start, init=init, teacher=opened, changes=distill_data,
        logits=losses.kl != 0,
    )  # fmt: skip
    if origin is not None:
        check_line(nested.module, origin)
    assert inputs.teacher is not None
    losses = features.with_stages(losses, nested, inputs.teacher)
    size = inputs.train.images.size
    # before a generator trains, which draws numbers or, in a run that goes on, has drawn them
    objective = Distill(
        nested, inputs.teacher, attention_mode=ablation.attention_mode, input_shape=(3, size, size),
        **vars(losses),
    )  # fmt: skip
    made_for = _made_for(inputs, opened.fingerprint, images, distill_data, loop)
    with (
        classification.open_task("distill", out, loop, arguments, inputs, nested) as task,
        _cached(task, cache, made_for) as source,
    ):
        objective.teacher = source
        begun = (task.run.phase("train") / "last.ckpt").exists()  # with weights that replace these
        if share is not None and origin is not None and not begun:
            unchanged = task.train.with_images(task.train.images)
            start_interpolated(nested.module, origin, share, unchanged)
        validate, select = classification.validator(nested, task), None
        if data is None:
            validate, select = features.validator(objective, task), features.select
        fit(
            objective, with_generated(task.run, task.train, distill_data, loop), training.optim(),
            task.run, phase="train", epochs=training.epochs,
            validate=validate, select=select, loop=loop, patience=training.patience,
        )  # fmt: skip
        if data is None:
            return features.finish_features(task, nested, objective)
        record = {}
        if isinstance(source, CachedLogits):
            record["distill"] = {"cache": {"read": source.read, "computed": source.computed}}
        return classification.finish(task, nested, record=record)


def _check_cache(cache: Path | None, losses: Losses) -> None:
    """Refuse a cache that cannot serve the losses."""
    if cache is not None and not losses.kl:
        raise ValueError(f"--cache {cache}: with --kl 0 no logits are looked at")
    if cache is not None and (losses.attention or losses.hint):
        raise ValueError(
            "--cache keeps logits alone, and --attention and --hint need the teacher's features: drop "
            "--cache"
        )


def _made_for(
    inputs: Inputs, teacher: str, images: LabelledImages, distill_data: DistillData,
    loop: Loop,
) -> dict[str, Any]:  # fmt: skip
    """All that the teacher's logits depend on."""
    train = inputs.train
    return {
        "teacher": teacher,
        "data": inputs.about["fingerprint"],
        "part": images.part,
        "size": train.images.size,
        "mean": train.mean,
        "std": train.std,
        "augmentation": train.augment and asdict(train.augment),
        # unlabeled images are found by their pixels, wherever their folder is now
        "distillation data": plain(distill_data) | {"unlabeled": None},
        "precision": loop.precision,
    }


@contextlib.contextmanager
def _cached(task: Task, folder: Path | None, made_for: dict[str, Any]) -> Iterator[nn.Module]:
    """The task's teacher, with its logits cached in `folder` if there is one."""
    assert task.teacher is not None
    if folder is None:
        yield task.teacher
        return
    train = task.train
    # images that are changed at random come once: a search for each single image would be waste
    by_image = train.augment is None and not train.changes
    with LogitCache(folder, len(train.images.classes), made_for) as cache:
        yield CachedLogits(task.teacher, cache, by_image=by_image)
