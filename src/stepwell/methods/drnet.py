"""Dynamic resolution (DRNet, Zhu et al. 2021): a chooser learns which resolution each image needs.

First every image trains the network at all resolutions, then network and chooser train together: a
straight-through Gumbel-softmax makes the choice, and a hinge keeps the mean cost of a batch at its
target. `ImitateBest` is another way to the chooser, alone and with labels (as AdaScale, Chin et al.
2019, has it for video), which needs no gradient through a choice.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gumbel_softmax

from stepwell.losses import class_cross_entropy, cost_above_target
from stepwell.methods.objective import Objective
from stepwell.modes import in_eval_mode
from stepwell.nets.dynamic import DynamicNet, gathered
from stepwell.nets.resolution import Resolutions, resize
from stepwell.ranges import check_numbers
from stepwell.types import Batch, Exit, Step

#: Which choices a training step runs: each image's own, or all of them for every image.
Mixing = Literal["chosen", "all"]


class EveryResolution(Objective):
    """The network learns from every image at all resolutions, and at all depths; losses are summed.

    Args:
        net: the network; its weights change in place.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    def __init__(self, net: Resolutions, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_numbers({"label_smoothing": label_smoothing}, flags=False)
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


class DynamicResolution(Objective):
    """The chooser and the network learn together under a budget.

        L = CE(y) + w · max(0, (mean cost of the batch - target · C_max) / (C_max - C_min))

    with h the one-hot choice of each image, drawn by the straight-through Gumbel-softmax of the
    chooser's scores, and y = h_j · F_j(x resized to r_j) of its choice j ("chosen", as the paper's text
    has it: norms see only images that chose their resolution), or y = sum over j of h_j · F_j ("all",
    as the authors' code has it: every image runs everywhere). An image that is alone in its choice runs
    with the statistics that norms have, and leaves them as they are.

    Args:
        net: network and chooser; both change in place.
        costs: of each choice, such as MACs; the chooser's own may be in all of them.
        target: mean cost, as a share of the costliest choice's.
        cost_weight: w.
        temperature: of the softmax that the gradient flows through (the paper names none).
        mixing: "chosen" or "all".
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: a value out of range; `target` is below the cheapest choice's share, or above 1.
    """

    def __init__(
        self,
        net: DynamicNet,
        costs: Sequence[float],
        *,
        target: float,
        cost_weight: float = 1.0,
        temperature: float = 1.0,
        mixing: Mixing = "chosen",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        options = {
            "cost_weight": cost_weight,
            "temperature": temperature,
            "label_smoothing": label_smoothing,
        }
        check_numbers(options, flags=False)
        check_target(costs, target)
        self.net = net
        net.costs.copy_(torch.tensor(costs) / max(costs))
        self.target = target
        self.cost_weight = cost_weight
        self.temperature = temperature
        self.mixing = mixing
        self.label_smoothing = label_smoothing

    def training_step(self, batch: Batch) -> Step:
        """The loss of one batch, and the share of images that each choice has."""
        images, labels = batch
        # in 32 bits, whatever autocast says: Gumbel noise has a long tail
        choice = gumbel_softmax(self.net.chooser(images).float(), self.temperature, hard=True)
        run = self._chosen if self.mixing == "chosen" else self._all
        logits = run(images, choice)
        ce = class_cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        cost = cost_above_target(choice, self.net.costs, self.target)
        shares = choice.detach().mean(0)
        logs = {"ce": ce, "cost": cost, "mean cost": (shares * self.net.costs).sum()}
        logs |= {f"share/{name}": shares[i] for i, name in enumerate(self.net.names)}
        return Step(ce + self.cost_weight * cost, logs)

    def _chosen(self, images: Tensor, choice: Tensor) -> Tensor:
        """Each image at its own choice, in groups."""

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for i, (depth, size) in enumerate(self.net.choices):
                rows = choice.detach()[:, i].nonzero().flatten()
                if len(rows):
                    net = self.net.net
                    alone = in_eval_mode(net.at(size)) if len(rows) == 1 else nullcontext()
                    with alone:
                        logits = net(images[rows], size, depth)
                    yield rows, choice[rows, i, None] * logits

        return gathered(list(parts()))

    def _all(self, images: Tensor, choice: Tensor) -> Tensor:
        """Every image at every choice, mixed by what it chose."""
        logits = self.net.logits_by_choice(images)
        return torch.stack([choice[:, i, None] * y for i, y in enumerate(logits.values())]).sum(0)


class ImitateBest(Objective):
    """The chooser alone learns to name the cheapest choice that is nearly as good as the best one.

    The network stays as it is, in eval mode. Afterwards a price can bring the mean cost to a budget.

    Args:
        net: network and chooser; the chooser changes in place. Every parameter of the network asks for
            no gradient afterwards.
        costs: of each choice.
        slack: a choice is good enough where its cross entropy is within this of the best, in nats.

    Raises:
        ValueError: `slack` is out of range.
    """

    def __init__(self, net: DynamicNet, costs: Sequence[float], *, slack: float = 0.1) -> None:
        super().__init__()
        check_numbers({"slack": slack}, flags=False)
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
        """Cross entropy of the chooser's scores against the choices to imitate."""
        images, labels = batch
        ce = cross_entropy(self.net.chooser(images), self.best(images, labels))
        return Step(ce, {"choice": ce})

    @torch.no_grad()
    def best(self, images: Tensor, labels: Tensor) -> Tensor:
        """The index of the choice that each image's chooser should name, (batch,)."""
        logits = self.net.logits_by_choice(images).values()
        losses = torch.stack([cross_entropy(y, labels, reduction="none") for y in logits])
        enough = losses <= losses.amin(0) + self.slack
        return self.net.costs[:, None].masked_fill(~enough, torch.inf).argmin(0)


def check_target(costs: Sequence[float], target: float) -> None:
    """Refuse a mean cost that no choice of resolutions reaches.

    Args:
        target: as a share of the largest of `costs`.

    Raises:
        ValueError: it is out of range; the message says the range.
    """
    least = min(costs) / max(costs)
    if not least <= target <= 1:
        raise ValueError(
            f"a target of {target:g} of the full cost cannot be reached: the cheapest choice has "
            f"{least:.3g}, the costliest 1; set it between them"
        )
