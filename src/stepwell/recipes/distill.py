"""Teach a student network by a trained teacher, or by several, offline."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from stepwell.data.distill_data import DistillData
from stepwell.data.image_flags import Images
from stepwell.flags import Flags, Hidden, checked, shown_as, unset
from stepwell.losses.attention import Attention
from stepwell.methods import Distill
from stepwell.nets.nested.interpolation import check_line, start_interpolated
from stepwell.recipes.flags import (
    Data,
    Init,
    Net,
    Out,
    SoftTargets,
    Stem,
    TeacherNames,
    file_of,
)
from stepwell.tasks.classification import (
    Inputs,
    Task,
    finish,
    open_task,
    prepare_images,
    read_splits,
    start_network,
    validator,
)
from stepwell.tasks.generator import with_generated
from stepwell.teachers import CachedLogits, LogitCache
from stepwell.training import Loop, fit
from stepwell.training.optimisation import AnyOptimizer
from stepwell.training.run import plain


@dataclass(frozen=True, kw_only=True)
class DistillAblation:
    """Options for studies.

    Attributes:
        attention_mode: kind of attention transfer.
        start_from_teacher: start the student at this share of the teacher's weights and the rest of
            its own; both have one architecture, best one without BatchNorm (resnet20_ln).
    """

    attention_mode: Attention = "at"
    start_from_teacher: float | None = None


@dataclass(frozen=True, kw_only=True)
class Teaching(SoftTargets):
    """Losses of distillation.

    Attributes:
        attention_stages: stages to compare: layer2, or layer2=stages.1.blocks where the teacher
            has another name.
        hint: weight of hints: a regressor maps the student's features to the teacher's.
        hint_stages: stages of the hints, written like --attention-stages.
        cache: folder for the teacher's logits. Another student with the same data, seed and
            batch size reads them from there instead of running the teacher.
    """

    attention_stages: Annotated[tuple[str, ...], shown_as("STAGE ...")] = ()
    hint: float = 0.0
    hint_stages: Annotated[tuple[str, ...], shown_as("STAGE ...")] = ()
    cache: Annotated[Path | None, unset("FOLDER", "none")] = None

    def check(self) -> None:
        """Refuse options that would do nothing.

        Raises:
            ValueError: stages of a loss without weight, or a cache that cannot serve the losses.
        """
        for name in ("hint", "attention"):
            if (stages := getattr(self, f"{name}_stages")) and not getattr(self, name):
                raise ValueError(f"--{name}-stages {' '.join(stages)}: give a weight, --{name}")
        if self.cache is not None and not self.kl:
            raise ValueError(f"--cache {self.cache}: with --kl 0 no logits are looked at")
        if self.cache is not None and (self.attention or self.hint):
            raise ValueError(
                "--cache keeps logits alone, and --attention and --hint need the teacher's features: "
                "drop --cache"
            )

    def objective(
        self, student: nn.Module, teacher: nn.Module, mode: Attention, size: int
    ) -> Distill:
        """The objective for images of `size` pixels.

        Raises:
            ValueError: as for `Distill`.
        """
        return Distill(
            student,
            teacher,
            temperature=self.temperature,
            ce=self.ce,
            kl=self.kl,
            attention=self.attention,
            attention_mode=mode,
            attention_stages=self.attention_stages,
            hint=self.hint,
            hint_stages=self.hint_stages,
            input_shape=(3, size, size),
        )


def distill(
    *,
    data: Data,
    out: Out,
    teacher: TeacherNames,
    student: Net = "resnet20",
    stem: Stem = "auto",
    init: Init = None,
    images: Flags[Images] = Images(),
    teaching: Flags[Teaching] = Teaching(),
    training: Flags[AnyOptimizer] = AnyOptimizer(),
    distill_data: Flags[DistillData] = DistillData(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[DistillAblation] = DistillAblation(),
) -> dict[str, Any]:
    """Teach a student by a trained teacher (Hinton et al. 2015), or by an ensemble of teachers.

    Images without a label are taught by the teacher alone.

    Examples:
        stepwell train distill --data digits --out runs/student --teacher runs/alone --student resnet20
        stepwell train distill --data digits --out runs/by-two --teacher runs/one runs/two --ce 0
        stepwell train distill --data digits --out runs/hints --teacher runs/alone --hint 1 --ce 0
        stepwell train distill --data photos/ --out runs/more --teacher runs/alone --unlabeled extra/
        stepwell train distill --data digits --out runs/mixed --teacher runs/alone --mix mixup --ce 0
    """
    init = file_of(init)
    arguments = checked(locals())
    opened = teaching.open(teacher)
    share = ablation.start_from_teacher
    origin = None if share is None else opened.module
    torch.manual_seed(training.seed)  # the student's, and not before: opening draws numbers, too
    splits = read_splits(data, out, images)
    nested, start = start_network(splits, student, stem=stem, init=init)
    inputs = prepare_images(
        splits, images, training, start=start, init=init, teacher=opened, distill_data=distill_data
    )
    if origin is not None:
        check_line(nested.module, origin)
    assert inputs.teacher is not None
    size = inputs.train.images.size
    # before a generator trains, which draws numbers or, in a run that goes on, has drawn them
    objective = teaching.objective(nested, inputs.teacher, ablation.attention_mode, size)
    made_for = _made_for(inputs, opened.fingerprint, images, distill_data, loop)
    with (
        open_task("distill", out, loop, arguments, inputs) as task,
        _cached(task, teaching.cache, made_for) as source,
    ):
        objective.teacher = source
        begun = (task.run.phase("train") / "last.ckpt").exists()  # with weights that replace these
        if share is not None and origin is not None and not begun:
            unchanged = task.train.with_images(task.train.images)
            start_interpolated(nested.module, origin, share, unchanged)
        fit(
            objective,
            with_generated(task.run, task.train, distill_data, loop),
            training.optim(),
            task.run,
            phase="train",
            epochs=training.epochs,
            validate=validator(nested, task),
            loop=loop,
        )
        record = {}
        if isinstance(source, CachedLogits):
            record["distill"] = {"cache": {"read": source.read, "computed": source.computed}}
        return finish(task, nested, record=record)


def _made_for(
    inputs: Inputs, teacher: str, images: Images, distill_data: DistillData, loop: Loop
) -> dict[str, Any]:
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
