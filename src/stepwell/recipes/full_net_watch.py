"""The full net is watched while sub-nets train in its weights."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

from stepwell.nets import NestedNet
from stepwell.nets.files.nested import Start
from stepwell.tasks.classification import Task, validator

OnDrop = Literal["warn", "rollback"]


def watch_full_net(
    net: NestedNet, task: Task, max_drop: float, start: Start | None, *, trained: bool
) -> "FullNetWatch | None":
    """A watch over a full net that is `trained` before its sub-nets are; else none.

    Where it was converted, from `start`, and its accuracy cannot be compared, one line says so.
    """
    if start is not None and not (trained and task.validation):
        reason = (
            "there is no validation part: set --val-fraction above 0"
            if trained
            else "its classifier starts fresh, so no accuracy of before is known: --schedule two-phase "
            "trains it first"
        )
        warnings.warn(
            f"the full net is not watched while its sub-nets train ({reason})", stacklevel=3
        )
    return FullNetWatch(net, task, max_drop) if trained else None


class FullNetWatch:
    """Compares a trained full net's validation accuracy before and after its sub-nets are trained.

    Made before that training: it measures the full net as it stands, and remembers its weights.

    Args:
        max_drop: points of accuracy (percent) that the full net may lose.
    """

    def __init__(self, net: NestedNet, task: Task, max_drop: float) -> None:
        self.net = net
        self.max_drop = max_drop
        self.weights = {k: v.to("cpu", copy=True) for k, v in net.module.state_dict().items()}
        self.device = task.device
        self._validate = validator(net, task, [net.full])
        self.before = self._accuracy()

    def select(self, values: Mapping[str, float]) -> float:
        """Score of an epoch: mean accuracy over depths; those that keep the full net come first."""
        found = [values[f"{depth}/accuracy"] for depth in self.net.depths]
        return sum(found) / len(found) - self._lost(values[f"{self.net.full}/accuracy"])

    def settle(self, on_drop: OnDrop, train_norms: Callable[[], None]) -> dict[str, Any]:
        """Compare; where the full net has lost more than it may, say so or roll back.

        Args:
            train_norms: trains the sub-nets' own norms. It is called when the full net has got its
                weights of before, and each private norm the full net's.

        Returns:
            What the run's results say of it; nothing where there is no validation part.
        """
        if self._validate is None:
            return {}
        after = self._accuracy()
        rolled_back = on_drop == "rollback" and self._lost(after)
        if rolled_back:
            self.net.load_full(self.weights)
            train_norms()
            after = self._accuracy()
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
        accuracy = {"before": self.before, "after": after, "rolled_back": rolled_back}
        return {"ekd": {"full_net": accuracy}}

    def _accuracy(self) -> float:
        """Of the full net on the validation part; 0 where there is no such part."""
        if self._validate is None:
            return 0.0
        self.net.to(self.device)
        return self._validate()[f"{self.net.full}/accuracy"]

    def _lost(self, accuracy: float) -> bool:
        return 100 * (self.before - accuracy) > self.max_drop
