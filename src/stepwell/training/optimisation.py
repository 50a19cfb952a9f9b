"""The flags of a run that say how its network trains."""

from dataclasses import dataclass
from typing import Annotated

from stepwell.flags import flag
from stepwell.training.optim import Optim, OptimizerName, optimizer_of, sgd


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Length, batches and regularisation of a training.

    Attributes:
        epochs: passes over the training part.
        batch_size: images in a step.
        weight_decay: decay of matrices and kernels, not of norms and biases.
        val_fraction: share of images to choose the epoch by; 0: the last.
        seed: seed of weights, order, augmentation and steps.
    """

    epochs: int = 40
    batch_size: int = 128
    weight_decay: float = 5e-4
    val_fraction: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Smoothed(Optimisation):
    """A training on labels.

    Attributes:
        label_smoothing: share of the target spread over all classes.
    """

    label_smoothing: Annotated[float, flag("X")] = 0.0


@dataclass(frozen=True, kw_only=True)
class SgdTraining(Smoothed):
    """A training by SGD.

    Attributes:
        lr: highest learning rate.
    """

    lr: float = 0.1

    def optim(self, share: float = 1.0) -> Optim:
        """SGD at a `share` of the learning rate."""
        return sgd(self.lr * share, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class AnyOptimizer(Optimisation):
    """A training by an optimizer of choice.

    Attributes:
        optimizer: sgd (with momentum), adam or adamw.
        lr: highest learning rate.
    """

    optimizer: Annotated[OptimizerName, flag("NAME")] = "sgd"
    lr: Annotated[float | None, flag("X", "0.1 for sgd, 0.001 for adam, adamw")] = None

    def optim(self) -> Optim:
        """The optimizer under its schedule."""
        return optimizer_of(self.optimizer, self.lr, weight_decay=self.weight_decay)
