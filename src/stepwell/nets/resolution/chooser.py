"""A network that chooses the resolution (and depth) for each image.

A tiny convolutional net, the chooser, scores all choices on a small copy of the image.
"""

from collections.abc import Sequence
from math import log2
from typing import NamedTuple

from torch import Tensor, nn

from stepwell.nets.decisions.budgets import Budget as Budget
from stepwell.nets.decisions.choosing import Always as Always
from stepwell.nets.decisions.choosing import ChoosingNet
from stepwell.nets.decisions.estimators import Scores
from stepwell.nets.decisions.path_gate import PathGate
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.resolution.resolutions import Resize, Resolutions, resize
from stepwell.types import Images, Logits

#: Channels of the chooser's first layer; each further one has twice as many.
WIDTH = 8


class Choice(NamedTuple):
    """A depth of a nested net and a resolution in pixels."""

    depth: str
    size: int


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


def doubt_gate(net: Resolutions, choices: Sequence[Choice]) -> PathGate:
    """A chooser by how sure the last choice is, which then runs for every image."""
    depth, size = choices[-1]
    return PathGate([Resize(size), *net.at(size).path(depth)], len(choices) - 1, len(choices))


class AtChoice(nn.Module):
    """One depth at one resolution as a plain network; it takes images of any size."""

    def __init__(self, net: Resolutions, choice: Choice) -> None:
        super().__init__()
        depth, self.size = choice
        self.net = net.at(self.size).subnet(depth)

    def forward(self, x: Images) -> Logits:
        """Resize the images to the resolution, and give their logits."""
        logits: Tensor = self.net(resize(x, self.size))
        return logits


class ResolutionNet(ChoosingNet):
    """A network of several resolutions (and depths), and the chooser that picks one for each image.

    Args:
        net: the network.
        choices: depths and resolutions of it, in the order of the chooser's scores. They are named
            "24", or "14@24" with several depths.
        chooser: scores the choices: a `Chooser`, what `doubt_gate` gives, or `Always`.

    Raises:
        ValueError: fewer than two choices, or one that the network does not have.
    """

    net: Resolutions

    def __init__(self, net: Resolutions, choices: Sequence[Choice], chooser: nn.Module) -> None:
        if len(choices) < 2:
            raise ValueError(
                f"at least two choices are needed, got {len(choices)}: name two resolutions or more, "
                "or a nested network with depths"
            )
        for depth, size in choices:
            net.at(size).path(depth)
            if choices.count((depth, size)) > 1:
                raise ValueError(f"depth {depth} at {size} pixels is two choices: name it once")
        several = len({depth for depth, _ in choices}) > 1
        names = [f"{d}@{size}" if several else str(size) for d, size in choices]
        super().__init__(net, names, chooser)
        self.choices = tuple(choices)

    @property
    def nested(self) -> NestedNet:
        """The nested net at full size."""
        return self.net.net

    def mark_trained(self) -> None:
        """Set the status of all depths at all resolutions to "trained"."""
        for size in self.net.sizes:
            self.net.at(size).mark("trained")

    def at(self, x: Images, choice: int) -> Logits:
        """Give logits of all images at one choice, by its index."""
        depth, size = self.choices[choice]
        return self.net(x, size, depth)

    def plain(self, choice: int) -> AtChoice:
        """A choice as a plain network of images of any size; nothing is shared."""
        return AtChoice(self.net, self.choices[choice])

    def logits_by_choice(self, x: Images) -> dict[str, Tensor]:
        """Give logits of all images at every choice, by name; common prefixes of depths run once."""
        by_choice: dict[Choice, Tensor] = {}
        for size in dict.fromkeys(size for _, size in self.choices):
            depths = [depth for depth, other in self.choices if other == size]
            by_depth = self.net.at(size).logits_by_depth(resize(x, size), depths)
            by_choice |= {Choice(depth, size): logits for depth, logits in by_depth.items()}
        return {name: by_choice[c] for name, c in zip(self.names, self.choices, strict=True)}
