"""Glance and focus: the network learns from crops at random places, then a policy learns to place them.

Wang et al. 2020 (arXiv 2010.05300), sections 3.3 and 3.4. Its policy learns by PPO with one pass over
each batch. In one pass PPO's ratio is 1, so that it takes the same gradient as REINFORCE with the
advantage; we take that form, with the mean of the other images as the baseline in place of a learned
value. A Gaussian of a fixed spread has the same entropy everywhere, so the paper's entropy bonus has no
gradient either.
"""

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.losses import class_cross_entropy, reinforce_loss
from stepwell.methods.objective import Objective
from stepwell.nets.decisions.glances import Where, glance_count, places_at, policy_of
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import check_numbers
from stepwell.types import Batch, Exit, Step


class Glances(Objective):
    """Train all of a network but its policy: labels after every glance.

    L = mean over glances t of CE(logits after t) + w · CE(glance t's own logits)

    Args:
        net: built as "glance-resnet20/4" or the like, with every number of glances as a depth.
        where: who places the crops; see `Where`.
        own_weight: w.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: a value is out of range; the network places no glances.
    """

    def __init__(
        self, net: NestedNet, *, where: Where = "random", own_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_numbers(locals(), flags=False)
        if where not in get_args(Where):
            raise ValueError(f"where {where!r}: take {', '.join(get_args(Where))}")
        policy_of(net.module).requires_grad_(False)  # no gradient of the labels would reach it
        self.net, self.where = net, where
        self.own_weight, self.label_smoothing = own_weight, label_smoothing

    def training_step(self, batch: Batch) -> Step:
        """The mean loss of all glances."""
        images, labels = batch
        given = places_at(self.net.module, self.where, images)
        count = len(self.net.depths)

        def loss_of(
            depth: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            smoothing = self.label_smoothing
            ce = class_cross_entropy(exit.logits, labels, label_smoothing=smoothing)
            own_loss = class_cross_entropy(exit.extras["own"][-1], labels, label_smoothing=smoothing)
            return (ce + self.own_weight * own_loss) / count, {"ce": ce, "own": own_loss}

        return Step(*self.net.joint_loss(images, loss_of, given=given, extras=("own",)))


class GlancePolicy(Objective):
    """Train the policy of a network alone, by what each glance adds.

    Glance t looks at a place a_t, drawn from a Gaussian around the policy's. Its reward is
    r_t = p_t(label) - p_{t-1}(label), with the probability p_t after glance t (of mixed labels, the
    mean over their shares), and its return is R_t = Σ_k γ^k r_{t+k}. The returns of a batch are
    divided by their standard deviation: L = `reinforce_loss`(log p(a_t), R_t).

    All other weights have `requires_grad=False` afterwards, and the norms stay in eval mode.

    Args:
        net: as for `Glances`.
        discount: γ.
        spread: standard deviation of a drawn place.

    Raises:
        ValueError: a value is out of range; the network places no glances.
    """

    def __init__(self, net: NestedNet, *, discount: float = 0.7, spread: float = 0.1) -> None:
        super().__init__()
        check_numbers(locals(), flags=False)
        net.requires_grad_(False)
        policy_of(net.module).requires_grad_(True)
        self.net, self.discount, self.spread = net, discount, spread

    def train(self, mode: bool = True) -> "GlancePolicy":
        """Stay in eval mode: the policy has no modes, and the network learns nothing here."""
        super().train(False)
        return self

    def training_step(self, batch: Batch) -> Step:
        """The loss of the policy; what the last glance gains over the first is in the log."""
        images, labels = batch
        count = glance_count(self.net.module)
        axes = policy_of(self.net.module).axes
        shift = self.spread * torch.randn(len(images), count, axes).to(images)
        exits = self.net.forward_all(images, given={"shift": shift}, extras=("mean", "place"))
        *_, last = exits.values()
        with torch.no_grad():
            shares = labels if labels.dim() == 2 else F.one_hot(labels, last.logits.shape[1])
            right = [(exit.logits.float().softmax(1) * shares).sum(1) for exit in exits.values()]
            rewards = torch.stack(right).diff(dim=0)  # (glances, batch)
            returns = discounted(rewards, self.discount)
            returns = returns / (returns.std() + 1e-8)
        mean, place = (torch.stack(last.extras[name]).float() for name in ("mean", "place"))
        # of a Gaussian, without what does not depend on the mean
        log_p = -(((place.detach() - mean) / self.spread) ** 2).sum(2) / 2
        loss = reinforce_loss(log_p, returns)
        return Step(loss, {"policy": loss.detach(), "gain": rewards.sum(0).mean()})


def discounted(rewards: Tensor, discount: float) -> Tensor:
    """Returns (steps, batch) of rewards (steps, batch): each step's and the discounted later ones.

    >>> discounted(torch.tensor([[0.0], [1.0], [1.0]]), 0.5).flatten().tolist()
    [0.75, 1.5, 1.0]
    """
    returns = rewards.clone()
    for i in range(len(rewards) - 2, -1, -1):
        returns[i] += discount * returns[i + 1]
    return returns
