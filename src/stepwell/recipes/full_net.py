"""The full net is watched while sub-nets train in its weights."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from stepwell.nets import NestedNet
from stepwell.recipes.classification import Task, validator

OnDrop = Literal["warn", "rollback"]


class FullNetWatch:
    """Compares a trained full net's validation accuracy before and after its sub-nets are trained.

    Made before that training: it measures the full net as it stands, and remembers its weights.

    Args:
        max_drop: points of accuracy (percent) that the full net may lose.
    """

    def __init__(self, net: NestedNet, task: Task, max_drop: float) -> None:
        self.net = net
        self.max_drop = max_drop
        self.weights = {k: v.clone() for k, v in net.module.state_dict().items()}
        self._validate = validator(net, task, [net.full])
        self.before = self.accuracy()

    def accuracy(self) -> float | None:
        """Of the full net on the validation part; nothing where there is no such part."""
        if self._validate is None:
            return None
        self.net.eval()
        return self._validate()[f"{self.net.full}/accuracy"]

    def select(self, values: Mapping[str, float]) -> float:
        """Score of an epoch: mean accuracy over depths; those that keep the full net come first."""
        found = [values[f"{depth}/accuracy"] for depth in self.net.depths]
        return sum(found) / len(found) - self._lost(values[f"{self.net.full}/accuracy"])

    def dropped(self) -> bool:
        """Whether the full net, as it stands now, has lost more than it may."""
        return self.before is not None and self._lost(self.accuracy())

    def restore(self) -> None:
        """Give the full net its weights of before, and each private norm the full net's."""
        self.net.load_full(self.weights)

    def result(self, *, rolled_back: bool) -> dict[str, Any]:
        """What the run's results say; warns when the full net ends below where it began."""
        after = self.accuracy()
        if self.before is None or after is None:
            return {}
        if rolled_back:
            warnings.warn(
                f"the full net lost more than {self.max_drop:g} points of validation accuracy while "
                f"its sub-nets trained: rolled back to what it was ({100 * self.before:.1f} %), and "
                "only the sub-nets' own norms were trained",
                stacklevel=3,
            )
        elif self._lost(after):
            warnings.warn(
                f"the full net lost {100 * (self.before - after):.1f} points of validation accuracy "
                f"while its sub-nets trained ({100 * self.before:.1f} to {100 * after:.1f} %): to keep "
                "it as it was, use --on-drop rollback with another --out",
                stacklevel=3,
            )
        return {"full_net": {"before": self.before, "after": after, "rolled_back": rolled_back}}

    def _lost(self, accuracy: float | None) -> bool:
        assert self.before is not None
        return accuracy is not None and 100 * (self.before - accuracy) > self.max_drop
