"""The full net is watched while sub-nets train in its weights."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

from stepwell.measures import MEASURES, score_among
from stepwell.nets import NestedNet
from stepwell.nets.files.initial_weights import Start
from stepwell.tasks.task import Task

OnDrop = Literal["warn", "rollback"]
#: Measures a network; gives numbers by "ROW/measure".
Validate = Callable[[], Mapping[str, float]]


def watch_full_net(
    net: NestedNet, task: Task, max_drop: float, start: Start | None, *, trained: bool,
    validate: Validate | None = None,
) -> "FullNetWatch | None":  # fmt: skip
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
    return FullNetWatch(net, task, max_drop, validate) if trained else None


class FullNetWatch:
    """Compare a trained full net's validation accuracy before and after its sub-nets train.

    Made before that training, it remembers the weights. `max_drop` are points of accuracy (percent); of
    numbers, hundredths of the correlation. `validate` measures the full net.
    """

    #: The measure that is compared.
    score = "accuracy"

    def __init__(self, net: NestedNet, task: Task, max_drop: float, validate: Validate | None) -> None:
        self.net, self.max_drop, self.device = net, max_drop, task.device
        self.weights = {k: v.to("cpu", copy=True) for k, v in net.module.state_dict().items()}
        self.rolled_back = False
        self._validate = validate
        self.before = self._measure()

    def select(self, values: Mapping[str, float]) -> float:
        """Score an epoch: mean accuracy over depths; epochs that keep the full net come first."""
        scores = [values[f"{depth}/{self.score}"] for depth in self.net.depths]
        return sum(scores) / len(scores) - self._lost(values[f"{self.net.full}/{self.score}"])

    def roll_back(self, on_drop: OnDrop) -> bool:
        """Give the full net its old weights if it lost too much and `on_drop` says so; True if it did.

        Each private norm then starts as the full net's, and the caller trains these norms.
        """
        after = self._measure()
        self.rolled_back = on_drop == "rollback" and self._lost(after)
        if self.rolled_back:
            self.net.load_full(self.weights)
        elif self._lost(after):
            warnings.warn(
                f"the full net lost {100 * (self.before - after):.1f} points of validation "
                f"{self._word()} while its sub-nets trained ({100 * self.before:.1f} to "
                f"{self._percent(after)}): to keep it as it was, use --on-drop rollback with another "
                "--out",
                stacklevel=3,
            )
        return self.rolled_back

    def record(self) -> dict[str, Any]:
        """The entry of the run's results; empty without a validation part."""
        if self._validate is None:
            return {}
        if self.rolled_back:
            warnings.warn(
                f"the full net lost more than {self.max_drop:g} points of validation {self._word()} "
                "while its sub-nets trained: rolled back to what it was "
                f"({self._percent(self.before)}), and only the sub-nets' own norms were trained",
                stacklevel=3,
            )
        values: dict[str, Any] = {"before": self.before, "after": self._measure()}
        values |= {"score": self.score} if self.score != "accuracy" else {}
        return {"ekd": {"full_net": values | {"rolled_back": self.rolled_back}}}

    def _measure(self) -> float:
        """The score of the full net on the validation part; 0 without such a part."""
        if self._validate is None:
            return 0.0
        self.net.to(self.device)
        values = self._validate()
        self.score = score_among(values)
        return values[f"{self.net.full}/{self.score}"]

    def _lost(self, score: float) -> bool:
        return 100 * (self.before - score) > self.max_drop

    def _word(self) -> str:
        return MEASURES[self.score].title

    def _percent(self, score: float) -> str:
        return f"{100 * score:.1f}{' %' * (self.score == 'accuracy')}"
