"""Layer skipping: gates learn which residual blocks an image needs.

ConvNet-AIG (Veit and Belongie 2018) draws the gates by Gumbel-softmax and keeps each near an open rate.
SkipNet (Wang et al. 2018) trains first with straight-through gates and the labels alone, then by
REINFORCE, where every skipped block earns a reward.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stepwell.losses import class_cross_entropy, open_rate_loss, reinforce_loss
from stepwell.methods.objective import Objective
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.pixels import has_masks
from stepwell.nets.decisions.skipping import EXTRAS, gated_blocks
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import check_numbers
from stepwell.types import Batch, Exit, Step


class Skipping(Objective):
    """Train a network with gates: labels at every depth, and a cost of the blocks that run.

    With an estimator that has a gradient, L = CE + w · `open_rate_loss`. With "reinforce",
    L = CE + p · `reinforce_loss`: gate l of L earns r_l = `reward` / L if it skips, and its return is
    the sum of r over this and all later gates, minus the image's cross entropy.

    Args:
        net: built with `gates=True`.
        target: open rate of every gate.
        rate_weight: w; 0 teaches the gates by the labels alone.
        estimator, temperature: of the choices in training, as for `Draw`.
        reward: for an image that skips every block.
        policy_weight: p.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: a value is out of range; the network has no gates; the estimator cannot teach them.
    """

    def __init__(
        self, net: NestedNet, *, target: float = 0.6, rate_weight: float = 2.0,
        estimator: str = "gumbel", temperature: float = 1.0, reward: float = 0.1,
        policy_weight: float = 0.01, label_smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_numbers(locals(), flags=False)
        blocks = [block for _, block in gated_blocks(net.module)]
        if not blocks:
            raise ValueError("this network has no gates: build a ResNet with gates=True")
        if has_masks(net.module):
            raise ValueError(
                "this network has masks of positions: train it with Pixels (stepwell.methods.pixels), "
                "or build it with gates=True"
            )
        self.net = net
        self.draw = Draw(estimator, temperature)
        self.by_policy = self.draw.check(training=True).by_policy
        self.target, self.rate_weight = target, rate_weight
        self.reward, self.policy_weight = reward, policy_weight
        self.label_smoothing = label_smoothing

    def training_step(self, batch: Batch) -> Step:
        """The sum of the losses of all depths; the mean open rate is in the log."""
        images, labels = batch

        def loss_of(
            depth: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            ce = class_cross_entropy(
                exit.logits, labels, label_smoothing=self.label_smoothing, reduction="none"
            )
            choices = torch.stack(exit.extras["choice"])  # (gates, batch, 2)
            open = choices[:, :, 1]
            logs = {"ce": ce.mean(), "open": open.mean()}
            if self.by_policy:
                log_p = torch.stack(exit.extras["scores"]).float() / self.draw.temperature
                log_p = (log_p.log_softmax(2) * choices).sum(2)
                skipped = (1 - open) * (self.reward / len(open))
                later = skipped.flip(0).cumsum(0).flip(0)  # of this gate and those behind it
                logs["policy"] = reinforce_loss(log_p, later - ce)
                return logs["ce"] + self.policy_weight * logs["policy"], logs
            logs["rate"] = open_rate_loss(open, self.target)
            return logs["ce"] + self.rate_weight * logs["rate"], logs

        draw = {"draw": self.draw}
        return Step(*self.net.joint_loss(images, loss_of, given=draw, extras=EXTRAS))
