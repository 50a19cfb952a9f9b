"""Mixtures of experts: labels, and a loss that keeps every expert in use."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stepwell.losses import label_loss, load_balance_loss, switch_balance_loss
from stepwell.methods.objective import Objective
from stepwell.nets.decisions.experts import EXTRAS, expert_layers
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import check_numbers
from stepwell.types import Batch, Exit, Step


class MixtureOfExperts(Objective):
    """Train a network with experts: labels at every depth, and balance of the experts in each layer.

    L = CE + w · sum over layers of the balance loss: of noisy routers `load_balance_loss`, of Switch's
    `switch_balance_loss`.

    Args:
        net: built with `experts=E`.
        balance_weight: w; 0 lets the experts collapse to few.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: a value is out of range; the network has no experts.
    """

    def __init__(
        self, net: NestedNet, *, balance_weight: float = 0.01, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        check_numbers(locals(), flags=False)
        layers = expert_layers(net.module)
        if not layers:
            raise ValueError("this network has no experts: build a ViT with experts=4")
        self.net, self.balance_weight, self.label_smoothing = net, balance_weight, label_smoothing
        self.noisy = layers[0][1].kind == "noisy"

    def training_step(self, batch: Batch) -> Step:
        """The sum of the losses of all depths."""
        images, labels = batch

        def loss_of(
            depth: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            term = label_loss(exit.logits, labels, label_smoothing=self.label_smoothing)
            gates, load, shares = (exit.extras[name] for name in EXTRAS)
            balance = torch.stack([
                load_balance_loss(g, p) if self.noisy else switch_balance_loss(s[:, 0], p)
                for g, p, s in zip(gates, load, shares, strict=True)
            ]).sum()  # fmt: skip
            loss = term.value + self.balance_weight * balance
            return loss, {term.name: term.value, "balance": balance}

        return Step(*self.net.joint_loss(images, loss_of, extras=EXTRAS))
