"""A slimmable network whose gate chooses the width of each image, after DS-Net (Li et al. 2021).

The gate is a *reconstruction*: two linear layers on the mean of the stem's output at full width.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from stepwell.nets.decisions.choosing import ChoosingNet, Which
from stepwell.nets.decisions.estimators import Scores
from stepwell.nets.decisions.executor import fewer_groups
from stepwell.nets.decisions.gates import Gate
from stepwell.nets.nested.net import NestedNet
from stepwell.types import Images, Logits


class StemGate(nn.Module):
    """Scores of the widths of a network: its stem at full width, then a gate.

    The stem belongs to the network, and stays in eval mode here.
    """

    def __init__(self, net: NestedNet) -> None:
        super().__init__()
        stem = net.path()[: len(net.plan.gaps[0])]
        self._stem = stem  # a tuple, so that nothing is registered (or saved) twice
        norms = [m for step in stem for m in step.modules() if isinstance(m, nn.BatchNorm2d)]
        if not norms:
            raise ValueError("this network has no stem with BatchNorm: name a ResNet, such as resnet20")
        self.gate = Gate(norms[-1].num_features, len(net.depths))

    def forward(self, x: Images) -> Scores:
        """Score each width, as logits of probabilities."""
        for step in self._stem:
            x = step(x)
        scores: Tensor = self.gate(x)
        return scores

    def alone(self) -> nn.Module:
        """The same module with a stem of its own."""
        return nn.Sequential(*self._stem, self.gate)


class WidthNet(ChoosingNet):
    """A slimmable network, and the gate that picks the width of each image.

    Images of equal choice run together, each group at its width. Where `times` say that two groups are
    faster as one, both run at the wider width: an image may get a wider width than it chose, never a
    narrower one.

    Args:
        net: built with `multipliers=`.

    Attributes:
        times: by width and number of images, the time of a group on this device; without them each
            image runs at its choice.

    Raises:
        ValueError: the network has one width.
    """

    net: NestedNet
    times: Mapping[str, Mapping[int, float]] = MappingProxyType({})

    def __init__(self, net: NestedNet) -> None:
        if not net.widths:
            raise ValueError(
                "this network has one width: build a ResNet with multipliers=(0.25, 0.5, 0.75, 1)"
            )
        super().__init__(net, [*reversed(net.depths)], StemGate(net))

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

    def settle(self, who: Which) -> Which:
        """Give the widths to run: a group joins a wider one where that is faster by `times`."""
        if not self.times or len(who) < 2:
            return who
        counts = torch.bincount(who, minlength=len(self.names)).tolist()
        times = [self.times[name] for name in self.names]
        return who.new_tensor(fewer_groups(counts, times))[who]
