"""Read the numbers that `stepwell eval RUN --fidelity TEACHER` left in a run directory."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.files import damaged, read_json
from stepwell.report.run_record import RunRecord, as_mapping, number


@dataclass(frozen=True)
class FidelityRecord:
    """The content of fidelity.json and fidelity.npz."""

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
        """Name the other data or earlier training that the numbers are of; "" if of this run.

        A record that does not say counts as this run's.
        """
        data = as_mapping(self.found.get("data"))
        if data.get("fingerprint", of := run.data.get("fingerprint")) != of:
            return f"other data ({data.get('name', 'unnamed')})"
        trained = as_mapping(self.found.get("student")).get("trained")
        if trained is not None and trained != run.results.get("finished"):
            return f"an earlier training, which ended {trained}"
        return ""

    def number(self, part: str, depth: str, key: str) -> float | None:
        """Give a number of one depth, or of the teacher."""
        numbers = as_mapping(as_mapping(self.parts.get(part)).get("numbers"))
        name = key if key.startswith("teacher/") else f"{depth}/{key}"
        return number(numbers.get(name))

    def interval(self, part: str, depth: str, key: str) -> tuple[float, float, float] | None:
        """Give a number and the ends of its interval, which equal the number if it has no interval."""
        value = self.number(part, depth, key)
        if value is None:
            return None
        low, high = (self.number(part, depth, f"{key}/{end}") for end in ("low", "high"))
        return value, value if low is None else low, value if high is None else high


def read_fidelity(run: Path) -> FidelityRecord | None:
    """Read fidelity.json and fidelity.npz; None if fidelity was not measured.

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
            raise damaged(path, error, remedy) from error
    return FidelityRecord(found, arrays)
