"""A network that chooses the resolution (and depth) for each image.

A tiny convolutional net, the chooser, scores all choices on a small copy of the image.
"""

from collections.abc import Iterator, Sequence
from math import inf, log2
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepwell.measures import in_words
from stepwell.nets.card import Card
from stepwell.nets.decisions.executor import gathered, groups
from stepwell.nets.nested.cascade import Answer
from stepwell.nets.predictions import Answers, Predicts
from stepwell.nets.resolution.resolutions import Resolutions, resize
from stepwell.types import Images, Logits

Scores = Float[Tensor, "batch choices"]
Which = Int[Tensor, "batch"]
#: Channels of the chooser's first layer; each further one has twice as many.
WIDTH = 8


class Choice(NamedTuple):
    """A depth of a nested net and a resolution in pixels."""

    depth: str
    size: int


class Budget(NamedTuple):
    """A cost penalty (`price`), and its effect: mean MACs, accuracy, and shares of the choices.

    `shares` is empty in files of older versions.
    """

    price: float
    macs: float
    accuracy: float
    shares: tuple[float, ...] = ()

    def time(self, times: Sequence[float]) -> float:
        """Give the mean time of an image, from its `times` at each choice."""
        return sum(share * time for share, time in zip(self.shares, times, strict=True))


class Chooser(nn.Module):
    """The resolution predictor: 3×3 convolutions of stride 2, an average, and a linear layer.

    It sees a copy of the image of `size` pixels. A *reconstruction*: it has 0.1 % of a ResNet-20's
    multiply-accumulates; the paper's is a residual network of 290 M of them at 128 pixels, 7 % of a
    ResNet-50's.
    """

    def __init__(self, choices: int, size: int) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = []
        width = 3
        for i in range(max(3, round(log2(size)) - 1)):
            wider = WIDTH * 2**i
            strided = nn.Conv2d(width, wider, 3, stride=2, padding=1, bias=False)
            layers += [strided, nn.BatchNorm2d(wider), nn.ReLU(inplace=True)]
            width = wider
        self.features = nn.Sequential(*layers)
        self.scores = nn.Linear(width, choices)
        nn.init.zeros_(self.scores.weight)  # every choice is as likely as the others at first
        nn.init.zeros_(self.scores.bias)

    def forward(self, x: Images) -> Scores:
        """Score each choice, as logits of probabilities."""
        scores: Tensor = self.scores(self.features(resize(x, self.size)).mean((2, 3)))
        return scores


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


class ResolutionNet(Predicts):
    """A network of several resolutions (and depths), and the chooser that picks one for each image.

    Args:
        net: the network.
        choices: depths and resolutions of it, in the order of the chooser's scores.
        chooser: scores the choices: a `Chooser`, or `Always`.

    Attributes:
        price: the cost penalty: a choice's score loses price · cost; 0 unless a budget set it.
        costs: of each choice, as a share of the costliest; 0 until they are set.
        budgets: useful cost penalties, cheapest first, measured on validation images if there are some.

    Raises:
        ValueError: fewer than two choices, or one that the network does not have.
    """

    def __init__(self, net: Resolutions, choices: Sequence[Choice], chooser: nn.Module) -> None:
        super().__init__()
        if len(choices) < 2:
            raise ValueError(
                f"at least two choices are needed, got {len(choices)}: name two resolutions or more, "
                "or a nested network with depths"
            )
        for depth, size in choices:
            net.at(size).path(depth)
            if choices.count((depth, size)) > 1:
                raise ValueError(f"depth {depth} at {size} pixels is two choices: name it once")
        self.net = net
        self.choices = tuple(choices)
        self.chooser = chooser
        self.budgets: tuple[Budget, ...] = ()
        self.price: Tensor
        self.costs: Tensor
        self.register_buffer("price", torch.zeros(()))
        self.register_buffer("costs", torch.zeros(len(choices)))

    @property
    def card(self) -> Card:  # type: ignore[override]
        """The card of the network at full size."""
        return self.net.net.card

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the choices: "24", or "14@24" with several depths."""
        several = len({depth for depth, _ in self.choices}) > 1
        return tuple(f"{d}@{size}" if several else str(size) for d, size in self.choices)

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
                `stepwell.measure.resolution.times_of_choices`; `ms` needs them.

        Raises:
            ValueError: no budgets were measured, or none fits; the message names the reachable ones.
        """
        if ms is None and macs is None and accuracy is None:
            raise ValueError("give a budget: ms, macs, accuracy or some of them")
        if not self.budgets:
            raise ValueError(
                "this network knows no budgets: it never chose, or its file was saved by an older "
                "version and the network must be trained again"
            )
        if ms is not None and len(times) != len(self.choices):
            raise ValueError(f"{len(times)} times of {len(self.choices)} choices: ms needs all of them")
        if ms is not None and not all(b.shares for b in self.budgets):
            raise ValueError(
                "this file was saved by a version without latency budgets: name macs or accuracy, or "
                "train the network again"
            )
        most, least = inf if macs is None else macs, accuracy or 0.0
        fitting = [b for b in self.budgets if b.macs <= most and b.accuracy >= least]
        if ms is not None:
            fitting = [b for b in fitting if b.time(times) <= ms]
        if not fitting:
            goals = {"ms": ms, "macs": macs, "accuracy": accuracy}
            asked = " with ".join(in_words(n, v) for n, v in goals.items() if v is not None)
            low, high = (
                f"{in_words('macs', b.macs)}"
                + (f" ({b.time(times):.4g} ms)" if ms is not None else "")
                + f" with {in_words('accuracy', b.accuracy)}"
                for b in (self.budgets[0], self.budgets[-1])
            )
            raise ValueError(f"no budget gives {asked}: they reach from {low} to {high}")
        found = fitting[-1] if accuracy is None else fitting[0]
        self.price.fill_(found.price)
        return found

    def hold(self, name: str) -> None:
        """Make one choice for all images, without chooser and budgets; ValueError if there is none."""
        if name not in self.names:
            raise ValueError(f"no choice {name!r}; there are {', '.join(self.names)}")
        self.chooser = Always(len(self.choices), self.names.index(name)).train(self.training)
        self.price.zero_()
        self.budgets = ()

    def choose(self, x: Images) -> Which:
        """Give the index of each image's choice."""
        return self.pick(self.chooser(x))

    def pick(self, scores: Scores) -> Which:
        """Give the index of the best choice by the chooser's scores, minus the cost penalty."""
        return (scores - self.price * self.costs).argmax(1)

    def run(self, x: Images, who: Which) -> Iterator[tuple[Tensor, Tensor]]:
        """Run each choice that some image makes, by `who`; give the rows of `x` and their logits."""
        none = [(0, who)] * (not len(x))  # no images have logits, too: none
        for i, rows in none or groups(who, len(self.choices)):
            depth, size = self.choices[i]
            part = x if len(rows) == len(x) else x[rows]
            yield rows, self.net(part, size, depth)

    def answer(self, x: Images) -> Answer:
        """Give the logits of each image and the index of its choice; equal choices run together."""
        who = self.choose(x)
        return Answer(gathered(list(self.run(x, who))), who)

    def answers(self, x: Images, depth: str | None = None) -> Answers:
        """Give the logits of each image and the name of its choice.

        Args:
            depth: a depth at full size, or a choice for all images. ValueError if there is none.
        """
        x = x.to(self.price.device)
        if depth is None:
            answer = self.answer(x)
            return answer.logits, [self.names[i] for i in answer.depth.tolist()]
        if depth in self.net.net.depths:
            return self.net.net.answers(x, depth)
        if depth in self.names:
            chosen, size = self.choices[self.names.index(depth)]
            return self.net(x, size, chosen), [depth] * len(x)
        known = ", ".join(dict.fromkeys([*self.names, *self.net.net.depths]))
        raise ValueError(f"no choice or depth {depth!r}; there are {known}")

    def forward(self, x: Images) -> Logits:
        """Give the logits of each image at its own resolution."""
        return self.answer(x).logits

    def logits_by_choice(self, x: Images) -> dict[str, Tensor]:
        """Give logits of all images at every choice, by name; common prefixes of depths run once."""
        found: dict[Choice, Tensor] = {}
        for size in dict.fromkeys(size for _, size in self.choices):
            depths = [depth for depth, other in self.choices if other == size]
            by_depth = self.net.at(size).logits_by_depth(resize(x, size), depths)
            found |= {Choice(depth, size): logits for depth, logits in by_depth.items()}
        return {name: found[c] for name, c in zip(self.names, self.choices, strict=True)}
