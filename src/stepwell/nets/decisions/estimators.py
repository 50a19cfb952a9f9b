"""Estimators: choices from scores, as one-hot rows, and their gradient.

In training a choice is drawn, and its gradient estimated; in use it is the best score.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gumbel_softmax, one_hot

from stepwell.ranges import POSITIVE, check_number

#: Logits of the probabilities of the choices, one row for each example.
Scores = Float[Tensor, "batch choices"]
#: One-hot rows.
Choices = Float[Tensor, "batch choices"]


def _threshold(scores: Tensor, temperature: float) -> Tensor:
    return one_hot(scores.argmax(1), scores.shape[1]).to(scores)


def _straight_through(scores: Tensor, temperature: float) -> Tensor:
    soft = (scores / temperature).softmax(1)
    return _threshold(scores, temperature) + soft - soft.detach()


def _gumbel(scores: Tensor, temperature: float) -> Tensor:
    return gumbel_softmax(scores, temperature, hard=True)


def _reinforce(scores: Tensor, temperature: float) -> Tensor:
    drawn = torch.multinomial((scores / temperature).softmax(1).detach(), 1)[:, 0]
    return one_hot(drawn, scores.shape[1]).to(scores)


def _always(scores: Tensor, temperature: float) -> Tensor:
    choices = torch.zeros_like(scores)
    choices[:, -1] = 1
    return choices


class Estimator(NamedTuple):
    """An estimator by name.

    choose: of scores and a temperature.
    draws: the choices are random.
    learns: the choices have a gradient, so a loss of the network's output teaches the scores.
    by_policy: the scores learn from log probabilities instead (`losses.reinforce_loss`).
    """

    choose: Callable[[Scores, float], Choices]
    draws: bool = False
    learns: bool = False
    by_policy: bool = False


#: threshold: the best score, without a gradient. straight-through: the best score, with the gradient of
#: the softmax. gumbel: a draw, with that of the softmax of the same noisy scores (Jang et al. 2017).
#: reinforce: a draw without a gradient. always: the last choice, whatever the scores.
ESTIMATORS: Mapping[str, Estimator] = {
    "threshold": Estimator(_threshold),
    "straight-through": Estimator(_straight_through, learns=True),
    "gumbel": Estimator(_gumbel, draws=True, learns=True),
    "reinforce": Estimator(_reinforce, draws=True, by_policy=True),
    "always": Estimator(_always),
}


def refuse_in_graphs() -> None:
    """Raise ValueError while a graph is exported, which would keep random numbers for ever."""
    if torch.compiler.is_exporting():
        raise ValueError(
            "a decision that draws random numbers cannot be exported: call .eval() on the network, and "
            "give it no draw, so that the best score decides"
        )


class Draw(NamedTuple):
    """The way that choices are made from scores: a key of `ESTIMATORS`, and a temperature.

    Steps of a network that decide take it as a constant of the batch: `given={"draw": Draw(...)}`.
    """

    estimator: str = "gumbel"
    temperature: float = 1.0

    def __call__(self, scores: Scores) -> Choices:
        """The choices, in 32 bits even under autocast, because Gumbel noise has a long tail.

        ValueError for draws while a graph is exported, or as for `check`.
        """
        estimator = self.check()
        if estimator.draws:
            refuse_in_graphs()
        return estimator.choose(scores.float(), self.temperature)

    def check(self, *, training: bool = False) -> Estimator:
        """The estimator; ValueError for an unknown one, or a temperature that is not positive.

        With `training`, it must teach the scores something.
        """
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"no estimator {self.estimator!r}; there are {', '.join(ESTIMATORS)}")
        check_number("the temperature of a decision is", self.temperature, POSITIVE)
        estimator = ESTIMATORS[self.estimator]
        if training and not (estimator.learns or estimator.by_policy):
            able = [name for name, e in ESTIMATORS.items() if e.learns or e.by_policy]
            raise ValueError(
                f"estimator {self.estimator!r} teaches a decision nothing: train with {', '.join(able)}"
            )
        return estimator
