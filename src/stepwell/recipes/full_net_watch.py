"""The full net is watched while sub-nets train in its weights."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from stepwell.nets import NestedNet
from stepwell.nets.files.initial_weights import Start
from stepwell.tasks.classification import Task, validator

OnDrop = Literal["warn", "rollback"]


def watch_full_net(
    net: NestedNet, task: Task, max_drop: float, start: Start | None, *, trained: bool
) -> "FullNetWatch | None":
    """A watch over a full net that is `trained` before its sub-nets are; else none, with a warning."""
    if start is not None and not (trained and task.validation):
        reason = (
            "there is no validation part: set --val-fraction above 0"
            if trained
            else "its classifier starts fresh, so it has no accuracy to compare with: --schedule "
            "two-phase trains it first"
        )
        note = f"the full net is not watched while its sub-nets train ({reason})"
        warnings.warn(note, stacklevel=3)
    return FullNetWatch(net, task, max_drop) if trained else None


class FullNetWatch:
    """Compare a trained full net's validation accuracy before and after its sub-nets train.

    Made before that training, it remembers the weights; `max_drop` are points of accuracy (percent).
    """

    def __init__(self, net: NestedNet, task: Task, max_drop: float) -> None:
        self.net, self.max_drop, self.device = net, max_drop, task.device
        self.weights = {k: v.to("cpu", copy=True) for k, v in net.module.state_dict().items()}
        self.rolled_back = False
        self._validate = validator(net, task, [net.full])
        self.before = self._accuracy()

    def select(self, values: Mapping[str, float]) -> float:
        """Score an epoch: mean accuracy over depths; epochs that keep the full net come first."""
        accuracies = [values[f"{depth}/accuracy"] for depth in self.net.depths]
        return sum(accuracies) / len(accuracies) - self._lost(values[f"{self.net.full}/accuracy"])

    def roll_back(self, on_drop: OnDrop) -> bool:
        """Give the full net its old weights if it lost too much and `on_drop` says so; True if it did.

        Each private norm then starts as the full net's, and the caller trains these norms.
        """
        after = self._accuracy()
        self.rolled_back = on_drop == "rollback" and self._lost(after)
        if self.rolled_back:
            self.net.load_full(self.weights)
        elif self._lost(after):
            warnings.warn(
                f"the full net lost {100 * (self.before - after):.1f} points of validation accuracy "
                f"while its sub-nets trained ({100 * self.before:.1f} to {100 * after:.1f} %): to keep "
                "it as it was, use --on-drop rollback with another --out",
                stacklevel=3,
            )
        return self.rolled_back

    def record(self) -> dict[str, Any]:
        """The entry of the run's results; empty without a validation part."""
        if self._validate is None:
            return {}
        if self.rolled_back:
            warnings.warn(
                f"the full net lost more than {self.max_drop:g} points of validation accuracy while "
                f"its sub-nets trained: rolled back to what it was ({100 * self.before:.1f} %), and "
                "only the sub-nets' own norms were trained",
                stacklevel=3,
            )
        values = {"before": self.before, "after": self._accuracy()}
        return {"ekd": {"full_net": values | {"rolled_back": self.rolled_back}}}

    def _accuracy(self) -> float:
        """Accuracy of the full net on the validation part; 0 without such a part."""
        if self._validate is None:
            return 0.0
        self.net.to(self.device)
        return self._validate()[f"{self.net.full}/accuracy"]

    def _lost(self, accuracy: float) -> bool:
        return 100 * (self.before - accuracy) > self.max_drop
