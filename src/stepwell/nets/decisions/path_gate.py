"""A gate that looks at what one of the choices computes first, or at how sure that choice is."""

from collections.abc import Iterator, Sequence
from copy import copy, deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.nets.decisions.estimators import Scores
from stepwell.nets.decisions.gates import Gate
from stepwell.nets.nested.criteria import features_of
from stepwell.nets.nested.widths import alone
from stepwell.types import Logits

#: Measures of how sure a choice is.
DOUBTS = 3


class PathGate(nn.Module):
    """Scores of the choices: the first steps of one choice, or all of them, then a gate.

    After all steps, the gate sees how sure their logits are: the top probability, its lead over the
    second, and the certainty (see `nets.nested.criteria`).

    Args:
        path: the steps of a choice; the network keeps them.
        looks_at: the index of this choice.
        choices: number of choices.
        stem: number of steps that the gate runs; by default all of them.

    Raises:
        ValueError: the stem has no BatchNorm.
    """

    def __init__(
        self, path: Sequence[nn.Module], looks_at: int, choices: int, *, stem: int | None = None
    ) -> None:
        super().__init__()
        self.looks_at, self.doubt = looks_at, stem is None
        # tuples, so that nothing is registered (or saved) twice
        self.steps, self.behind = tuple(path[:stem]), tuple(path[len(path[:stem]) :])
        width = DOUBTS
        if not self.doubt:
            norms = [m for step in self.steps for m in step.modules() if isinstance(m, nn.BatchNorm2d)]
            if not norms:
                raise ValueError(
                    "this network has no stem with BatchNorm: name a ResNet, such as resnet20"
                )
            width = norms[-1].num_features
        self.gate = Gate(width, choices)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Scores:
        """Score each choice, as logits of probabilities, by what the first step takes."""
        return self.scores(self.look(x))

    def look(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The output of the gate's steps."""
        for step in self.steps:
            x = step(x)
        return x

    def go_on(self, looked: Float[Tensor, "batch ..."]) -> Logits:
        """The logits of the choice that the gate looks at, from the output of the gate's steps."""
        for step in self.behind:
            looked = step(looked)
        return looked

    def scores(self, looked: Float[Tensor, "batch ..."]) -> Scores:
        """Score each choice by the output of the gate's steps."""
        if self.doubt:
            none = torch.zeros_like(looked[:, 0], dtype=torch.long)
            looked = features_of(looked, none)[:, :DOUBTS, None, None]
        scores: Tensor = self.gate(looked)
        return scores

    def train(self, mode: bool = True) -> "PathGate":
        """Set the mode of the gate; the steps follow into eval mode only."""
        super().train(mode)
        if not mode:
            for step in self.steps:
                step.eval()
        return self

    def hidden_modules(self) -> Iterator[nn.Module]:
        """Iterate over the modules of the steps, which are not registered."""
        for step in self.steps:
            yield from step.modules()

    def of_looked(self) -> "PathGate":
        """This gate without its steps, as a network that takes their output; the weights are shared."""
        twin = copy(self)
        twin.steps, twin.behind = (), ()
        return twin

    def alone(self) -> "PathGate":
        """A copy with steps of its own, which are registered."""
        twin = deepcopy(self)
        steps = alone(nn.Sequential(*self.steps))
        twin.add_module("own", steps)
        twin.steps, twin.behind = tuple(steps.children()), ()
        return twin
