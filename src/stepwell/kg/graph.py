"""A knowledge graph that lives in a run directory: changed, updated and asked while it changes."""

import contextlib
import json
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save

from stepwell.data.triples import Fact, check_fact
from stepwell.files import locked, read_json
from stepwell.kg.embedding import COLUMNS, KINDS, Kind
from stepwell.kg.journal import Journal, Record
from stepwell.kg.online import Online
from stepwell.kg.queries import Asked, alone
from stepwell.kg.state import Change, applied_in, learned_tables, metadata, read_state
from stepwell.kg.triple_index import MAX_ENTITIES, MAX_RELATIONS
from stepwell.kg.update_history import remember, remember_measures
from stepwell.kg.update_report import Outcome, Report

#: A snapshot is written when the journal is longer than this share of it, and than so many bytes.
SNAPSHOT_SHARE, SNAPSHOT_BYTES = 0.5, 1 << 20
#: So often a graph is read anew that is written whole meanwhile.
READ = 20
_LIMITS: dict[Kind, tuple[int, str]] = {
    "entity": (MAX_ENTITIES, "entities"),
    "relation": (MAX_RELATIONS, "relations"),
}
_CHANGE, _UPDATE = b"C", b"U"


class KnowledgeGraph(Asked):
    """An embedded graph under change. Use it as a context manager, or call `close`.

    `add` and `remove` are on the disk when they return, and wait there for `update`, which learns them.
    An update is done or not done: a process killed at any moment loses nothing that had returned.
    Threads may share it: each call waits for the one before.

    Args:
        path: a run of `stepwell train dkge`.
        write: hold the run's lock, so that it can be changed; without it, only ask.

    Raises:
        ValueError: there is no such run, or one of its files is damaged.
        OSError: another process is writing to it, or writes it whole all the time.
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
        self._writes = write
        self._process, self._alone = os.getpid(), threading.RLock()
        self._lock: FileLock | None = None
        if write:
            self._lock = locked(path / "lock", path, "only ask it (in Python: write=False)")
        try:
            self._load(file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write. What is there can still be asked."""
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
    @alone
    def waiting(self) -> tuple[list[Fact], list[Fact]]:
        """Triples that wait for an update: those that it will add, and those that it will remove.

        What was added and removed again is neither.
        """
        added = [f for f, there in self._pending.items() if there and not self._learnt(f)]
        removed = [f for f, there in self._pending.items() if not there and self._learnt(f)]
        return added, removed

    @property
    def pending(self) -> tuple[int, int]:
        """How many triples wait to be added, and to be removed."""
        added, removed = self.waiting
        return len(added), len(removed)

    @alone
    def __len__(self) -> int:
        """Triples, those that wait for an update counted in."""
        added, removed = self.pending
        return len(self._state.facts.index) + added - removed

    @alone
    def __contains__(self, fact: Sequence[str]) -> bool:
        fact = check_fact(fact, "a triple")
        return self._pending.get(fact, self._learnt(fact))

    # -- changing

    @alone
    def add(self, facts: Iterable[Sequence[str]]) -> int:
        """Add triples; those that are there count for nothing. On the disk when it returns.

        Returns:
            How many were new.

        Raises:
            ValueError: one is malformed, or there would be more names than a graph can hold (those that
                have left it count, too); nothing was added.
        """
        checked = dict.fromkeys(check_fact(fact, "add") for fact in facts)
        new = {f: True for f in checked if f not in self}
        self._check_room(new)
        return self._change(new)

    @alone
    def remove(self, facts: Iterable[Sequence[str]], *, absent: str = "refuse") -> int:
        """Remove triples. On the disk when it returns.

        Those that wait to be removed already count for nothing.

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
        missing = [f for f in checked if f not in there and f not in self._pending]
        if missing and absent == "refuse":
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"not in the graph: {' | '.join(missing[0])}{more}; nothing was removed. Ignore "
                "absent triples with --ignore-absent (in Python: absent='ignore')"
            )
        return self._change(there)

    @alone
    def update(self, how: Online = Online(), *, test: Iterable[Sequence[str]] = ()) -> Report:
        """Learn what was added and removed: only what that affects moves.

        Without any change it does nothing.

        Args:
            test: true triples to rank afterwards, as `evaluate` does; the report page shows the MRR.

        Raises:
            ValueError: a triple to test on is malformed, or the update diverged; the changes wait on.
            OSError: the result cannot be written; the graph is as it was before.
        """
        self._check_writes()
        asked = [check_fact(fact, "test") for fact in test]
        started = time.monotonic()
        added, removed = self.waiting
        if not added and not removed:
            return Report.of_nothing()
        change, learned = self._state.learn(added, removed, how)
        tables = learned_tables(learned)
        self._check_converged(tables)
        outcome = Outcome(self._state, change, learned, added, removed)
        # Numbers past those that were learnt are new.
        named = {k: self._state.names[k].names[len(self._state.count[k]) :] for k in KINDS}
        about = {"names": json.dumps(named), "before": json.dumps(self._size())}
        record = Record(_UPDATE, self._next, save(tables, about))
        try:
            with self._committing():
                self._journal.append(record)
                self._take(change, tables, record.number)
        except OSError as error:
            told = f"{error.strerror or error} by this update; its changes wait for another one"
            raise OSError(error.errno, told) from error
        self._snapshot_if_long()
        report = outcome.report(time.monotonic() - started, {})
        remember(self.path, report.as_dict(), outcome.picture)
        if asked:  # which takes long: what is cut off here is noted already
            report = replace(report, measures=self._ranked(asked))
            remember_measures(self.path, report.measures)
        return report

    @alone
    def snapshot(self) -> None:
        """Write the graph whole and drop what the journal repeats of it."""
        self._check_writes()
        self._state.write(self.path / "net.safetensors")
        # A kill here leaves records that the snapshot holds; their numbers say so.
        self._journal.restart(self._state.applied)

    # -- inside

    def _load(self, file: Path) -> None:
        for _ in range(READ):
            self._state = read_state(file)
            self._journal = Journal(self.path / "journal")
            # A writer that puts a newer snapshot in place empties the journal of what that holds: such
            # a journal does not belong to the state that was read.
            if self._lock is not None or applied_in(file) == self._state.applied:
                break
        else:
            raise OSError(f"another process writes {file} whole all the time: try again")
        records = [r for r in self._journal.records if r.number > self._state.applied]
        if records and records[0].number != self._state.applied + 1:
            raise ValueError(
                f"{self._journal.path} lacks the changes before number {records[0].number}, which "
                f"{file} does not hold either: bring back copies of both, or remove the journal to go "
                "back to what the other holds"
            )
        self._clear()
        try:
            for record in records:
                self._replay(record)
        except (IndexError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{self._journal.path} does not belong to {file} ({error}): bring back copies of both "
                "that were made together, or remove the journal to go back to what the other holds"
            ) from error

    def _replay(self, record: Record) -> None:
        if record.kind == _CHANGE:
            self._note({(h, r, t): there for h, r, t, there in json.loads(record.content)})
            return
        tables, about = load(record.content), metadata(record.content)
        names = json.loads(about["names"])
        if "before" in about and (was := json.loads(about["before"])) != self._size():
            raise IndexError(f"made for {was[0]:,} entities and {was[-1]:,} triples")
        for kind in KINDS:
            for name in names[kind]:
                self._state.names[kind].add(name)
        self._take(Change.of(self._state, *self.waiting), tables, record.number)

    def _size(self) -> list[int]:
        """By which the journal of another graph is told: entities, relations, and triples."""
        return [*(len(self._state.count[kind]) for kind in KINDS), len(self._state.facts.index)]

    def _take(self, change: Change, tables: dict[str, torch.Tensor], number: int) -> None:
        self._state.apply(change, tables, number)
        self._clear()

    def _clear(self) -> None:
        """Nothing waits for an update."""
        self._pending: dict[Fact, bool] = {}
        self._new: dict[Kind, Counter[str]] = {kind: Counter() for kind in KINDS}

    @property
    def _next(self) -> int:
        """The number of the next record; the journal may be empty, or end before the snapshot."""
        numbers = (record.number for record in self._journal.records[-1:])
        return 1 + max([self._state.applied, *numbers])

    def _change(self, facts: dict[Fact, bool]) -> int:
        self._check_writes()
        if facts:
            content = json.dumps([[*fact, there] for fact, there in facts.items()]).encode()
            with self._committing():
                self._journal.append(Record(_CHANGE, self._next, content))
                self._note(facts)
        return len(facts)

    @contextlib.contextmanager
    def _committing(self) -> Iterator[None]:
        """Around what puts a record on the disk and then into this graph, which must not differ."""
        try:
            yield
        except OSError:  # the journal is as it was
            self._state.forget_new()
            raise
        except BaseException:  # cut off: whether it is on the disk is found by opening the graph
            self.close()
            raise

    def _check_room(self, facts: Iterable[Fact]) -> None:
        """Refuse names that no update could give a number."""
        new = {kind: {*waiting} for kind, waiting in self._new_names(facts).items()}
        for kind, (limit, plural) in _LIMITS.items():
            more = len(self._new[kind]) + len(new[kind] - self._new[kind].keys())
            if len(self._state.names[kind]) + more > limit:
                raise ValueError(
                    f"add: a graph holds at most {limit:,} {plural}, those that have left it counted "
                    "in; nothing was added"
                )

    def _new_names(self, facts: Iterable[Fact]) -> dict[Kind, list[str]]:
        """The names in triples that have no number."""
        names = self._state.names
        new: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
        for fact in facts:
            for i, kind in COLUMNS:
                if fact[i] not in names[kind]:
                    new[kind].append(fact[i])
        return new

    def _note(self, facts: Mapping[Fact, bool]) -> None:
        """Take changes that are on the disk."""
        come = [f for f, there in facts.items() if there and not self._pending.get(f, False)]
        gone = [f for f, there in facts.items() if not there and self._pending.get(f, False)]
        for kind, names in self._new_names(come).items():
            self._new[kind].update(names)
        for kind, names in self._new_names(gone).items():
            self._new[kind] -= Counter(names)  # drops those that are left at 0
        self._pending |= facts

    def _check_converged(self, tables: Mapping[str, torch.Tensor]) -> None:
        """Refuse vectors of an update that diverged."""
        if self._state.diverged(tables):
            self._state.forget_new()
            raise ValueError(
                f"{self.path}: the update diverged; nothing was changed: lower --lr (in Python: "
                "Online(lr=...)) and update again"
            )

    def _ranked(self, facts: Sequence[Fact]) -> dict[str, float]:
        try:
            return self.evaluate(facts)
        except ValueError as error:  # vectors that were damaged before
            warnings.warn(f"the update is done, but nothing was ranked ({error})", stacklevel=3)
            return {}

    def _learnt(self, fact: Fact) -> bool:
        if not all(fact[i] in self._state.names[kind] for i, kind in COLUMNS):
            return False
        return bool(self._state.facts.index.holds(self._state.rows_of([fact]))[0])

    def _awaits(self, kind: Kind, name: str) -> bool:
        mine = [i for i, k in COLUMNS if k == kind]
        return any(there and any(f[i] == name for i in mine) for f, there in self._pending.items())

    def _snapshot_if_long(self) -> None:
        """Write a snapshot when replaying the journal would take long. The update is safe already."""
        try:
            size = (self.path / "net.safetensors").stat().st_size
            if self._journal.end > max(SNAPSHOT_SHARE * size, SNAPSHOT_BYTES):
                self.snapshot()
        except OSError as error:
            warnings.warn(f"no snapshot was written ({error}); nothing is lost", stacklevel=3)

    def _check_writes(self) -> None:
        if not self._writes:
            raise ValueError(f"{self.path} was opened to be asked only: open it with write=True")
        if self._lock is None:
            raise ValueError(f"{self.path} is closed: open it again to change it")
        if os.getpid() != self._process:
            raise ValueError(
                f"{self.path} was opened before this process was forked: open it again to change it"
            )


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
