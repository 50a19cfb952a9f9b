"""Dynamic resolution (DRNet, Zhu et al. 2021): a chooser learns which resolution each image needs.

First every image trains the network at all resolutions. Then network and chooser train together.
`ImitateBest` trains the chooser alone, with labels (as AdaScale, Chin et al. 2019, does for video).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from math import ceil
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from stepwell.losses import class_cross_entropy, cost_above_target
from stepwell.methods.objective import Objective
from stepwell.nets.decisions.choosing import ChoosingNet
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.executor import gathered, groups
from stepwell.nets.resolution.chooser import ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions, resize
from stepwell.ranges import check_numbers
from stepwell.train_mode import in_eval_mode
from stepwell.types import Batch, Exit, Images, Labels, Step

#: Shares of the classes, as MixUp and CutMix give them.
Shares = Float[Tensor, "batch classes"]

#: The choices that a training step runs, and the chooser's loss: see `JointResolution`.
Mixing = Literal["expected", "chosen", "all", "random"]

#: `even_shares` finds the costs' factor inside the softmax, in ±STEEP, by this many bisections.
STEEP, HALVED = 1e4, 80


class EveryResolution(Objective):
    """The network learns from every image at all resolutions and depths; losses are summed."""

    def __init__(self, net: Resolutions, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_numbers(locals(), flags=False)
        self.net = net
        self.label_smoothing = label_smoothing

    def training_step(self, batch: Batch) -> Step:
        """The sum of the cross entropies."""
        images, labels = batch

        def loss_of(
            depth: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            ce = class_cross_entropy(exit.logits, labels, label_smoothing=self.label_smoothing)
            return ce, {"ce": ce}

        losses: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        for size in self.net.sizes:
            loss, parts = self.net.at(size).joint_loss(resize(images, size), loss_of)
            losses.append(loss)
            logs |= {f"{size}/{name}": value for name, value in parts.items()}
        return Step(torch.stack(losses).sum(), logs)


class JointResolution(Objective):
    """The chooser and the network learn together under a budget.

    Each image's choice is drawn from the softmax of its scores. h is the choice as a one-hot vector,
    F_j(x) are the logits of x resized to r_j, and p is the softmax without noise.

        L = CE(y) + w · max(0, (mean cost of the batch - target · C_max) / (C_max - C_min))

    "chosen", as in the paper's text: y = h_j · F_j(x) of the drawn choice j only, with the
    straight-through gradient of a Gumbel-softmax for h. A resolution's norms see only the images that
    chose it. The gradient ignores the other choices and is biased: it moves the scores even where all
    resolutions do equally well.

    "all", as in the authors' code: y = sum over j of h_j · F_j. Every image runs at every choice, and
    the gradient lacks that bias.

    "expected", ours, has the norms of "chosen" and less noise than "all". The network learns from the
    drawn choice only. The chooser learns from the expectation, sum over j of p_j · CE(F_j(x)), and from
    the cost of p. The expectation needs a share of each batch at every choice, in eval mode and without
    gradient.

    "random" is the control that shows the gain from choosing. All images draw their choice from the
    same distribution, as even as the target allows, and the chooser learns nothing.

    An image that is alone in its choice runs with the norms' running statistics and does not update
    them.

    Args:
        net: network and chooser; both change in place.
        costs: cost of each choice, such as MACs; each may include the chooser's own.
        target: mean cost, as a share of the costliest choice's.
        cost_weight: w.
        temperature: of the softmax that the straight-through gradient flows through (the paper gives
            none).
        mixing: as above.
        explore: share of each batch that the chooser learns from with "expected".
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: a value is out of range; `target` is below the cheapest choice's share, or above 1.
    """

    def __init__(
        self,
        net: ResolutionNet,
        costs: Sequence[float],
        *,
        target: float,
        cost_weight: float = 1.0,
        temperature: float = 1.0,
        mixing: Mixing = "expected",
        explore: float = 0.25,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if mixing not in get_args(Mixing):
            raise ValueError(f"no mixing {mixing!r}: choose one of {', '.join(get_args(Mixing))}")
        if len(costs) != len(net.choices):
            raise ValueError(f"got {len(costs)} costs for {len(net.choices)} choices")
        check_target(costs, target)
        check_numbers(locals(), flags=False)
        self.net = net
        net.costs.copy_(torch.tensor(costs) / max(costs))
        self.target, self.cost_weight = target, cost_weight
        self.temperature, self.label_smoothing = temperature, label_smoothing
        self.mixing, self.explore = mixing, explore
        self._even: Tensor
        even = even_shares(costs, target).to(net.costs)
        self.register_buffer("_even", even, persistent=False)

    def training_step(self, batch: Batch) -> Step:
        """The loss of one batch, and each choice's share of the images."""
        images, labels = batch
        if self.mixing == "random":
            scores = self._even.log().expand(len(images), -1)
        else:
            scores = self.net.chooser(images).float()
        choice = Draw("gumbel", self.temperature)(scores)
        through = self.mixing in ("chosen", "all")
        run = self._all if self.mixing == "all" else self._chosen
        logits = run(images, choice if through else choice.detach())
        ce = class_cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        shares = choice.detach().mean(0)
        logs = {"ce": ce, "mean cost": (shares * self.net.costs).sum()}
        logs |= {f"share/{name}": shares[i] for i, name in enumerate(self.net.names)}
        if self.mixing == "random":
            return Step(ce, logs)
        loss, spent = ce, choice
        if self.mixing == "expected":
            spent = scores.softmax(1)
            few = ceil(self.explore * len(images))
            losses = losses_by_choice(self.net, images[:few], labels[:few])
            logs["expected ce"] = (spent[:few] * losses).sum(1).mean()
            loss = loss + logs["expected ce"]
        logs["cost"] = cost_above_target(spent, self.net.costs, self.target)
        return Step(loss + self.cost_weight * logs["cost"], logs)

    def _chosen(self, images: Tensor, choice: Tensor) -> Tensor:
        """Run each image at its own choice, in one group per choice."""

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for i, rows in groups(choice.detach().argmax(1), len(self.net.choices)):
                depth, size = self.net.choices[i]
                net = self.net.net
                alone = in_eval_mode(net.at(size)) if len(rows) == 1 else nullcontext()
                with alone:
                    logits = net(images[rows], size, depth)
                yield rows, choice[rows, i, None] * logits

        return gathered(list(parts()))

    def _all(self, images: Tensor, choice: Tensor) -> Tensor:
        """Run every image at every choice, and sum the logits weighted by its choice."""
        logits = self.net.logits_by_choice(images)
        return torch.stack([choice[:, i, None] * y for i, y in enumerate(logits.values())]).sum(0)


class ImitateBest(Objective):
    """The chooser alone learns to name the cheapest choice that is nearly as good as the best.

    The network does not change; it runs in eval mode. A cost penalty can then meet a budget.

    Args:
        net: network and chooser; the chooser changes in place. The network's parameters have
            `requires_grad=False` afterwards.
        costs: cost of each choice.
        slack: a choice is good enough if its cross entropy exceeds the best by at most this, in nats.

    Raises:
        ValueError: `slack` is out of range.
    """

    def __init__(self, net: ResolutionNet, costs: Sequence[float], *, slack: float = 0.1) -> None:
        super().__init__()
        check_numbers(locals(), flags=False)
        self.net = net
        net.costs.copy_(torch.tensor(costs) / max(costs))
        net.net.requires_grad_(False)
        self.slack = slack

    def train(self, mode: bool = True) -> "ImitateBest":
        """Set the mode of the chooser; the network stays in eval mode."""
        super().train(False)
        self.net.chooser.train(mode)
        return self

    def training_step(self, batch: Batch) -> Step:
        """Cross entropy of the chooser's scores against the target choices."""
        images, labels = batch
        ce = cross_entropy(self.net.chooser(images), self.best(images, labels))
        return Step(ce, {"choice": ce})

    def best(self, images: Images, labels: Labels | Shares) -> Int[Tensor, " batch"]:
        """The index of each image's target choice."""
        losses = losses_by_choice(self.net, images, labels)
        enough = losses <= losses.amin(1, keepdim=True) + self.slack
        return self.net.costs.expand_as(losses).masked_fill(~enough, torch.inf).argmin(1)


@torch.no_grad()
def losses_by_choice(
    net: ChoosingNet, images: Images, labels: Labels | Shares
) -> Float[Tensor, "batch choices"]:
    """The cross entropy of every image at every choice, in eval mode."""
    with in_eval_mode(net.net):
        every = net.logits_by_choice(images).values()
    return torch.stack([class_cross_entropy(y, labels, reduction="none") for y in every], 1)


def even_shares(costs: Sequence[float], target: float) -> Float[Tensor, " choices"]:
    """The shares of choices with a given mean cost (see `check_target`) and the largest entropy."""
    relative = torch.tensor(costs, dtype=torch.float64) / max(costs)
    low, high = -STEEP, STEEP
    for _ in range(HALVED):
        middle = (low + high) / 2
        shares = (middle * relative).softmax(0)
        low, high = (middle, high) if float(shares @ relative) < target else (low, middle)
    return shares


def check_target(costs: Sequence[float], target: float) -> None:
    """Raise ValueError for a mean cost, as a share of the largest of `costs`, out of reach."""
    if min(costs) <= 0:
        raise ValueError(f"a choice costs {min(costs):g}: costs, such as MACs, must be positive")
    least = min(costs) / max(costs)
    if not least <= target <= 1:
        raise ValueError(
            f"a target of {target:g} of the full cost cannot be reached: the cheapest choice has "
            f"{least:.3g}, the costliest 1; set it between them"
        )
