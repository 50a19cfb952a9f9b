"""Teach a student network by a trained teacher, or by several, offline."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from stepwell.data.distill_data import DistillData
from stepwell.losses.attention import Attention
from stepwell.methods import Distill
from stepwell.nets.nested.interpolation import check_line, start_interpolated
from stepwell.nets.nested.net import NestedNet
from stepwell.tasks.classification import Task, finish, open_classifier, validator
from stepwell.tasks.generator import with_generated
from stepwell.teachers import CachedLogits, LogitCache, OpenTeacher, open_teacher
from stepwell.training import Loop, fit, optimizer_of
from stepwell.training.optim import OptimizerName
from stepwell.training.run import plain

Mean = tuple[float, float, float]


def distill(
    *,
    data: str,
    out: Path,
    teacher: tuple[str, ...],
    student: str = "resnet20",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    init: Literal["pretrained"] | Path | None = None,
    epochs: int = 40,
    batch_size: int = 128,
    optimizer: OptimizerName = "sgd",
    lr: float | None = None,
    weight_decay: float = 5e-4,
    start_from_teacher: float | None = None,
    temperature: float = 3.0,
    ce: float = 1.0,
    kl: float = 1.0,
    attention: float = 0.0,
    attention_mode: Attention = "at",
    attention_stages: tuple[str, ...] = (),
    hint: float = 0.0,
    hint_stages: tuple[str, ...] = (),
    cache: Path | None = None,
    teacher_mean: Mean | None = None,
    teacher_std: Mean | None = None,
    size: int | None = None,
    flip: bool | None = None,
    part: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    distill_data: Annotated[DistillData, tyro.conf.OmitArgPrefixes] = DistillData(),
    loop: Annotated[Loop, tyro.conf.OmitArgPrefixes] = Loop(),
) -> dict[str, Any]:
    """Teach a student by a trained teacher (Hinton et al. 2015), or by an ensemble of teachers.

    Examples:
        stepwell train distill --data digits --out runs/student --teacher runs/alone --student resnet20
        stepwell train distill --data digits --out runs/by-two --teacher runs/one runs/two --ce 0
        stepwell train distill --data digits --out runs/hints --teacher runs/alone --hint 1 --ce 0
        stepwell train distill --data photos/ --out runs/more --teacher runs/alone --unlabeled extra/
        stepwell train distill --data digits --out runs/mixed --teacher runs/alone --mix mixup --ce 0

    Args:
        data: a folder of class folders, or a name (`stepwell list`).
        out: the run directory; if it holds this run already, training goes on where it stopped.
        teacher: a run directory, or the file of its network (PATH@DEPTH for another depth than the
            deepest), an ONNX file, NETWORK=FILE for plain weights under torchvision's or timm's names,
            or timm/NAME with its published weights (a download). Several are an ensemble, which teaches
            the mean of their predictions.
        student: the network to train (`stepwell list`).
        stem: first layers, where there is a choice; `auto` takes the small ones below 64 pixels.
        init: weights to start from: a Stepwell file, weights under torchvision's names, or `pretrained`
            for those that torchvision or timm publish (a download).
        epochs: passes over the training part.
        optimizer: `sgd` with momentum, `adam` or `adamw`.
        lr: the highest learning rate; 0.1 for sgd, 0.001 for the others.
        start_from_teacher: start the student at this share of the teacher's weights and the rest of its
            own; both must have one architecture, best one without BatchNorm (resnet20_ln).
        ce: weight of the labels; with 0 the student never sees them. Images without a label are taught
            by the teacher alone.
        kl: weight of the teacher's soft targets.
        attention: weight of attention transfer on the stages' features.
        attention_stages: stages to compare: layer2, or layer2=stages.1.blocks where the teacher's has
            another name; by default all.
        hint: weight of hints: the student's features, by a regressor, become the teacher's.
        hint_stages: as --attention-stages.
        cache: a folder where the teacher's logits are kept. Another student with the same data, seed
            and batch size finds them there, and its teacher need not run.
        teacher_mean: of pixels scaled to [0, 1], per channel, for a teacher that does not say how its
            images are normalised (most ONNX files).
        teacher_std: as --teacher-mean.
        size: height and width of the images; by default their own.
        flip: mirror training images; by default where the data allows it.
        part: train on a part of the training images, I/N: 1/2 and 2/2 are halves that share none.
        val_fraction: share of the training part set aside to choose the best epoch; 0: keep the last.
        seed: of weights, order, augmentation and steps.
    """
    arguments = dict(locals())
    _check_options(arguments)
    if cache is not None and (attention or hint):
        raise ValueError(
            "--cache keeps logits alone, and --attention and --hint need the teacher's features: drop "
            "--cache"
        )
    taught_by = open_teacher(teacher, mean=teacher_mean, std=teacher_std)
    origin = None if start_from_teacher is None else taught_by.module
    torch.manual_seed(seed)  # the student's, and not before: opening draws numbers, too

    def method(nested: NestedNet, source: nn.Module, size: int) -> Distill:
        return Distill(
            nested,
            source,
            temperature=temperature,
            ce=ce,
            kl=kl,
            attention=attention,
            attention_mode=attention_mode,
            attention_stages=attention_stages,
            hint=hint,
            hint_stages=hint_stages,
            input_shape=(3, size, size),
        )

    def check(nested: NestedNet, ready: nn.Module | None, size: int, _: object) -> None:
        assert ready is not None
        if origin is not None:
            check_line(nested.module, origin)
        method(nested, ready, size)

    with (
        open_classifier("distill", arguments, student, teacher=taught_by, check=check) as opened,
        _cached(opened[0], taught_by, cache, distill_data, loop) as source,
    ):
        task, nested, _ = opened
        train = task.train
        begun = (task.run.phase("train") / "last.ckpt").exists()  # with weights that replace these
        if origin is not None and start_from_teacher is not None and not begun:
            unchanged = train.with_images(train.images)
            start_interpolated(nested.module, origin, start_from_teacher, unchanged)
        # before a generator trains, which draws numbers or, in a run that goes on, has drawn them
        objective = method(nested, source, train.images.size)
        train = with_generated(task.run, train, distill_data, loop)
        fit(
            objective,
            train,
            optimizer_of(optimizer, lr, weight_decay=weight_decay),
            task.run,
            phase="train",
            epochs=epochs,
            validate=validator(nested, task),
            loop=loop,
        )
        found = {}
        if isinstance(source, CachedLogits):
            found["distill"] = {"cache": {"read": source.read, "computed": source.computed}}
        return finish(task, nested, found=found)


def _check_options(arguments: Mapping[str, Any]) -> None:
    """Refuse options that would do nothing."""
    for name, needed in (("hint", "hint_stages"), ("attention", "attention_stages")):
        if arguments[needed] and not arguments[name]:
            flag = needed.replace("_", "-")
            raise ValueError(f"--{flag} {' '.join(arguments[needed])}: give a weight, --{name}")
    if arguments["cache"] is not None and not arguments["kl"]:
        raise ValueError(f"--cache {arguments['cache']}: with --kl 0 no logits are looked at")


@contextlib.contextmanager
def _cached(
    task: Task, taught_by: OpenTeacher, folder: Path | None, shown: DistillData, loop: Loop
) -> Iterator[nn.Module]:
    """The task's teacher, `taught_by`, with its logits kept in `folder`."""
    assert task.teacher is not None
    if folder is None:
        yield task.teacher
        return
    config, train = task.run.config, task.train
    made_for = {
        "teacher": taught_by.fingerprint,
        "data": config["data"]["fingerprint"],
        "part": config["arguments"]["part"],
        "size": train.images.size,
        "mean": train.mean,
        "std": train.std,
        "augmentation": train.augment and asdict(train.augment),
        # unlabeled images are found by their pixels, wherever their folder is now
        "distillation data": plain(shown) | {"unlabeled": None},
        "precision": loop.precision,
    }
    # images that are changed at random come once, so to look for each by itself would be waste
    same = train.augment is None and not train.changes
    with LogitCache(folder, len(train.images.classes), made_for) as cache:
        yield CachedLogits(task.teacher, cache, by_image=same)
