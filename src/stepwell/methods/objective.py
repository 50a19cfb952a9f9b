"""The interface of a training rule: a module that turns a batch into a loss."""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from stepwell.types import Step


class Objective(nn.Module, ABC):
    """A training rule: owns the network that it trains and its teacher, and turns a batch into a loss.

    It knows nothing of epochs, devices or loops. The training loop sets two attributes before each
    batch. `progress` is the share of training already done, for schedules inside a method.
    `accumulating` is true if this batch adds its gradient to an earlier batch's, with the same weights.
    """

    progress: float = 0.0
    accumulating: bool = False

    @property
    def done(self) -> bool | None:
        """True ends the training before its last step; None: never.

        It is read after each step, and follows from the state dict: a resumed training ends at the same
        step.
        """
        return None

    @abstractmethod
    def training_step(self, batch: Any) -> Step:
        """The loss of one batch, and its parts by name; most methods take a `Batch` of images."""
