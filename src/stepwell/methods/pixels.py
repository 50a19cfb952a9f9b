"""Conditional execution by position: masks learn where a block has to run (DynConv).

Verelst and Tuytelaars 2020. The masks are drawn by Gumbel-sigmoid with a straight-through gradient.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stepwell.losses import class_cross_entropy, sparsity_loss
from stepwell.methods.objective import Objective
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.pixels import has_masks
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import check_numbers
from stepwell.types import Batch, Exit, Step

#: Share of the training after which masks are not drawn any more: the better score decides, as in use.
WITHOUT_NOISE = 0.8


class Pixels(Objective):
    """Train a network with masks: labels, and the share of the blocks' work that runs.

    L = CE + w · `sparsity_loss`

    Args:
        net: built with `gates="pixels"`.
        target: share of the MACs of all blocks.
        sparsity_weight: w; 0 teaches the masks by the labels alone.
        estimator, temperature: of the masks in training, as for `Draw`, of two choices for a position.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: a value is out of range; the network has no masks; the estimator cannot teach them.
    """

    def __init__(
        self, net: NestedNet, *, target: float = 0.5, sparsity_weight: float = 10.0,
        estimator: str = "gumbel", temperature: float = 1.0, label_smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_numbers(locals(), flags=False)
        if not has_masks(net.module):
            raise ValueError('this network has no masks: build a ResNet with gates="pixels"')
        self.net = net
        self.draw = Draw(estimator, temperature)
        if self.draw.check(training=True).by_policy:
            raise ValueError(
                f"estimator {estimator!r} gives no gradient to the masks of positions: train with "
                "gumbel or straight-through"
            )
        self.target, self.sparsity_weight = target, sparsity_weight
        self.label_smoothing = label_smoothing

    def training_step(self, batch: Batch) -> Step:
        """The sum of the losses of all depths; the share of the work that runs is in the log."""
        images, labels = batch
        settled = self.progress >= WITHOUT_NOISE
        draw = self.draw._replace(estimator="straight-through") if settled else self.draw

        def loss_of(
            depth: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            ce = class_cross_entropy(exit.logits, labels, label_smoothing=self.label_smoothing)
            shares = torch.stack([open.mean() for open in exit.extras["open"]])
            costs = torch.stack(exit.extras["macs"]).to(shares.dtype)
            sparsity = sparsity_loss(shares, costs, self.target, self.progress)
            open = (shares * costs).sum() / costs.sum()
            logs = {"ce": ce, "sparsity": sparsity, "open": open}
            return ce + self.sparsity_weight * sparsity, logs

        given = {"draw": draw}
        return Step(*self.net.joint_loss(images, loss_of, given=given, extras=("open", "macs")))
