"""What `stepwell eval RUN --fidelity TEACHER` left in a run directory."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stepwell.files import read_json
from stepwell.report.run_record import RunRecord, as_mapping, number

Kind = Literal["percent", "points", "number"]
#: Scale and digits of a number of each kind.
FORMS: Mapping[Kind, tuple[float, str]] = {
    "percent": (100, "{:.1f}"),
    "points": (100, "{:+.1f}"),
    "number": (1, "{:.3f}"),
}
#: What is shown of a depth and its teacher, in this order: key, what it says, and its kind.
MEASURES: Sequence[tuple[str, str, Kind]] = (
    ("agreement", "top-1 agreement", "percent"),
    ("control/agreement", "... of the control", "percent"),
    ("transfer", "transfer: the difference, points", "points"),
    ("agreement_on_right", "agreement where the teacher is right", "percent"),
    ("agreement_on_errors", "... where it is wrong: same error", "percent"),
    ("control/agreement_on_errors", "... by the control", "percent"),
    ("errors_shared", "student's errors that are its teacher's", "percent"),
    ("kl", "KL(teacher || student), nats", "number"),
    ("control/kl", "... of the control", "number"),
    ("transfer_kl", "... of the control, less the student's", "number"),
    ("accuracy", "accuracy", "percent"),
    ("teacher/accuracy", "... of the teacher", "percent"),
    ("gain", "accuracy less the teacher's, points", "points"),
    ("nll", "NLL", "number"),
    ("teacher/nll", "... of the teacher", "number"),
    ("ece", "ECE", "number"),
    ("teacher/ece", "... of the teacher", "number"),
)


@dataclass(frozen=True)
class FidelityRecord:
    """What fidelity.json and fidelity.npz hold."""

    found: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    @property
    def depths(self) -> Sequence[str]:
        return [str(depth) for depth in self.found.get("depths") or ()]

    @property
    def classes(self) -> Sequence[str]:
        return [str(name) for name in self.found.get("classes") or ()]

    @property
    def parts(self) -> Mapping[str, Mapping[str, Any]]:
        """By part (train, augmented, test): "images" and "numbers"."""
        return as_mapping(self.found.get("parts"))

    @property
    def level(self) -> float:
        return number(self.found.get("level")) or 0.95

    def not_of(self, run: RunRecord) -> str:
        """What else than this run the numbers are of: other data, or an earlier training; or "".

        A record that does not say is taken for the run's.
        """
        data = as_mapping(self.found.get("data"))
        if data.get("fingerprint", of := run.data.get("fingerprint")) != of:
            return f"other data ({data.get('name', 'unnamed')})"
        trained = as_mapping(self.found.get("student")).get("trained")
        if trained is not None and trained != run.results.get("finished"):
            return f"an earlier training, which ended {trained}"
        return ""

    def number(self, part: str, depth: str, key: str) -> float | None:
        """A number of one depth, or of the teacher."""
        numbers = as_mapping(as_mapping(self.parts.get(part)).get("numbers"))
        name = key if key.startswith("teacher/") else f"{depth}/{key}"
        return number(numbers.get(name))

    def interval(self, part: str, depth: str, key: str) -> tuple[float, float, float] | None:
        """A number and the ends of its interval; both the number's own where it has none."""
        value = self.number(part, depth, key)
        if value is None:
            return None
        low, high = (self.number(part, depth, f"{key}/{end}") for end in ("low", "high"))
        return value, value if low is None else low, value if high is None else high


def read_fidelity(run: Path) -> FidelityRecord | None:
    """What is in the run directory; nothing where fidelity was not measured.

    Raises:
        ValueError: a file is damaged.
    """
    remedy = "measure it again with stepwell eval --fidelity, or delete it"
    file = run / "fidelity.json"
    if not file.is_file():
        return None
    found = read_json(file, remedy)
    arrays: dict[str, NDArray[Any]] = {}
    path = run / "fidelity.npz"
    if path.is_file():
        try:
            # numpy leaves a damaged file open that it has opened itself
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: cannot be read ({error}); {remedy}") from error
    return FidelityRecord(found, arrays)
