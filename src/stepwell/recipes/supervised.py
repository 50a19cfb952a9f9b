"""Train one network on labels alone: the baseline, and the first half of a distillation."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from stepwell.methods import Supervised
from stepwell.tasks.classification import finish, open_classifier, validator
from stepwell.training import Loop, fit, optimizer_of
from stepwell.training.optim import OptimizerName


def supervised(
    *,
    data: str,
    out: Path,
    net: str = "resnet20",
    stem: Literal["auto", "imagenet", "small"] = "auto",
    init: Literal["pretrained"] | Path | None = None,
    epochs: int = 40,
    batch_size: int = 128,
    optimizer: OptimizerName = "sgd",
    lr: float | None = None,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    ema_teacher: float = 0.0,
    size: int | None = None,
    flip: bool | None = None,
    part: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    loop: Annotated[Loop, tyro.conf.OmitArgPrefixes] = Loop(),
) -> dict[str, Any]:
    """Train one network on labels alone.

    Examples:
        stepwell train supervised --data digits --out runs/alone --net resnet20

    Args:
        data: a folder of class folders, or a name (`stepwell list`).
        out: the run directory; if it holds this run already, training goes on where it stopped.
        net: the network (`stepwell list`).
        stem: first layers, where there is a choice; `auto` takes the small ones below 64 pixels.
        init: weights to start from: a Stepwell file, weights under torchvision's names, or `pretrained`
            for those that torchvision or timm publish (a download).
        epochs: passes over the training part.
        optimizer: `sgd` with momentum, `adam` or `adamw`.
        lr: the highest learning rate; 0.1 for sgd, 0.001 for the others.
        label_smoothing: share of the target spread evenly over all classes.
        ema_teacher: decay of a moving average of the network that teaches it from half-way (0: none).
        size: height and width of the images; by default their own.
        flip: mirror training images; by default where the data allows it.
        part: train on a part of the training images, I/N: 1/2 and 2/2 are halves that share none.
        val_fraction: share of the training part set aside to choose the best epoch; 0: keep the last.
        seed: of weights, order, augmentation and steps.
    """
    arguments = dict(locals())
    torch.manual_seed(seed)
    with open_classifier("supervised", arguments, net) as (task, nested, _):
        fit(
            Supervised(nested.module, label_smoothing=label_smoothing, ema_teacher=ema_teacher),
            task.train,
            optimizer_of(optimizer, lr, weight_decay=weight_decay),
            task.run,
            phase="train",
            epochs=epochs,
            validate=validator(nested, task),
            loop=loop,
        )
        return finish(task, nested)
