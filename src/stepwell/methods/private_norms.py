"""Train what the sub-nets do not share, and nothing else."""

from typing import Any

from stepwell.methods.embedded_kd import EmbeddedKD
from stepwell.nets.nested.net import NestedNet


class PrivateNorms(EmbeddedKD):
    """Embedded distillation into the sub-nets' private norms alone: the full net stays as it is.

    Every other weight of `net` asks for no gradient afterwards (`net.requires_grad_(True)` undoes it),
    and the shared norms stay in eval mode, so the full net's outputs do not change by a bit.

    Args:
        net: a nested net whose sub-nets have norms of their own.
        arguments: as for `EmbeddedKD`.

    Raises:
        ValueError: the sub-nets share all their norms, so there is nothing to train.
    """

    def __init__(self, net: NestedNet, **arguments: Any) -> None:
        super().__init__(net, distill_from=0.0, **arguments)
        if not len(net.private_norms):
            raise ValueError("the sub-nets of this net have no norms of their own to train")
        net.requires_grad_(False)
        net.private_norms.requires_grad_(True)

    def train(self, mode: bool = True) -> "PrivateNorms":
        """Set the mode of the private norms; everything else stays in eval mode."""
        super().train(False)
        self.net.private_norms.train(mode)
        return self
