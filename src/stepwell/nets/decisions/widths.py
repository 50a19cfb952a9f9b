"""A slimmable network whose gate chooses the width of each image, after DS-Net (Li et al. 2021).

DS-Net's gate sees the mean of the stem's output ("stem", a *reconstruction*). Ours sees how sure the
narrowest width is ("doubt").
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stepwell.nets.decisions.choosing import ChoosingNet, Which
from stepwell.nets.decisions.executor import fewer_groups
from stepwell.nets.decisions.path_gate import PathGate
from stepwell.nets.nested.net import NestedNet
from stepwell.types import Images, Logits

#: What the gate sees, see `WidthNet`.
GateAt = Literal["doubt", "stem"]


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
        stem = None if doubt else len(net.plan.gaps[0])
        super().__init__(net, names, PathGate(path, self.looked, len(names), stem=stem))
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
        logits = self.net.logits_by_depth(x)
        return {name: logits[name] for name in self.names}

    def settle(self, who: Which) -> Which:
        """Give the widths to run: a group joins a wider one where that is faster by `times`."""
        if not self.times or len(who) < 2:
            return who
        counts = torch.bincount(who, minlength=len(self.names)).tolist()
        times = [self.times[name] for name in self.names]
        if self.gate_at == "doubt":
            times[self.looked] = {1: 0.0}  # it has run already
        return who.new_tensor(fewer_groups(counts, times))[who]
