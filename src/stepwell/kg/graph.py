"""A knowledge graph in a run directory: changed, updated and queried while it changes."""

import contextlib
import json
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save

from stepwell.data.triples import Fact, check_fact
from stepwell.files import locked, remove_partial, result_of
from stepwell.kg.embedding import KINDS, Kind
from stepwell.kg.graph_file import applied_in, metadata, read_state, write_state
from stepwell.kg.journal import Journal, Record
from stepwell.kg.online import Online
from stepwell.kg.pending import Pending
from stepwell.kg.queries import GraphQueries, synchronized
from stepwell.kg.state import Change
from stepwell.kg.update_report import Report, ReportBuilder, record_measures, record_update

#: The graph is written to its file when the journal exceeds this share of the file and this size.
COMPACT_SHARE, COMPACT_BYTES = 0.5, 1 << 20
#: Retries when another process replaces the file while we read it.
RETRIES = 20
_CHANGE, _UPDATE = b"C", b"U"


class KnowledgeGraph(GraphQueries):
    """An embedded graph that changes. Use it as a context manager, or call `close`.

    Changes by `add` and `remove` are on the disk when the call returns, and wait for `update`. After a
    kill at any moment, no acknowledged change is lost, and an update is done or not done. Threads may
    share a graph: one call runs at a time.

    >>> with stepwell.kg.open("runs/graph") as kg:  # doctest: +SKIP
    ...     kg.add([("Paris", "capital_of", "France")])
    ...     kg.update()
    ...     kg.rank("Paris", "capital_of", k=3)

    Args:
        path: a run of `stepwell train dkge`.
        write: hold the lock of the run and allow changes; without it, only queries.

    Raises:
        ValueError: there is no such run, or one of its files is damaged.
        OSError: another process writes to it, or replaces its file all the time.
    """

    def __init__(self, path: str | Path, *, write: bool = True) -> None:
        self.path = path = Path(path)
        self._file = result_of(path)
        result_of(path, "results.json")
        self._writes = write
        self._process, self._one_at_a_time = os.getpid(), threading.RLock()
        self._lock: FileLock | None = None
        if write:
            self._lock = locked(path / "lock", path, "only query it (in Python: write=False)")
            remove_partial(path)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes write. Queries still work."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def __enter__(self) -> "KnowledgeGraph":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- content

    @property
    @synchronized
    def waiting(self) -> tuple[list[Fact], list[Fact]]:
        """Triples to add, and triples to remove, that wait for an update; without undone changes."""
        return self._pending.waiting()

    @property
    def pending(self) -> tuple[int, int]:
        """The number of triples that wait to be added, and to be removed."""
        added, removed = self.waiting
        return len(added), len(removed)

    @synchronized
    def __len__(self) -> int:
        """The number of triples, with waiting changes."""
        added, removed = self.pending
        return len(self._state.snapshot.index) + added - removed

    @synchronized
    def __contains__(self, fact: Sequence[str]) -> bool:
        return self._pending.holds(check_fact(fact, "a triple"))

    # -- changes

    @synchronized
    def add(self, facts: Iterable[Sequence[str]]) -> int:
        """Add triples; existing ones do not count. They are on the disk when this returns.

        Returns:
            The number of new triples.

        Raises:
            ValueError: a triple is malformed, or there would be more names than a graph can hold
                (including former ones); nothing was added.
        """
        checked = dict.fromkeys(check_fact(fact, "add") for fact in facts)
        new = {f: True for f in checked if f not in self}
        self._pending.check_room(new)
        return self._change(new)

    @synchronized
    def remove(self, facts: Iterable[Sequence[str]], *, absent: str = "refuse") -> int:
        """Remove triples. The removal is on the disk when this returns.

        Args:
            absent: `refuse` triples that are not in the graph, or `ignore` them.

        Returns:
            The number of removed triples, without triples that already wait for removal.

        Raises:
            ValueError: a triple is malformed or absent; nothing was removed.
        """
        if absent not in ("refuse", "ignore"):
            raise ValueError(f"absent must be 'refuse' or 'ignore', got {absent!r}")
        checked = dict.fromkeys(check_fact(fact, "remove") for fact in facts)
        removed = {f: False for f in checked if f in self}
        missing = [f for f in checked if f not in removed and f not in self._pending.changes]
        if missing and absent == "refuse":
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"not in the graph: {' | '.join(missing[0])}{more}; nothing was removed. Ignore "
                "absent triples with --ignore-absent (in Python: absent='ignore')"
            )
        return self._change(removed)

    @synchronized
    def update(self, how: Online = Online(), *, test: Iterable[Sequence[str]] = ()) -> Report:
        """Learn the waiting changes; only affected and new vectors move.

        Without changes it does nothing.

        Args:
            test: true triples to rank afterwards, as `evaluate` does; the report page shows their MRR.

        Raises:
            ValueError: a test triple is malformed, or the update diverged; the changes still wait.
            OSError: the result cannot be written; the graph is as it was.
        """
        self._check_writable()
        test_facts = [check_fact(fact, "test") for fact in test]
        started = time.monotonic()
        added, removed = self.waiting
        if not added and not removed:
            return Report.of_nothing()
        change, result = self._state.learn(added, removed, how)
        tables = result.tables()
        if self._state.diverged(tables):
            self._state.forget_new()
            raise ValueError(
                f"{self.path}: the update diverged; nothing was changed: lower --lr (in Python: "
                "Online(lr=...)) and update again"
            )
        builder = ReportBuilder(self._state, change, result, removed)
        # names without a learned number are new
        new = {k: self._state.names[k].names[len(self._state.count[k]) :] for k in KINDS}
        about = {"names": json.dumps(new), "before": json.dumps(self._size())}
        record = Record(_UPDATE, self._next_number, save(tables, about))
        try:
            with self._committing():
                self._journal.append(record)
                self._state.apply(change, tables, record.number)
                self._pending = Pending(self._state)
        except OSError as error:
            reason = f"{error.strerror or error} by this update; its changes wait for another one"
            raise OSError(error.errno, reason) from error
        self._compact_if_long()
        report = builder.report(time.monotonic() - started, {})
        record_update(self.path, report.as_dict(), builder.picture)
        if test_facts:  # ranking takes long; if it is interrupted, the update is recorded already
            try:
                report = replace(report, measures=self.evaluate(test_facts))
                record_measures(self.path, report.measures)
            except ValueError as error:  # vectors that were damaged before
                warnings.warn(f"the update is done, but nothing was ranked ({error})", stacklevel=3)
        return report

    @synchronized
    def compact(self) -> None:
        """Write the whole graph to its file, and empty the journal except for waiting changes."""
        self._check_writable()
        write_state(self._state, self._file)
        # After a kill here, the numbers of the records show that the file holds them.
        self._journal.drop(self._state.applied)

    def snapshot(self) -> None:
        """Call `compact`, which is the new name."""
        warnings.warn("snapshot() is now compact(): use that", DeprecationWarning, stacklevel=2)
        self.compact()

    # -- inside

    def _load(self) -> None:
        for _ in range(RETRIES):
            self._state = read_state(self._file)
            self._journal = Journal(self.path / "journal")
            # A writer may replace the file and empty the journal between the two lines above.
            if self._lock is not None or applied_in(self._file) == self._state.applied:
                break
        else:
            raise OSError(f"another process replaces {self._file} all the time: try again")
        records = [r for r in self._journal.records if r.number > self._state.applied]
        if records and records[0].number != self._state.applied + 1:
            raise ValueError(
                f"{self._journal.path} and {self._file} lack the changes before number "
                f"{records[0].number}: restore copies of both, or remove the journal with its changes"
            )
        self._pending = Pending(self._state)
        try:
            for record in records:
                self._replay(record)
        except (IndexError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{self._journal.path} does not belong to {self._file} ({error}): restore copies of "
                "both that were made together, or remove the journal to go back to the file"
            ) from error

    def _replay(self, record: Record) -> None:
        if record.kind == _CHANGE:
            self._pending.take({(h, r, t): a for h, r, t, a in json.loads(record.content)})
            return
        tables, about = load(record.content), metadata(record.content)
        new: dict[Kind, list[str]] = json.loads(about["names"])
        if "before" in about and (size := json.loads(about["before"])) != self._size():
            raise IndexError(f"made for {size[0]:,} entities and {size[-1]:,} triples")
        for kind in KINDS:
            for name in new[kind]:
                self._state.names[kind].add(name)
        change = Change.of(self._state, *self.waiting)
        self._state.apply(change, tables, record.number)
        self._pending = Pending(self._state)

    def _size(self) -> list[int]:
        """The number of entities, relations and triples; they detect the journal of another graph."""
        return [*(len(self._state.count[kind]) for kind in KINDS), len(self._state.snapshot.index)]

    @property
    def _next_number(self) -> int:
        """The number of the next record; the journal may be empty, or end before the file."""
        return 1 + max([self._state.applied, *(r.number for r in self._journal.records[-1:])])

    def _change(self, changes: Mapping[Fact, bool]) -> int:
        self._check_writable()
        if changes:
            content = json.dumps([[*fact, is_added] for fact, is_added in changes.items()]).encode()
            with self._committing():
                self._journal.append(Record(_CHANGE, self._next_number, content))
                self._pending.take(changes)
        return len(changes)

    @contextlib.contextmanager
    def _committing(self) -> Iterator[None]:
        """Keep the graph in memory equal to the disk while a record is written and applied."""
        try:
            yield
        except OSError:  # the journal is as it was
            self._state.forget_new()
            raise
        except BaseException:  # the record may be on the disk: opening the graph again can tell
            self.close()
            raise

    def _compact_if_long(self) -> None:
        """Write the whole graph if the journal takes long to replay. The update is safe already."""
        try:
            size = self._file.stat().st_size
            if self._journal.end > max(COMPACT_SHARE * size, COMPACT_BYTES):
                self.compact()
        except OSError as error:
            warnings.warn(f"the graph was not compacted ({error}); nothing is lost", stacklevel=3)

    def _check_writable(self) -> None:
        if not self._writes:
            raise ValueError(f"{self.path} was opened for queries only: open it with write=True")
        if self._lock is None:
            raise ValueError(f"{self.path} is closed: open it again to change it")
        if os.getpid() != self._process:
            raise ValueError(
                f"{self.path} was opened before this process was forked: open it again to change it"
            )
