"""The flags of a run that say how its network trains."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from stepwell.flags import flag
from stepwell.training.optim import RATES, Optim, OptimizerName, optimizer_of

T = TypeVar("T", bound="Optimisation")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Length, batches and regularisation of a training.

    Attributes:
        epochs: passes over the training part.
        batch_size: images or texts in a step.
        optimizer: sgd (with momentum), adam or adamw.
        lr: highest learning rate.
        weight_decay: decay of matrices and kernels.
        val_fraction: share of training that chooses the epoch; 0: the last.
        patience: stop after N epochs without a better validation score.
        seed: seed of weights, order, augmentation and steps.
    """

    epochs: Annotated[int | None, flag("N", "40; texts: 3")] = None
    batch_size: Annotated[int | None, flag("N", "128; texts: 32")] = None
    optimizer: Annotated[OptimizerName | None, flag("NAME", "sgd; texts: adamw")] = None
    lr: Annotated[float | None, flag("X", "sgd: 0.1; adam: 0.001; texts: 3e-5")] = None
    weight_decay: float = 5e-4
    val_fraction: float = 0.1
    patience: Annotated[int | None, flag("N", "never")] = None
    seed: int = 0

    def settled(self: T, **usual: Any) -> T:
        """This training with the `usual` values of what is None."""
        unset = {name: value for name, value in usual.items() if getattr(self, name) is None}
        return replace(self, **unset)

    def optim(self, share: float = 1.0) -> Optim:
        """The optimizer under its schedule, at a `share` of the learning rate."""
        assert self.optimizer is not None
        lr = RATES[self.optimizer] if self.lr is None else self.lr
        return optimizer_of(self.optimizer, lr * share, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Smoothed(Optimisation):
    """A training on labels.

    Attributes:
        label_smoothing: share of the target spread over all classes.
    """

    label_smoothing: Annotated[float, flag("X")] = 0.0
