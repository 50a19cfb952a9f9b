"""A network that chooses for each image: a chooser scores the choices, and each image runs one."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from stepwell.nets.card import Card
from stepwell.nets.decisions.budgets import Budget, best_budget
from stepwell.nets.decisions.estimators import Scores
from stepwell.nets.decisions.executor import gathered, groups
from stepwell.nets.decisions.path_gate import PathGate
from stepwell.nets.nested.cascade import Answer
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.predictions import Answers, Predicts
from stepwell.types import Images, Logits

Which = Int[Tensor, "batch"]


class Always(nn.Module):
    """Makes always the same choice, by its index, instead of a chooser."""

    def __init__(self, choices: int, choice: int = 0) -> None:
        super().__init__()
        self.choices, self.choice = choices, choice

    def forward(self, x: Images) -> Scores:
        """Score that choice 1, and all others 0."""
        scores = x.new_zeros(len(x), self.choices)
        scores[:, self.choice] = 1
        return scores


class ChoosingNet(Predicts):
    """A network and the chooser that picks one of its choices for each image; a base class.

    Args:
        net: the network of all choices.
        names: of the choices, in the order of the chooser's scores, costly to cheap.
        chooser: scores the choices by the images.

    Attributes:
        price: the cost penalty: a choice's score loses price · cost; 0 unless a budget set it.
        costs: of each choice, as a share of the costliest; 0 until they are set.
        budgets: useful cost penalties, cheapest first, measured on validation images if there are some.
    """

    def __init__(self, net: nn.Module, names: Sequence[str], chooser: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.names = tuple(names)
        self.chooser = chooser
        self.budgets: tuple[Budget, ...] = ()
        self.price: Tensor
        self.costs: Tensor
        self.register_buffer("price", torch.zeros(()))
        self.register_buffer("costs", torch.zeros(len(self.names)))

    @property
    def nested(self) -> NestedNet:
        """The nested net inside."""
        raise NotImplementedError

    @property
    def reused(self) -> tuple[int, nn.Module] | None:
        """The index of a choice that the chooser has begun to run, if there is one, and that part."""
        if not isinstance(self.chooser, PathGate):
            return None
        return self.chooser.looks_at, nn.Sequential(*self.chooser.steps)

    def mark_trained(self) -> None:
        """Set the status of all that the choices run to "trained"."""
        raise NotImplementedError

    def at(self, x: Images, choice: int) -> Logits:
        """Give logits of all images at one choice, by its index."""
        raise NotImplementedError

    def logits_by_choice(self, x: Images) -> dict[str, Tensor]:
        """Give logits of all images at every choice, by name."""
        raise NotImplementedError

    def plain(self, choice: int) -> nn.Module:
        """A choice as a plain network of images of full size; nothing is shared."""
        raise NotImplementedError

    @property
    def card(self) -> Card:  # type: ignore[override]
        """The card of the nested net."""
        return self.nested.card

    def for_budget(
        self,
        *,
        ms: float | None = None,
        macs: float | None = None,
        accuracy: float | None = None,
        times: Sequence[float] = (),
    ) -> Budget:
        """Set the cost penalty for a budget, by `budgets`, and give its effect.

        With `accuracy` it is the cheapest budget with at least this accuracy, else the most accurate.

        Args:
            ms: mean milliseconds of an image, at most, by `times`.
            macs: mean multiply-accumulates of an image, at most, including the chooser's.
            accuracy: share of right answers, at least.
            times: milliseconds of an image at each choice, including the chooser's, from
                `stepwell.measure.choices.times_of_choices`; `ms` needs them.

        Raises:
            ValueError: no budgets were measured, or none fits; the message names the reachable ones.
        """
        if ms is not None and self.budgets and len(times) != len(self.names):
            raise ValueError(f"{len(times)} times of {len(self.names)} choices: ms needs all of them")
        budget = best_budget(self.budgets, ms=ms, macs=macs, accuracy=accuracy, times=times)
        self.price.fill_(budget.price)
        return budget

    def hold(self, name: str) -> None:
        """Make one choice for all images, without chooser and budgets; ValueError if there is none."""
        if name not in self.names:
            raise ValueError(f"no choice {name!r}; there are {', '.join(self.names)}")
        self.chooser = Always(len(self.names), self.names.index(name)).train(self.training)
        self.price.zero_()
        self.budgets = ()

    def choose(self, x: Images) -> Which:
        """Give the index of each image's choice."""
        return self.pick(self.chooser(x))

    def pick(self, scores: Scores) -> Which:
        """Give the index of the best choice by the chooser's scores, minus the cost penalty."""
        return (scores - self.price * self.costs).argmax(1)

    def settle(self, who: Which) -> Which:
        """Give the choices to run in place of the images' own; other choices must be costlier."""
        return who

    def answer(self, x: Images) -> Answer:
        """Give the logits of each image and the index of its choice; equal choices run together.

        The choice that a gate looks at goes on from there.
        """
        gate = self.chooser if isinstance(self.chooser, PathGate) else None
        looked = x if gate is None else gate.look(x)
        who = self.settle(self.pick(self.chooser(x) if gate is None else gate.scores(looked)))

        def run(i: int, rows: Tensor | slice) -> Logits:
            if gate is not None and i == gate.looks_at:
                return gate.go_on(looked[rows])
            return self.at(x[rows], i)

        parts = [
            (rows, run(i, slice(None) if len(rows) == len(x) else rows))
            for i, rows in groups(who, len(self.names))
        ]
        return Answer(gathered(parts or [(who, self.at(x, 0))]), who)  # no images: no logits

    def answers(self, x: Images, depth: str | None = None) -> Answers:
        """Give the logits of each image and the name of its choice.

        Args:
            depth: a depth of the nested net, or a choice for all images. ValueError if there is none.
        """
        x = x.to(self.price.device)
        if depth is None:
            answer = self.answer(x)
            return answer.logits, [self.names[i] for i in answer.depth.tolist()]
        if depth in self.nested.depths:
            return self.nested.answers(x, depth)
        if depth in self.names:
            return self.at(x, self.names.index(depth)), [depth] * len(x)
        known = ", ".join(dict.fromkeys([*self.names, *self.nested.depths]))
        raise ValueError(f"no choice or depth {depth!r}; there are {known}")

    def forward(self, x: Images) -> Logits:
        """Give the logits of each image at its own choice."""
        return self.answer(x).logits
