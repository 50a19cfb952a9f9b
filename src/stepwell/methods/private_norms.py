"""Train only the norms that sub-nets do not share."""

from typing import Any

from stepwell.methods.embedded_kd import EmbeddedKD
from stepwell.nets.nested.net import NestedNet


class PrivateNorms(EmbeddedKD):
    """Embedded distillation that trains the sub-nets' private norms only.

    All other weights of `net` have `requires_grad=False` afterwards (`net.requires_grad_(True)` undoes
    it), and the shared norms stay in eval mode: the full net's outputs do not change by a bit.

    Args:
        net: a nested net whose sub-nets have private norms.
        arguments: as for `EmbeddedKD`.

    Raises:
        ValueError: the sub-nets share all their norms, so there is nothing to train.
    """

    def __init__(self, net: NestedNet, **arguments: Any) -> None:
        super().__init__(net, distill_from=0.0, **arguments)
        if not len(net.private_norms):
            raise ValueError("the sub-nets of this net have no private norms to train")
        net.requires_grad_(False)
        net.private_norms.requires_grad_(True)

    def train(self, mode: bool = True) -> "PrivateNorms":
        """Set the mode of the private norms; everything else stays in eval mode."""
        super().train(False)
        self.net.private_norms.train(mode)
        return self
