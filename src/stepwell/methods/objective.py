"""What every training rule is: a module that turns a batch into a loss."""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from stepwell.types import Step


class Objective(nn.Module, ABC):
    """A training rule: it owns the network it trains and its teacher, and turns a batch into a loss.

    It knows nothing of epochs, devices or loops. Whoever drives the loop sets, before each batch,
    `progress`, the share of training already done, which schedules inside a method read; and, where
    the gradients of several batches make one step, `accumulating`: whether this batch adds to a step
    that another began, so that the weights are still those of the batch before.
    """

    progress: float = 0.0
    accumulating: bool = False

    @abstractmethod
    def training_step(self, batch: Any) -> Step:
        """The loss of one batch and its parts by name; most methods take a `Batch` of images."""
