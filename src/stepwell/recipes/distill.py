"""Teach a student network by a trained teacher, offline."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from stepwell.methods import Distill, Frozen
from stepwell.nets.between import start_between
from stepwell.nets.file import load
from stepwell.recipes.classification import finish, open_classifier, validator
from stepwell.recipes.distill_data import DistillData, with_generated
from stepwell.training import Loop, fit, optimizer_of
from stepwell.training.optim import OptimizerName


def distill(
    *,
    data: str,
    out: Path,
    teacher: Path,
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
    size: int | None = None,
    flip: bool | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    distill_data: Annotated[DistillData, tyro.conf.OmitArgPrefixes] = DistillData(),
    loop: Annotated[Loop, tyro.conf.OmitArgPrefixes] = Loop(),
) -> dict[str, Any]:
    """Teach a student by a trained teacher's soft targets (Hinton et al. 2015).

    Examples:
        stepwell train distill --data digits --out runs/student --teacher runs/alone --student resnet20
        stepwell train distill --data photos/ --out runs/more --teacher runs/alone --unlabeled extra/
        stepwell train distill --data digits --out runs/mixed --teacher runs/alone --mix mixup --ce 0

    Args:
        data: a folder of class folders, or a name (`stepwell list`).
        out: the run directory; if it holds this run already, training goes on where it stopped.
        teacher: a run directory, or the file of its network; its deepest depth teaches.
        student: the network to train (`stepwell list`).
        stem: first layers, where there is a choice; `auto` takes the small ones below 64 pixels.
        init: weights to start from: a Stepwell file, weights under torchvision's names, or `pretrained`
            for those that torchvision or timm publish (a download).
        epochs: passes over the training part.
        optimizer: `sgd` with momentum, `adam` or `adamw`.
        lr: the highest learning rate; 0.1 for sgd, 0.001 for the others.
        start_from_teacher: start the student at this share of the teacher's weights and the rest of its
            own; both must have one architecture, best one without BatchNorm (resnet20_ln).
        ce: weight of the labels; images without a label are taught by the teacher alone.
        kl: weight of the teacher's soft targets.
        size: height and width of the images; by default their own.
        flip: mirror training images; by default where the data allows it.
        val_fraction: share of the training part set aside to choose the best epoch; 0: keep the last.
        seed: of weights, order, augmentation and steps.
    """
    arguments = dict(locals())
    file = teacher / "net.safetensors" if teacher.is_dir() else teacher
    taught_by = load(file)
    torch.manual_seed(seed)  # the student's, and not before: loading draws numbers, too
    card = taught_by.card
    with open_classifier("distill", arguments, student, teacher=file, card=card) as (
        task,
        nested,
        _,
    ):
        classes, theirs = task.train.images.classes, taught_by.card.classes
        if theirs != classes:
            raise ValueError(
                f"{teacher} knows {len(theirs)} classes ({', '.join(theirs[:3])}, ...), the data has "
                f"{len(classes)} ({', '.join(classes[:3])}, ...): they must be the same, in order"
            )
        train = task.train
        if start_from_teacher is not None:
            plain = train.with_images(train.images)
            start_between(nested.module, taught_by.module, start_from_teacher, plain)
        train = with_generated(task.run, train, distill_data, loop)
        fit(
            Distill(nested.module, Frozen(taught_by), temperature=temperature, ce=ce, kl=kl),
            train,
            optimizer_of(optimizer, lr, weight_decay=weight_decay),
            task.run,
            phase="train",
            epochs=epochs,
            validate=validator(nested, task),
            loop=loop,
        )
        return finish(task, nested)
