"""The report of an update, a picture of an entity that it moved, and the record of both in the run."""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.data.triples import Fact
from stepwell.files import read_json, write_whole
from stepwell.kg.embedding import KINDS, Kind
from stepwell.kg.online import UpdateResult
from stepwell.kg.ranking import distances
from stepwell.kg.state import Change, State

#: Entities, and removed triples, that a report lists.
LISTED = 10
#: The most entities in a picture.
MAX_PICTURED = 24
#: The last updates in `updates.json` of the run; only the last one has a picture.
MAX_UPDATES = 100


@dataclass(frozen=True)
class Report:
    """The effect of an update.

    added, removed: numbers of triples. new, gone: names of elements that joined and left the graph.
    affected: number of trained old elements. trained: triples of an epoch.
    moved: the affected entities whose joint vector moved most, with the distance.
    unlearnt: mean ||h* + r* - t*|| of removed triples before and after; None if none were removed.
    forgotten: the first removed triples, each with that distance before and after.
    measures: of `evaluate`, if test triples were given.
    """

    added: int
    removed: int
    new: dict[Kind, list[str]]
    gone: dict[Kind, list[str]]
    affected: dict[Kind, int]
    trained: int
    moved: list[tuple[str, float]]
    unlearnt: tuple[float, float] | None
    forgotten: list[tuple[Fact, float, float]]
    seconds: float
    measures: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    @staticmethod
    def of_nothing() -> "Report":
        """The report of an update without changes."""
        nothing: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
        return Report(0, 0, nothing, nothing, dict.fromkeys(KINDS, 0), 0, [], None, [], 0.0, {})


class ReportBuilder:
    """Collects the state before an update, and reports on it afterwards.

    Args:
        state: the graph; the update is not applied yet.
        change, result: the update.
        removed: its removed triples.
    """

    def __init__(
        self, state: State, change: Change, result: UpdateResult, removed: Sequence[Fact]
    ) -> None:
        self._state, self._change, self._result, self._removed = state, change, result, removed
        self._rows = state.rows_of(removed)
        self._far = distances(state.joint, self._rows)
        self._moved = _moved(state, result)
        self._pictured = self._entities_to_picture()
        self._before = state.joint["entity"][self._pictured]
        count = state.count["entity"]
        self._existed = [i < len(count) and bool(count[i]) for i in self._pictured]

    def report(self, seconds: float, measures: dict[str, float]) -> Report:
        """The report; call it when the update is applied."""
        names, change = self._state.names, self._change
        far = distances(self._state.joint, self._rows)
        each = zip(self._removed[:LISTED], self._far.tolist(), far.tolist(), strict=False)
        return Report(
            added=len(change.rows) - len(self._removed),
            removed=len(self._removed),
            new={kind: [names[kind][i] for i in change.new[kind]] for kind in KINDS},
            gone={kind: [names[kind][i] for i in change.gone[kind]] for kind in KINDS},
            affected={kind: len(self._result.affected[kind]) for kind in KINDS},
            trained=self._result.trained,
            moved=self._moved,
            unlearnt=(float(self._far.mean()), float(far.mean())) if len(far) else None,
            forgotten=[*each],
            seconds=seconds,
            measures=measures,
        )

    def picture(self) -> Mapping[str, Any]:
        """An entity that moved much and its neighbours, before and after the applied update."""
        if not self._pictured:
            return {}
        names, after = self._state.names["entity"], self._state.joint["entity"][self._pictured]
        return picture_of([names[i] for i in self._pictured], self._before, after, self._existed)

    def _entities_to_picture(self) -> list[int]:
        """The moved entity with most neighbours, its neighbours, and some neighbours of these."""
        centres = [self._state.names["entity"].number(name) for name, _ in self._moved]
        near = max(([c, *self._around([c])] for c in centres), key=len, default=[])
        return [*dict.fromkeys([*near, *self._around(near[1:], at_most=4)])][:MAX_PICTURED]

    def _around(self, centres: Sequence[int], at_most: int = MAX_PICTURED // 2) -> list[int]:
        """Neighbours after and before the update, because a lost neighbour moves an entity, too."""
        which = np.array(centres, dtype=np.int64)
        sides = self._change.after.neighbours, self._state.snapshot.neighbours
        return [*dict.fromkeys(i for s in sides for i in s.of(which, at_most).value.tolist())]


def _moved(state: State, result: UpdateResult) -> list[tuple[str, float]]:
    """The affected entities whose joint vector moves most, with the distance."""
    which, rows = result.joint["entity"]
    affected = np.isin(which, result.affected["entity"])
    moved = (rows - state.joint["entity"][torch.from_numpy(which)]).norm(dim=1)
    value, place = moved[torch.from_numpy(affected)].topk(min(LISTED, int(affected.sum())))
    names, numbers = state.names["entity"], which[affected]
    return [(names[numbers[i]], d) for i, d in zip(place.tolist(), value.tolist(), strict=True)]


def record_update(
    run: Path, report: Mapping[str, Any], picture: Callable[[], Mapping[str, Any]]
) -> None:
    """Append an update to `updates.json` of a run, for the report page. A failure only warns.

    Args:
        report: the update's report, for JSON.
        picture: draws the neighbourhood of an entity that moved much.
    """

    def append(history: dict[str, Any]) -> None:
        before = history["updates"]
        for old in before:
            old.pop("picture", None)
        entry = {**report, "when": time.strftime("%Y-%m-%d %H:%M:%S"), "picture": picture()}
        for key in ("new", "gone"):
            entry[key] = {kind: len(names) for kind, names in report[key].items()}
        history["total"] = history.get("total", len(before)) + 1
        history["updates"] = [*before[1 - MAX_UPDATES :], entry]

    _rewrite(run / "updates.json", append)


def record_measures(run: Path, measures: Mapping[str, float]) -> None:
    """Add measures of test triples to the last update."""
    _rewrite(run / "updates.json", lambda h: h["updates"][-1].update(measures=dict(measures)))


def _rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    try:
        history = read_json(file, "") if file.exists() else {"updates": []}
        change(history)
        write_whole(file, json.dumps(history, indent=1).encode())
    except Exception as error:  # whatever it is, the update is done
        warnings.warn(f"{file}: the update was not recorded for the report ({error})", stacklevel=5)


def picture_of(
    names: Sequence[str],
    before: Float[Tensor, "entities dim"],
    after: Float[Tensor, "entities dim"],
    existed: Sequence[bool],
) -> dict[str, Any]:
    """Project vectors before and after an update onto their first two principal components.

    Args:
        names: of the entities; the first is the centre.
        existed: marks the entities that were in the graph before; other rows of `before` are not used.
    """
    both = torch.cat([before[torch.tensor(list(existed))], after])
    middle = both.mean(0)
    _, _, axes = torch.linalg.svd(both - middle, full_matrices=False)
    plane = axes[:2].T
    places = [((x - middle) @ plane).tolist() for x in (before, after)]
    return {
        "names": list(names),
        "before": [p if old else None for p, old in zip(places[0], existed, strict=True)],
        "after": places[1],
    }
