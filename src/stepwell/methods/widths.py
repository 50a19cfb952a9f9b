"""Dynamic width: a slimmable network, and the gate that chooses the width of each image.

The network learns first, at all widths. Then the gate learns alone, best on images that the network has
not learnt: on images that it has learnt, the narrow widths look better than they are.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stepwell.losses import class_cross_entropy, cost_above_target, reinforce_loss, soft_target_kl
from stepwell.methods.objective import Objective
from stepwell.methods.resolution import check_target, losses_by_choice
from stepwell.nets.decisions.choosing import ChoosingNet
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import check_numbers
from stepwell.types import Batch, Exit, Step

#: Learning rate of a chooser that learns alone, by Adam.
GATE_RATE = 0.01


class Slimmable(Objective):
    """The network learns at all widths in one step (Yu et al. 2019): the sum of their cross entropies.

    With `sandwich`, a step runs the widest, the narrowest and two others that are drawn, and the widest
    teaches them in place of the labels (US-Nets, Yu and Huang 2019):

        L = CE(widest) + sum of KL(widest || width)

    Args:
        net: built with `multipliers=`.
        label_smoothing: of the widths that learn from labels, in [0, 1).

    Raises:
        ValueError: a value is out of range, or the network has one width.
    """

    def __init__(self, net: NestedNet, *, sandwich: bool = False, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_numbers(locals(), flags=False)
        if not net.widths:
            raise ValueError("this network has one width: build a ResNet with multipliers=(0.5, 1)")
        self.net = net
        self.sandwich, self.label_smoothing = sandwich, label_smoothing

    def training_step(self, batch: Batch) -> Step:
        """The sum of the losses of the widths of this step."""
        images, labels = batch

        def loss_of(
            width: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            if self.sandwich and done:
                kl = soft_target_kl(exit.logits, done[self.net.full].logits, 1.0)
                return kl, {"kl": kl}
            ce = class_cross_entropy(exit.logits, labels, label_smoothing=self.label_smoothing)
            return ce, {"ce": ce}

        return Step(*self.net.joint_loss(images, loss_of, self._widths(), keep_features=False))

    def _widths(self) -> list[str]:
        """The widths of this step, narrow to wide."""
        least, *between, full = self.net.depths
        if self.sandwich:  # torch's global generator: the training loop seeds it at each step
            drawn = torch.randperm(len(between))[:2].sort().values
            between = [between[i] for i in drawn.tolist()]
        return [least, *between, full]


class ChooserAlone(Objective):
    """The chooser learns under a cost penalty; the network runs in eval mode and does not change.

    h is the choice of an image as a one-hot vector, F_j(x) are the logits of choice j.

        L = sum over j of h_j · CE(F_j(x)) + w · max(0, (mean cost - target · C_max) / (C_max - C_min))

    All choices run on every image. The loss is linear in h, so the straight-through estimator, whose h
    is the best score, has the gradient of the expected loss. With "reinforce", the first term is
    `reinforce_loss` of the reward -CE, and the cost is that of the probabilities.

    Args:
        net: network and chooser; the chooser changes in place. The network's parameters have
            `requires_grad=False` afterwards.
        costs: of each choice, such as MACs; each may include the chooser's own.
        target: mean cost, as a share of the costliest choice's.
        cost_weight: w.
        estimator, temperature: of the choices, as for `Draw`.

    Raises:
        ValueError: a value is out of range; `target` is out of reach; the estimator teaches nothing.
    """

    def __init__(
        self, net: ChoosingNet, costs: Sequence[float], *, target: float, cost_weight: float = 1.0,
        estimator: str = "straight-through", temperature: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_numbers(locals(), flags=False)
        check_target(costs, target)
        self.draw = Draw(estimator, temperature)
        self.by_policy = self.draw.check(training=True).by_policy
        self.net = net
        net.costs.copy_(torch.tensor(costs) / max(costs))
        net.net.requires_grad_(False)
        self.target, self.cost_weight = target, cost_weight

    def train(self, mode: bool = True) -> "ChooserAlone":
        """Set the mode of the chooser; the network stays in eval mode."""
        super().train(False)
        self.net.chooser.train(mode)
        return self

    def training_step(self, batch: Batch) -> Step:
        """The loss of one batch, and each choice's share of the images."""
        images, labels = batch
        losses = losses_by_choice(self.net, images, labels)
        scores = self.net.chooser(images).float()
        choice = self.draw(scores)
        spent = choice
        ce = (choice * losses).sum(1)
        logs = {"ce": ce.mean(), "mean cost": (choice.detach() @ self.net.costs).mean()}
        logs |= {f"share/{n}": choice[:, i].mean() for i, n in enumerate(self.net.names)}
        loss = logs["ce"]
        if self.by_policy:
            log_p = (scores / self.draw.temperature).log_softmax(1)
            spent = log_p.exp()
            loss = logs["policy"] = reinforce_loss((log_p * choice).sum(1), -ce)
        logs["cost"] = cost_above_target(spent, self.net.costs, self.target)
        return Step(loss + self.cost_weight * logs["cost"], logs)
