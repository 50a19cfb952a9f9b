"""What an update did: its report, and the neighbourhood of what moved most."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepwell.data.triples import Fact
from stepwell.kg.embedding import KINDS
from stepwell.kg.online import Learned
from stepwell.kg.ranking import distances
from stepwell.kg.state import Change, State
from stepwell.kg.update_history import SHOWN, picture_of

#: Entities, and removed triples, that a report lists.
LISTED = 10


@dataclass(frozen=True)
class Report:
    """What an update did.

    added, removed: triples. new, gone: elements that joined the graph, and that left it, by name.
    affected: elements that were learnt again: how many. trained: triples of an epoch.
    moved: the affected entities whose joint vector moved most, and how far.
    unlearnt: mean ||h* + r* - t*|| of the removed triples before and after, if any was removed.
    forgotten: the first removed triples, each with that distance before and after.
    measures: of `evaluate`, where triples to test on were given.
    """

    added: int
    removed: int
    new: dict[str, list[str]]
    gone: dict[str, list[str]]
    affected: dict[str, int]
    trained: int
    moved: list[tuple[str, float]]
    unlearnt: tuple[float, float] | None
    forgotten: list[tuple[Fact, float, float]]
    seconds: float
    measures: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @staticmethod
    def of_nothing() -> "Report":
        """That of an update without any change."""
        nothing: dict[str, list[str]] = {kind: [] for kind in KINDS}
        none: dict[str, int] = {kind: 0 for kind in KINDS}  # noqa: C420  # keys of another type
        return Report(0, 0, nothing, nothing, none, 0, [], None, [], 0.0, {})


class Outcome:
    """What an update did to a graph: made once it is learnt, told once it is applied.

    Args:
        state: the graph, to which the update is not applied yet.
        change, learned: the update.
        added, removed: its triples.
    """

    def __init__(
        self,
        state: State,
        change: Change,
        learned: Learned,
        added: Sequence[Fact],
        removed: Sequence[Fact],
    ) -> None:
        self._state, self._change, self._learned = state, change, learned
        self._added, self._removed = added, removed
        self._rows = state.rows_of(removed)
        self._far = distances(state.joint, self._rows)
        self._moved = _moved(state, learned)
        self._shown = self._picked()
        self._before = state.joint["entity"][self._shown]
        count = state.count["entity"]
        self._there = [i < len(count) and bool(count[i]) for i in self._shown]

    def report(self, seconds: float, measures: dict[str, float]) -> Report:
        """The report, once the update is applied."""
        names = self._state.names
        far = distances(self._state.joint, self._rows)
        each = zip(self._removed[:LISTED], self._far.tolist(), far.tolist(), strict=False)
        return Report(
            len(self._added),
            len(self._removed),
            {kind: [names[kind][i] for i in self._change.new[kind]] for kind in KINDS},
            {kind: [names[kind][i] for i in self._change.gone[kind]] for kind in KINDS},
            {kind: len(self._learned.affected[kind]) for kind in KINDS},
            self._learned.trained,
            self._moved,
            (float(self._far.mean()), float(far.mean())) if len(far) else None,
            [*each],
            seconds,
            measures,
        )

    def picture(self) -> Mapping[str, Any]:
        """An entity that moved much and neighbours of it, before and after; once it is applied."""
        if not self._shown:
            return {}
        names, after = self._state.names["entity"], self._state.joint["entity"][self._shown]
        return picture_of([names[i] for i in self._shown], self._before, after, self._there)

    def _picked(self) -> list[int]:
        """Of those that moved most, the one with most neighbours; these, and some of theirs."""
        centres = [self._state.names["entity"].number(name) for name, _ in self._moved]
        near = max(([c, *self._around([c])] for c in centres), key=len, default=[])
        return [*dict.fromkeys([*near, *self._around(near[1:], at_most=4)])][:SHOWN]

    def _around(self, centres: Sequence[int], at_most: int = SHOWN // 2) -> list[int]:
        """Neighbours after the update, and before: one that was lost is why an entity moved."""
        asked = np.array(centres, dtype=np.int64)
        sides = self._change.after.neighbours, self._state.facts.neighbours
        found = [i for side in sides for i in side.of(asked, at_most).value.tolist()]
        return [*dict.fromkeys(found)]


def _moved(state: State, learned: Learned) -> list[tuple[str, float]]:
    """The affected entities whose joint vector moves most, and how far."""
    which, rows = learned.joint["entity"]
    old = np.isin(which, learned.affected["entity"])
    far: Tensor = (rows - state.joint["entity"][torch.from_numpy(which)]).norm(dim=1)
    value, place = far[torch.from_numpy(old)].topk(min(LISTED, int(old.sum())))
    names, affected = state.names["entity"], which[old]
    return [(names[affected[i]], d) for i, d in zip(place.tolist(), value.tolist(), strict=True)]
