"""The words that every part of the library speaks."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

Logits = Float[Tensor, "batch classes"]
Labels = Int[Tensor, "batch"]
Images = Float[Tensor, "batch channels height width"]


#: Tolerance of the sum of a row of probabilities, wide enough for half precision.
SUM = 1e-2


def probabilities_in(logits: Logits, who: str) -> str | None:
    """A sentence saying that `who` gives probabilities, or None where `logits` cannot be probabilities.

    A few rows of logits may look like probabilities by chance, above all of two classes.
    """
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() < SUM).all():
        return f"{who} gives probabilities, not logits (no negative numbers, each row sums to 1)"
    return None


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
