"""A slimmable network whose gate chooses the width of each image, after DS-Net (Li et al. 2021).

DS-Net's gate sees the mean of the stem's output ("stem", a *reconstruction*). Ours sees how sure the
narrowest width is ("doubt").
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.nets.decisions.choosing import ChoosingNet, Which
from stepwell.nets.decisions.estimators import Scores
from stepwell.nets.decisions.executor import fewer_groups, gathered, groups
from stepwell.nets.decisions.gates import Gate
from stepwell.nets.nested.cascade import Answer
from stepwell.nets.nested.criteria import features_of
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.widths import alone
from stepwell.types import Images, Logits

#: Measures of how sure a width is.
DOUBTS = 3
#: What the gate sees, see `WidthNet`.
GateAt = Literal["doubt", "stem"]


class PathGate(nn.Module):
    """Scores of the widths of a network: the first steps of one width, or all of them, then a gate.

    Args:
        steps: of the network, which keeps them.
        choices: number of widths.
        doubt: the steps give logits, and the gate sees how sure they are: the top probability, its lead
            over the second, and the certainty (see `nets.nested.criteria`).
    """

    def __init__(self, steps: Sequence[nn.Module], choices: int, *, doubt: bool) -> None:
        super().__init__()
        self.steps = tuple(steps)  # a tuple, so that nothing is registered (or saved) twice
        self.doubt = doubt
        norms = [m for step in steps for m in step.modules() if isinstance(m, nn.BatchNorm2d)]
        if not norms:
            raise ValueError("this network has no stem with BatchNorm: name a ResNet, such as resnet20")
        self.gate = Gate(DOUBTS if doubt else norms[-1].num_features, choices)

    def forward(self, x: Images) -> Scores:
        """Score each width, as logits of probabilities."""
        return self.scores(self.look(x))

    def look(self, x: Images) -> Float[Tensor, "batch ..."]:
        """The output of the steps."""
        for step in self.steps:
            x = step(x)
        return x

    def scores(self, looked: Float[Tensor, "batch ..."]) -> Scores:
        """Score each width by the output of the steps."""
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

    def alone(self) -> "PathGate":
        """A copy with steps of its own, which are registered."""
        twin = deepcopy(self)
        own = alone(nn.Sequential(*self.steps))
        twin.add_module("own", own)
        twin.steps = tuple(own.children())
        return twin


class WidthNet(ChoosingNet):
    """A slimmable network, and the gate that picks the width of each image.

    Images of equal choice run together, each group at its width. Where `times` say that two groups are
    faster as one, both run at the wider width: an image may get a wider width than it chose, never a
    narrower one.

    Args:
        net: built with `multipliers=`.
        gate_at: what the gate sees: "doubt", how sure the narrowest width is, which then runs for
            every image; or "stem", the stem's output at full width.

    Attributes:
        times: by width and number of images, the time of a group on this device; without them each
            image runs at its choice.

    Raises:
        ValueError: the network has one width; there is no such `gate_at`.
    """

    net: NestedNet
    times: Mapping[str, Mapping[int, float]] = MappingProxyType({})

    def __init__(self, net: NestedNet, gate_at: GateAt = "doubt") -> None:
        if not net.widths:
            raise ValueError(
                "this network has one width: build a ResNet with multipliers=(0.25, 0.5, 0.75, 1)"
            )
        if gate_at not in get_args(GateAt):
            raise ValueError(f"no gate at {gate_at!r}: it is at {' or '.join(get_args(GateAt))}")
        names = [*reversed(net.depths)]
        doubt = gate_at == "doubt"
        self.looked = len(names) - 1 if doubt else 0  # the width whose first steps the gate runs
        path = net.path(names[self.looked])
        steps = path if doubt else path[: len(net.plan.gaps[0])]
        super().__init__(net, names, PathGate(steps, len(names), doubt=doubt))
        self.gate_at: GateAt = gate_at

    @property
    def nested(self) -> NestedNet:
        """The slimmable network; its depths are the widths."""
        return self.net

    def mark_trained(self) -> None:
        """Set the status of all widths to "trained"."""
        self.net.mark("trained")

    def at(self, x: Images, choice: int) -> Logits:
        """Give logits of all images at one width, by its index."""
        return self.net(x, self.names[choice])

    def plain(self, choice: int) -> nn.Module:
        """The plain network of one width; nothing is shared."""
        return self.net.subnet(self.names[choice])

    def logits_by_choice(self, x: Images) -> dict[str, Tensor]:
        """Give logits of all images at every width, by name."""
        found = self.net.logits_by_depth(x)
        return {name: found[name] for name in self.names}

    @property
    def reused(self) -> tuple[int, nn.Module] | None:
        """The index of the width whose first steps the gate has run, and these steps."""
        if not isinstance(self.chooser, PathGate):
            return None
        return self.looked, nn.Sequential(*self.chooser.steps)

    def answer(self, x: Images) -> Answer:
        """Give the logits of each image and the index of its width; equal widths run together.

        The width that the gate looks at goes on from there.
        """
        if not isinstance(self.chooser, PathGate):
            return super().answer(x)
        looked = self.chooser.look(x)
        who = self.settle(self.pick(self.chooser.scores(looked)))
        behind = self.net.path(self.names[self.looked])[len(self.chooser.steps) :]

        def run(i: int, rows: Tensor | slice) -> Tensor:
            if i != self.looked:
                return self.at(x[rows], i)
            y = looked[rows]
            for step in behind:
                y = step(y)
            return y

        parts = [
            (rows, run(i, slice(None) if len(rows) == len(x) else rows))
            for i, rows in groups(who, len(self.names))
        ]
        return Answer(gathered(parts or [(who, self.at(x, 0))]), who)

    def settle(self, who: Which) -> Which:
        """Give the widths to run: a group joins a wider one where that is faster by `times`."""
        if not self.times or len(who) < 2:
            return who
        counts = torch.bincount(who, minlength=len(self.names)).tolist()
        times = [self.times[name] for name in self.names]
        if self.gate_at == "doubt":
            times[self.looked] = {1: 0.0}  # it has run already
        return who.new_tensor(fewer_groups(counts, times))[who]
