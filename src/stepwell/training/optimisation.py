"""The flags of a run that say how its network trains."""

from dataclasses import dataclass
from typing import Annotated

from stepwell.flags import flag
from stepwell.training.optim import RATES, Optim, OptimizerName, optimizer_of


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Length, batches and regularisation of a training.

    Attributes:
        epochs: passes over the training part.
        batch_size: images in a step.
        optimizer: sgd (with momentum), adam or adamw.
        lr: highest learning rate.
        weight_decay: decay of matrices and kernels.
        val_fraction: share of images to choose the epoch by; 0: the last.
        patience: stop after N epochs without a better validation score.
        seed: seed of weights, order, augmentation and steps.
    """

    epochs: int = 40
    batch_size: int = 128
    optimizer: Annotated[OptimizerName, flag("NAME")] = "sgd"
    lr: Annotated[float | None, flag("X", "0.1 for sgd, 0.001 for adam, adamw")] = None
    weight_decay: float = 5e-4
    val_fraction: float = 0.1
    patience: Annotated[int | None, flag("N", "never")] = None
    seed: int = 0

    def optim(self, share: float = 1.0) -> Optim:
        """The optimizer under its schedule, at a `share` of the learning rate."""
        lr = RATES[self.optimizer] if self.lr is None else self.lr
        return optimizer_of(self.optimizer, lr * share, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Smoothed(Optimisation):
    """A training on labels.

    Attributes:
        label_smoothing: share of the target spread over all classes.
    """

    label_smoothing: Annotated[float, flag("X")] = 0.0
