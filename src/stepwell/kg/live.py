"""A knowledge graph that lives in a run directory: changed, updated and asked while it changes."""

import json
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load, save

from stepwell.data.triples import Fact, check_fact
from stepwell.files import locked, read_json
from stepwell.kg.asking import Asked
from stepwell.kg.history import SHOWN, picture_of, remember
from stepwell.kg.journal import Journal, Record
from stepwell.kg.state import Change, learned_tables, metadata, read_state
from stepwell.methods.dkge_online import Learned, Online
from stepwell.nets.graph import COLUMNS, KINDS

#: A snapshot is written when the journal is longer than this share of it, and than so many bytes.
SNAPSHOT_SHARE, SNAPSHOT_BYTES = 0.5, 1 << 20
_CHANGE, _UPDATE = b"C", b"U"


@dataclass(frozen=True)
class Report:
    """What an update did.

    added, removed: triples. new, gone: elements that joined the graph, and that left it, by name.
    affected: elements that were learnt again: how many. trained: triples of an epoch.
    moved: the affected entities whose joint vector moved most, and how far.
    measures: of `evaluate`, where triples to test on were given.
    """

    added: int
    removed: int
    new: dict[str, list[str]]
    gone: dict[str, list[str]]
    affected: dict[str, int]
    trained: int
    moved: list[tuple[str, float]]
    seconds: float
    measures: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class KnowledgeGraph(Asked):
    """An embedded graph under change. Use it as a context manager, or call `close`.

    `add` and `remove` are on the disk when they return, and wait there for `update`, which learns them.
    An update is done or not done: a process killed at any moment loses nothing that had returned.

    Args:
        path: a run of `stepwell train dkge`.
        write: hold the run's lock, so that it can be changed; without it, only ask.

    Raises:
        ValueError: there is no such run, or one of its files is damaged.
        OSError: another process is writing to it.
    """

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self.path = path
        file = path / "net.safetensors"
        if not file.exists() or not (path / "results.json").exists():
            raise ValueError(f"{path} is no finished run of `stepwell train dkge`")
        config = path / "config.json"
        if config.exists() and read_json(config, "put it right").get("recipe") != "dkge":
            raise ValueError(
                f"{path} is a run of another recipe: name one of `stepwell train dkge`"
            )
        self._lock: FileLock | None = locked(path / "lock", path) if write else None
        try:
            self._load(file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def __enter__(self) -> "KnowledgeGraph":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- what is there

    @property
    def pending(self) -> tuple[int, int]:
        """Triples that were added and removed since the last update."""
        added, removed = self._changes()
        return len(added), len(removed)

    def __len__(self) -> int:
        """Triples, those that wait for an update counted in."""
        added, removed = self.pending
        return len(self._state.facts.index) + added - removed

    def __contains__(self, fact: Sequence[str]) -> bool:
        fact = check_fact(fact, "a triple")
        return self._pending.get(fact, self._learnt(fact))

    # -- changing

    def add(self, facts: Iterable[Sequence[str]]) -> int:
        """Add triples; those that are there count for nothing. On the disk when it returns.

        Returns:
            How many were new.

        Raises:
            ValueError: one is malformed; nothing was added.
        """
        checked = dict.fromkeys(check_fact(fact, "add") for fact in facts)
        return self._change({f: True for f in checked if f not in self})

    def remove(self, facts: Iterable[Sequence[str]], *, absent: str = "refuse") -> int:
        """Remove triples. On the disk when it returns.

        Args:
            absent: `refuse` triples that are not there, or `ignore` them.

        Returns:
            How many were there.

        Raises:
            ValueError: one is malformed or not there; nothing was removed.
        """
        if absent not in ("refuse", "ignore"):
            raise ValueError(f"absent is 'refuse' or 'ignore', not {absent!r}")
        checked = dict.fromkeys(check_fact(fact, "remove") for fact in facts)
        there = {f: False for f in checked if f in self}
        missing = [f for f in checked if f not in there]
        if missing and absent == "refuse":
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"not in the graph: {' | '.join(missing[0])}{more}; nothing was removed. Ignore "
                "absent triples with --ignore-absent (in Python: absent='ignore')"
            )
        return self._change(there)

    def update(self, how: Online = Online(), *, test: Iterable[Sequence[str]] = ()) -> Report:
        """Learn what was added and removed: only what that affects moves.

        Without any change it does nothing.

        Args:
            test: true triples to rank afterwards, as `evaluate` does; the report page shows the MRR.

        Raises:
            OSError: the result cannot be written; the graph is as it was before.
        """
        self._check_writes()
        started = time.monotonic()
        added, removed = self._changes()
        if not added and not removed:
            nothing: dict[str, list[str]] = {kind: [] for kind in KINDS}
            return Report(0, 0, nothing, nothing, dict.fromkeys(KINDS, 0), 0, [], 0.0, {})
        change, learned = self._state.learn(added, removed, how)
        moved = self._moves(learned)
        shown = self._shown(moved, change)
        tables = learned_tables(learned)
        # Numbers past those that were learnt are new, by this update or by one that failed.
        named = {k: self._state.names[k].names[len(self._state.count[k]) :] for k in KINDS}
        content = save(tables, {"names": json.dumps(named)})
        number = self._next
        self._journal.append(Record(_UPDATE, number, content))
        self._take(change, tables, number)
        self._snapshot_if_long()
        report = Report(
            len(added),
            len(removed),
            {k: [self._state.names[k][i] for i in change.new[k]] for k in KINDS},
            {k: [self._state.names[k][i] for i in change.gone[k]] for k in KINDS},
            {k: len(learned.affected[k]) for k in KINDS},
            learned.trained,
            moved,
            time.monotonic() - started,
            self.evaluate(asked) if (asked := list(test)) else {},
        )
        remember(self.path, report.as_dict(), self._picture(*shown) if shown else {})
        return report

    def snapshot(self) -> None:
        """Write the graph whole and drop what the journal repeats of it."""
        self._check_writes()
        self._state.write(self.path / "net.safetensors")
        # A kill here leaves records that the snapshot holds; their numbers say so.
        self._journal.restart(self._state.applied)

    # -- inside

    def _load(self, file: Path) -> None:
        for attempt in range(5):
            self._state = read_state(file)
            self._journal = Journal(self.path / "journal")
            records = [r for r in self._journal.records if r.number > self._state.applied]
            # Between reading the two, a writer may have put a newer snapshot in place.
            if not records or records[0].number == self._state.applied + 1:
                break
            if attempt == 4 or self._lock is not None:
                raise ValueError(
                    f"{self._journal.path} lacks the changes before number {records[0].number}, which "
                    f"{file} does not hold either: bring back copies of both"
                )
        self._pending: dict[Fact, bool] = {}
        for record in records:
            self._replay(record)

    def _replay(self, record: Record) -> None:
        if record.kind == _CHANGE:
            for *fact, there in json.loads(record.content):
                self._pending[check_fact(fact, str(self._journal.path))] = there
            return
        tables = load(record.content)
        names = json.loads(metadata(record.content)["names"])
        for kind in KINDS:
            for name in names[kind]:
                self._state.names[kind].add(name)
        self._take(Change.of(self._state, *self._changes()), tables, record.number)

    def _take(self, change: Change, tables: dict[str, torch.Tensor], number: int) -> None:
        self._state.apply(change, tables, number)
        self._pending = {}

    @property
    def _next(self) -> int:
        """The number of the next record; the journal may be empty, or end before the snapshot."""
        numbers = (record.number for record in self._journal.records[-1:])
        return 1 + max([self._state.applied, *numbers])

    def _change(self, facts: dict[Fact, bool]) -> int:
        self._check_writes()
        if facts:
            content = json.dumps([[*fact, there] for fact, there in facts.items()]).encode()
            self._journal.append(Record(_CHANGE, self._next, content))
            self._pending |= facts
        return len(facts)

    def _changes(self) -> tuple[list[Fact], list[Fact]]:
        """What is to be added and removed; what was added and removed again is neither."""
        added = [f for f, there in self._pending.items() if there and not self._learnt(f)]
        removed = [f for f, there in self._pending.items() if not there and self._learnt(f)]
        return added, removed

    def _learnt(self, fact: Fact) -> bool:
        if not all(fact[i] in self._state.names[kind] for i, kind in COLUMNS):
            return False
        return bool(self._state.facts.index.holds(self._state.rows_of([fact]))[0])

    def _awaits(self, name: str) -> bool:
        return any(name in fact for fact in self._pending)

    def _moves(self, learned: Learned, most: int = 10) -> list[tuple[str, float]]:
        which, rows = learned.joint["entity"]
        old = np.isin(which, learned.affected["entity"])
        far = (rows - self._state.joint["entity"][torch.from_numpy(which)]).norm(dim=1)
        far = far[torch.from_numpy(old)]
        value, place = far.topk(min(most, len(far)))
        names = self._state.names["entity"]
        affected = which[old]
        return [
            (names[affected[i]], d) for i, d in zip(place.tolist(), value.tolist(), strict=True)
        ]

    def _shown(
        self, moved: Sequence[tuple[str, float]], change: Change
    ) -> tuple[list[int], torch.Tensor, list[bool]] | None:
        """The entity that moved most and neighbours of it, their vectors by now, and who has one."""
        if not moved:
            return None
        centre = self._state.names["entity"].number(moved[0][0])
        around = change.after.neighbours.of(np.array([centre]), SHOWN - 1).value
        shown, count = [centre, *around.tolist()], self._state.count["entity"]
        there = [i < len(count) and bool(count[i]) for i in shown]
        return shown, self._state.joint["entity"][shown], there

    def _picture(
        self, shown: Sequence[int], before: torch.Tensor, there: Sequence[bool]
    ) -> dict[str, Any]:
        names, after = self._state.names["entity"], self._state.joint["entity"][list(shown)]
        return picture_of([names[i] for i in shown], before, after, there)

    def _snapshot_if_long(self) -> None:
        """Write a snapshot when replaying the journal would take long. The update is safe already."""
        size = (self.path / "net.safetensors").stat().st_size
        if self._journal.end <= max(SNAPSHOT_SHARE * size, SNAPSHOT_BYTES):
            return
        try:
            self.snapshot()
        except OSError as error:
            warnings.warn(f"no snapshot was written ({error}); nothing is lost", stacklevel=3)

    def _check_writes(self) -> None:
        if self._lock is None:
            raise ValueError(f"{self.path} was opened to be asked only: open it with write=True")


def open_graph(path: str | Path, *, write: bool = True) -> KnowledgeGraph:
    """Open the graph of a run of `stepwell train dkge`, to change it or, without `write`, to ask it.

    >>> with stepwell.kg.open("runs/graph") as kg:  # doctest: +SKIP
    ...     kg.add([("Paris", "capital_of", "France")])
    ...     kg.update()
    ...     kg.rank("Paris", "capital_of", k=3)

    Raises:
        ValueError, OSError: as for `KnowledgeGraph`.
    """
    return KnowledgeGraph(Path(path), write=write)
