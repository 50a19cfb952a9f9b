"""What a finished run directory holds, read once and tolerant of absent optional parts."""

import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.files import read_json
from stepwell.results import read_results


@dataclass(frozen=True)
class Predictions:
    """The test predictions of every depth, and the example pictures the recipe chose.

    labels: (N,) class indices.
    probabilities: by depth, shallow to deep, (N, classes).
    images: (M, H, W, 3) bytes; picture i shows example image_index[i].
    """

    labels: NDArray[np.int64]
    probabilities: Mapping[str, NDArray[np.float64]]
    images: NDArray[np.uint8]
    image_index: NDArray[np.int64]

    def classes(self, depth: str) -> NDArray[np.int64]:
        """The class each example gets at `depth`, (N,)."""
        return np.asarray(self.probabilities[depth].argmax(axis=1), dtype=np.int64)

    def confidence(self, depth: str) -> NDArray[np.float64]:
        """The probability of that class, (N,)."""
        return np.asarray(self.probabilities[depth].max(axis=1), dtype=np.float64)

    def disagree(self) -> NDArray[np.bool_]:
        """Whether any two depths give an example different classes, (N,)."""
        chosen = np.stack([self.classes(depth) for depth in self.probabilities])
        return np.asarray((chosen != chosen[0]).any(axis=0), dtype=np.bool_)


@dataclass(frozen=True)
class Phase:
    """The epochs of one phase: its `lines` of metrics.jsonl, `start` epochs into the run."""

    name: str
    start: int
    lines: Sequence[Mapping[str, Any]]

    @property
    def end(self) -> int:
        """The last epoch of the phase, counted through the whole run."""
        return self.start + max(_epoch(line) for line in self.lines)


@dataclass(frozen=True)
class RunRecord:
    """One finished run. `name` is how the page calls it."""

    path: Path
    name: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    phases: Sequence[Phase]
    predictions: Predictions | None

    @property
    def recipe(self) -> str:
        return str(self.config.get("recipe", "run"))

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The recipe's arguments; groups of them flattened to names such as "loop.epochs"."""
        return dict(_flat(as_mapping(self.config.get("arguments"))))

    @property
    def seed(self) -> Any:
        """The seed, wherever the recipe groups it; None where it takes none."""
        found = (value for name, value in self.arguments.items() if name.split(".")[-1] == "seed")
        return next(found, None)

    @property
    def data(self) -> Mapping[str, Any]:
        return as_mapping(self.config.get("data"))

    @property
    def unlabeled(self) -> str:
        """Where images came from that took the place of the training part; empty where none did."""
        return str(self.arguments.get("unlabeled") or "")

    @property
    def test(self) -> Mapping[str, Any]:
        return as_mapping(self.results.get("test"))

    @property
    def depths(self) -> list[str]:
        """Names of the depths, shallow to deep; the last one is the full net."""
        return _depths(self.results)

    @property
    def row(self) -> str:
        """What a row of its results is: a depth, or a choice where the network chooses."""
        return "choice" if self.recipe == "drnet" else "depth"

    @property
    def examples(self) -> int | None:
        """How many test examples the accuracies are over, where the run says so."""
        size = number(self.results.get("examples", self.data.get("test")))
        return None if size is None or math.isnan(size) else int(size)

    def score(self, depth: str, metric: str) -> float | None:
        """A test metric of one depth, None where the run has none; may be NaN."""
        return number(self.test.get(f"{depth}/{metric}"))

    def churn(self, a: str, b: str) -> float | None:
        """The share of test examples that two depths give different classes, if the run says."""
        return number(self._churn.get(f"{a}/churn/{b}", self._churn.get(f"{b}/churn/{a}")))

    def flips(self, depth: str) -> tuple[float | None, float | None]:
        """Shares that the full net has right and `depth` wrong, and the reverse, if the run says."""
        found = (self._churn.get(f"{depth}/{kind}_flips") for kind in ("negative", "positive"))
        made_wrong, made_right = map(number, found)
        return made_wrong, made_right

    @property
    def _churn(self) -> Mapping[str, Any]:
        return as_mapping(self.results.get("churn"))

    def cost(self, depth: str) -> Mapping[str, Any]:
        """What results.json says `depth` costs; empty where it does not say."""
        return as_mapping(as_mapping(self.results.get("costs")).get(depth))

    def class_name(self, index: int) -> str:
        """The class's name, or its number where the data set names none."""
        names = self.data.get("classes") or ()
        return str(names[index]) if index < len(names) else str(index)


def read_run(path: Path, name: str) -> RunRecord:
    """Read the run directory `path`.

    Raises:
        ValueError: `path` is no run directory, is not finished, or holds a damaged file.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; give the --out folder of a `stepwell train`")
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path}: not a run directory (no config.json); give the --out folder of a "
            "`stepwell train`"
        )
    config = read_json(path / "config.json", "train the run again")
    if not (path / "results.json").is_file():
        raise ValueError(
            f"{path}: not finished (no results.json yet); wait for its training, or start "
            f"`stepwell train {config.get('recipe', 'RECIPE')}` again with the same arguments: "
            "it resumes"
        )
    results = read_results(path)
    predictions = _read_predictions(path / "predictions.npz", _depths(results))
    return RunRecord(path, name, config, results, _read_phases(path), predictions)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """`value` as a float, None if it is no number."""
    return float(value) if isinstance(value, int | float) else None


def finite(value: Any) -> float:
    """`value` as a float that matplotlib can leave out: NaN for whatever is not a finite number."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else math.nan


def _flat(arguments: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in arguments.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{name}.{inner}", found) for inner, found in _flat(value))
        else:
            yield name, value


def _depths(results: Mapping[str, Any]) -> list[str]:
    scored = (key.partition("/")[0] for key in as_mapping(results.get("test")) if "/" in key)
    return list(dict.fromkeys([*as_mapping(results.get("costs")), *scored]))


def _read_phases(path: Path) -> list[Phase]:
    file = path / "metrics.jsonl"
    if not file.is_file():
        return []
    phases: list[Phase] = []
    parsed = _parse(file.read_text(encoding="utf-8", errors="replace").splitlines())
    for name, group in groupby(parsed, key=lambda line: str(line.get("phase", "train"))):
        lines: list[Mapping[str, Any]] = []
        for line in group:
            # A run that was cut off and resumed logs an epoch twice: what came last counts.
            lines = [kept for kept in lines if _epoch(kept) < _epoch(line)] + [line]
        phases.append(Phase(name, phases[-1].end if phases else 0, lines))
    return phases


def _parse(lines: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a process that was killed can leave half a line
        if isinstance(line, dict) and number(line.get("epoch")) is not None:
            yield line


def _epoch(line: Mapping[str, Any]) -> int:
    return int(line["epoch"])


def _read_predictions(path: Path, depths: Sequence[str]) -> Predictions | None:
    if not path.is_file():
        return None
    try:
        # numpy leaves a damaged file open that it has opened itself
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            labels = np.asarray(arrays["labels"], dtype=np.int64)
            stored = [key.removeprefix("logits/") for key in arrays if key.startswith("logits/")]
            # results.json knows the order from shallow to deep
            ordered = sorted(stored, key=lambda d: depths.index(d) if d in depths else len(depths))
            probabilities = {depth: _softmax(arrays[f"logits/{depth}"]) for depth in ordered}
            images = np.asarray(arrays.get("images", np.zeros((0, 1, 1, 3))), dtype=np.uint8)
            index = np.asarray(arrays.get("image_index", np.zeros(0)), dtype=np.int64)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); delete it to report without examples"
        ) from error
    sizes = {len(labels), *(len(rows) for rows in probabilities.values())}
    if len(sizes) != 1 or len(index) != len(images) or (index >= len(labels)).any():
        raise ValueError(
            f"{path}: labels, logits and images are of unlike lengths; delete it to report "
            "without examples"
        )
    return Predictions(labels, probabilities, images, index) if probabilities else None


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)
