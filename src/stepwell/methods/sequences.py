"""Skip RNN: a gate learns which tokens update the state of a recurrent network (Campos et al. 2018)."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from stepwell.losses import label_loss
from stepwell.methods.objective import Objective
from stepwell.nets.decisions.sequences import Mask, at_random, evenly, skip_cell
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import SHARE_ABOVE_0, check_number, check_numbers
from stepwell.types import Batch, Exit, Step

#: Ways to pick tokens without a gate, as controls.
PICKS: Mapping[str, Callable[..., Mask]] = {"random": at_random, "even": evenly}


class Sequences(Objective):
    """Train a recurrent network that skips tokens: labels, and a price for each update.

    L = CE + λ · mean over the texts of Σ_t u_t

    Args:
        net: built as "skip-gru/WIDTH" or "skip-lstm/WIDTH".
        cost_weight: λ.
        pick: "gate"; or without a gate, a share of the tokens: "random" ones, or "even", evenly spaced
            ones.
        rate: that share, in (0, 1]; 1 is the plain network.
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: a value is out of range; the network skips no tokens.
    """

    def __init__(
        self, net: NestedNet, *, cost_weight: float = 3e-3, pick: str = "gate", rate: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_numbers(locals(), flags=False)
        check_number("rate", rate, SHARE_ABOVE_0)
        if pick not in ("gate", *PICKS):
            raise ValueError(f"pick {pick!r}: take gate, {', '.join(PICKS)}")
        skip_cell(net.module)
        self.net, self.cost_weight = net, cost_weight
        self.pick, self.rate, self.label_smoothing = pick, rate, label_smoothing

    def training_step(self, batch: Batch) -> Step:
        """The loss of labels and updates; the share of the tokens that update is in the log."""
        ids, labels = batch
        module: Any = self.net.module
        given = {}
        if self.pick != "gate":
            given["keep"] = PICKS[self.pick](module.words.mask(ids), self.rate)

        def loss_of(
            depth: str, exit: Exit, done: Mapping[str, Exit]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            value = label_loss(exit.logits, labels, label_smoothing=self.label_smoothing)
            (used,), (length,) = exit.extras["used"], exit.extras["length"]
            share = used.sum() / length.sum()
            logs = {value.name: value.value, "used": used.mean(), "share": share}
            return value.value + self.cost_weight * used.mean(), logs

        return Step(*self.net.joint_loss(ids, loss_of, given=given, extras=("used", "length")))
