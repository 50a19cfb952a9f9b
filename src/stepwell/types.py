"""The words that every part of the library speaks."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Logits = Float[Tensor, "batch classes"]
Labels = Int[Tensor, "batch"]
Images = Float[Tensor, "batch channels height width"]


#: Rows that sum to 1 within this are probabilities; half-precision ones do.
SUM = 1e-2


def are_probabilities(logits: Logits) -> bool:
    """Whether every row could be one of probabilities: none negative, their sum 1.

    Of a few rows this may be chance, above all of two classes.
    """
    return bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < SUM).all())


class Exit(NamedTuple):
    """What a network gives at one depth.

    logits: (batch, classes), before any softmax.
    features: outputs of the stages in order, shallow to deep, (batch, channels, height, width) or
        (batch, tokens, channels); empty where a network has none.
    """

    logits: Tensor
    features: tuple[Tensor, ...] = ()

    def detach(self) -> "Exit":
        """The same values, through which no gradient flows."""
        return Exit(self.logits.detach(), tuple(f.detach() for f in self.features))


class Step(NamedTuple):
    """What one training step gives: a scalar to minimise, and its parts by name for the log."""

    loss: Tensor
    logs: Mapping[str, Tensor]


class Batch(NamedTuple):
    """Images (batch, channels, height, width), normalised floats, and their labels.

    Labels are class indices (batch,), -1: no label; or, of mixed images, shares of the classes
    (batch, classes).
    """

    images: Tensor
    labels: Tensor


#: Maps a batch of inputs to logits by name, or to one lone tensor of logits.
Predict = Callable[[Tensor], Mapping[str, Tensor] | Tensor]
