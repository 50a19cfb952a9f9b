"""A finished run directory, read once; optional parts may be absent."""

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

from stepwell.files import damaged, read_json, result_of
from stepwell.kinds import noun_of
from stepwell.measures import score_among
from stepwell.results import read_evaluations, read_results, row_name


@dataclass(frozen=True)
class Predictions:
    """The test predictions of every row, and the example pictures of the recipe.

    labels: (N,) class indices.
    probabilities: by row (a depth, a choice), in the order of the results, (N, classes).
    shown: M examples, (H, W, 3) bytes of a picture each, or a text; the i-th is example image_index[i].
    """

    labels: NDArray[np.int64]
    probabilities: Mapping[str, NDArray[np.float64]]
    shown: Sequence[NDArray[np.uint8] | str]
    image_index: NDArray[np.int64]

    def classes(self, row: str) -> NDArray[np.int64]:
        """Give the class of each example at a row, (N,)."""
        return np.asarray(self.probabilities[row].argmax(axis=1), dtype=np.int64)

    def confidence(self, row: str) -> NDArray[np.float64]:
        """Give the probability of that class, (N,)."""
        return np.asarray(self.probabilities[row].max(axis=1), dtype=np.float64)

    def disagree(self) -> NDArray[np.bool_]:
        """Mark examples to which two rows give different classes, (N,)."""
        chosen = np.stack([self.classes(row) for row in self.probabilities])
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
    """One finished run, with its `name` on the page.

    results: of the training; of the last evaluation on the run's own test part where there was one.
    evaluations: those on other data, of other rows or within a budget.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    phases: Sequence[Phase]
    predictions: Predictions | None
    evaluations: Sequence[Mapping[str, Any]] = ()

    @property
    def recipe(self) -> str:
        """The recipe that trained it."""
        return str(self.config.get("recipe", "run"))

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The recipe's arguments; groups of them flattened to names such as "loop.epochs"."""
        return dict(_flat(as_mapping(self.config.get("arguments"))))

    @property
    def seed(self) -> Any:
        """The seed, wherever the recipe groups it; None where it takes none."""
        seeds = (value for name, value in self.arguments.items() if name.split(".")[-1] == "seed")
        return next(seeds, None)

    @property
    def data(self) -> Mapping[str, Any]:
        """What config.json says about the data."""
        return as_mapping(self.config.get("data"))

    @property
    def unlabeled(self) -> str:
        """Source of the images that replaced the training part; empty if none did."""
        return str(self.arguments.get("unlabeled") or "")

    @property
    def test(self) -> Mapping[str, Any]:
        """Test results by "ROW/measure"."""
        return as_mapping(self.results.get("test"))

    def system_results(self, system: str) -> Mapping[str, Any]:
        """Give what only one system measured; empty if the run has none of it."""
        return as_mapping(self.results.get(system))

    @property
    def kind(self) -> str:
        """Kind of the network (see `stepwell.kinds`)."""
        return str(self.results["kind"])

    @property
    def rows(self) -> list[str]:
        """Names of the rows of its results, in order; the last depth is the full net."""
        return _rows(self.results)

    @property
    def row(self) -> str:
        """The word for a row, such as "depth" or "choice"."""
        return str(self.results.get("rows") or "row")

    @property
    def examples(self) -> int | None:
        """Number of test examples, if the run says it."""
        size = number(self.results.get("examples", self.data.get("test")))
        return None if size is None or math.isnan(size) else int(size)

    @property
    def noun(self) -> str:
        """One input in a word."""
        return noun_of(self.kind)

    @property
    def measure(self) -> str:
        """The measure that figures show: accuracy, or that of numbers."""
        return score_among(self.test)

    def score(self, row: str, measure: str) -> float | None:
        """Give a test measure of one row, None if the run has none; may be NaN."""
        return number(self.test.get(f"{row}/{measure}"))

    def churn(self, a: str, b: str) -> float | None:
        """Give the share of test examples with different classes at two rows, if the run has it."""
        return number(self._churn.get(f"{a}/churn/{b}", self._churn.get(f"{b}/churn/{a}")))

    def flips(self, row: str) -> tuple[float | None, float | None]:
        """Give the shares that only the last row has right, and only `row`, if the run has them."""
        shares = (self._churn.get(f"{row}/{kind}_flips") for kind in ("negative", "positive"))
        made_wrong, made_right = map(number, shares)
        return made_wrong, made_right

    @property
    def _churn(self) -> Mapping[str, Any]:
        return as_mapping(self.results.get("churn"))

    def cost(self, row: str) -> Mapping[str, Any]:
        """Give the costs of a row; empty if the run has none."""
        return as_mapping(as_mapping(self.results.get("costs")).get(row))

    @property
    def measured(self) -> tuple[str, str]:
        """When and on which device the last evaluation measured; empty if only the training did."""
        about = (self.results.get(key) for key in ("date", "device"))
        date, device = (str(value or "") for value in about)
        return date, device

    def confusion(self, row: str) -> Mapping[str, Mapping[str, int]]:
        """Count a row's examples by true and predicted class; older runs counted none."""
        if known := as_mapping(as_mapping(self.results.get("confusion")).get(row)):
            return known
        counts: dict[str, dict[str, int]] = {}
        if self.predictions is not None and row in self.predictions.probabilities:
            labels, answers = self.predictions.labels, self.predictions.classes(row)
            for true, answer in sorted(zip(labels.tolist(), answers.tolist(), strict=True)):
                by_answer = counts.setdefault(self.class_name(true), {})
                by_answer[self.class_name(answer)] = by_answer.get(self.class_name(answer), 0) + 1
        return counts

    @property
    def classes(self) -> list[str]:
        """Names of the classes, if the data has names."""
        return [str(name) for name in self.data.get("classes") or ()]

    def class_name(self, index: int) -> str:
        """Give a class's name, or its number if the data set has no names."""
        names = self.data.get("classes") or ()
        return str(names[index]) if index < len(names) else str(index)


@dataclass(frozen=True)
class FidelityRecord:
    """The content of fidelity.json and fidelity.npz."""

    content: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    @property
    def depths(self) -> Sequence[str]:
        """The depths that were compared with the teacher."""
        return [str(depth) for depth in self.content.get("depths") or ()]

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""
        return [str(name) for name in self.content.get("classes") or ()]

    @property
    def noun(self) -> str:
        """The word for examples; older records do not say it."""
        return str(self.content.get("noun", "images"))

    @property
    def parts(self) -> Mapping[str, Mapping[str, Any]]:
        """By part (train, augmented, test): "images" and "numbers"."""
        return as_mapping(self.content.get("parts"))

    @property
    def level(self) -> float:
        """The level of the confidence intervals."""
        return number(self.content.get("level")) or 0.95

    def not_of(self, run: RunRecord) -> str:
        """Name the other data or earlier training that the numbers are of; "" if of this run.

        A record that does not say counts as this run's.
        """
        data = as_mapping(self.content.get("data"))
        if data.get("fingerprint", fingerprint := run.data.get("fingerprint")) != fingerprint:
            return f"other data ({data.get('name', 'unnamed')})"
        trained = as_mapping(self.content.get("student")).get("trained")
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


def read_run(path: Path, name: str) -> RunRecord:
    """Read the run directory `path`; ValueError if it is none, is not finished or is damaged."""
    config = read_json(result_of(path, "config.json"), "train the run again")
    result_of(path, "results.json")
    results = read_results(path)
    predictions = _read_predictions(path / "predictions.npz", results)
    phases = _read_phases(path, results)
    others = []
    for evaluation in read_evaluations(path):
        on_test_part = as_mapping(evaluation.get("data")).get("own") and not evaluation.get("at")
        if on_test_part and evaluation.get("rows") == results.get("rows"):
            results = results | {key: value for key, value in evaluation.items() if key != "data"}
        else:
            others.append(evaluation)
    return RunRecord(path, name, config, results, phases, predictions, others)


def read_fidelity(run: Path) -> FidelityRecord | None:
    """Read what `stepwell eval --fidelity` left in a run, if any; ValueError if it is damaged."""
    remedy = "measure it again with stepwell eval --fidelity, or delete it"
    if not (run / "fidelity.json").is_file():
        return None
    content, path = read_json(run / "fidelity.json", remedy), run / "fidelity.npz"
    return FidelityRecord(content, read_arrays(path, remedy) if path.is_file() else {})


def read_arrays(path: Path, remedy: str, needed: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz file; ValueError if it is damaged or lacks a `needed` array."""
    try:
        # numpy leaves a damaged file open that it has opened itself
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in dict.fromkeys([*needed, *stored])}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        # numpy advises to load such a file all the same, which would run its code
        reason = "it is no file of arrays" if "pickle" in str(error) else error
        raise damaged(path, reason, remedy) from error


def as_mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """`value` as a float, None if it is no number."""
    return float(value) if isinstance(value, int | float) else None


def finite(value: Any) -> float:
    """`value` as a float that matplotlib can leave out: NaN for whatever is not a finite number."""
    as_float = number(value)
    return as_float if as_float is not None and math.isfinite(as_float) else math.nan


def _flat(arguments: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in arguments.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in _flat(value))
        else:
            yield name, value


def _rows(results: Mapping[str, Any]) -> list[str]:
    scored = (key.partition("/")[0] for key in as_mapping(results.get("test")) if "/" in key)
    return list(dict.fromkeys([*as_mapping(results.get("costs")), *scored]))


def _read_phases(path: Path, results: Mapping[str, Any]) -> list[Phase]:
    file = path / "metrics.jsonl"
    if not file.is_file():
        return []
    phases: list[Phase] = []
    parsed = _parse(file.read_text(encoding="utf-8", errors="replace").splitlines())
    if results["kind"] == "resolution":
        parsed = ({row_name(key): value for key, value in line.items()} for line in parsed)
    for name, group in groupby(parsed, key=lambda line: str(line.get("phase", "train"))):
        lines: list[Mapping[str, Any]] = []
        for line in group:
            # A run that was cut off and resumed logs an epoch twice: what came last counts.
            lines = [earlier for earlier in lines if _epoch(earlier) < _epoch(line)] + [line]
        phases.append(Phase(name, phases[-1].end if phases else 0, lines))
    return phases


def _parse(lines: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    for text in lines:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # a process that was killed can leave half a line
        if isinstance(line, dict) and number(line.get("epoch")) is not None:
            yield line


def _epoch(line: Mapping[str, Any]) -> int:
    return int(line["epoch"])


def _read_predictions(path: Path, results: Mapping[str, Any]) -> Predictions | None:
    if not path.is_file():
        return None
    remedy = "delete it to report without examples"
    rows = _rows(results)
    name_of = row_name if results["kind"] == "resolution" else str
    arrays = read_arrays(path, remedy, ["labels"])
    labels = np.asarray(arrays["labels"], dtype=np.int64)
    logits = {name_of(key.removeprefix("logits/")): arrays[key] for key in arrays if "logits/" in key}
    ordered = sorted(logits, key=lambda r: rows.index(r) if r in rows else len(rows))
    shown: Sequence[NDArray[np.uint8] | str] = [*map(str, arrays.get("texts", ()))]
    shown = shown or [*np.asarray(arrays.get("images", np.zeros((0, 1, 1, 3))), dtype=np.uint8)]
    index = np.asarray(arrays.get("image_index", np.zeros(0)), dtype=np.int64)
    shapes = {(2, len(labels)), *((z.ndim, len(z)) for z in logits.values())}
    if len(shapes) != 1 or len(index) != len(shown) or (index >= len(labels)).any():
        raise damaged(path, "labels, logits and examples are of unlike lengths", remedy)
    probabilities = {row: _softmax(logits[row]) for row in ordered}
    return Predictions(labels, probabilities, shown, index) if probabilities else None


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)
