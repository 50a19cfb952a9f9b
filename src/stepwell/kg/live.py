"""A knowledge graph that lives in a run directory: changed, updated and asked while it changes."""

import json
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load, save

from stepwell.data.triples import Fact, check_fact
from stepwell.evaluation.link_prediction import link_measures, retained_auc
from stepwell.files import locked, read_json
from stepwell.kg.journal import Journal, Record
from stepwell.kg.ranking import SIDES, Side, distances, distances_to_all, rank_triples
from stepwell.kg.state import Change, learned_tables, read_state
from stepwell.methods.dkge_online import Learned, Online
from stepwell.nets.graph import COLUMNS, KINDS, Kind

#: A snapshot is written when the journal is longer than this share of it, and than so many bytes.
SNAPSHOT_SHARE, SNAPSHOT_BYTES = 0.5, 1 << 20
_CHANGE, _UPDATE = b"C", b"U"


class Answer(NamedTuple):
    """An entity as an answer: its distance (low: plausible), and whether the graph has that triple."""

    name: str
    distance: float
    known: bool


@dataclass(frozen=True)
class Report:
    """What an update did.

    added, removed: triples. new, gone: elements that joined the graph, and that left it, by name.
    affected: elements that were learnt again: how many. trained: triples of an epoch.
    moved: the affected entities whose joint vector moved most, and how far.
    """

    added: int
    removed: int
    new: dict[str, list[str]]
    gone: dict[str, list[str]]
    affected: dict[str, int]
    trained: int
    moved: list[tuple[str, float]]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class KnowledgeGraph:
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
    def entities(self) -> list[str]:
        """Names of the entities in any triple."""
        return self._present("entity")

    @property
    def relations(self) -> list[str]:
        """Names of the relations in any triple."""
        return self._present("relation")

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

    def vector(self, entity: str) -> torch.Tensor:
        """The joint vector of an entity, (dim,)."""
        return self._state.joint["entity"][self._number("entity", entity)].clone()

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
        missing = [f for f in checked if f not in self]
        if missing and absent == "refuse":
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"not in the graph: {' | '.join(missing[0])}{more}; nothing was removed. Ignore "
                "absent triples with --ignore-absent (in Python: absent='ignore')"
            )
        return self._change({f: False for f in checked if f in self})

    def update(self, how: Online = Online()) -> Report:
        """Learn what was added and removed: only what that affects moves.

        Without any change it does nothing.

        Raises:
            OSError: the result cannot be written; the graph is as it was before.
        """
        self._check_writes()
        started = time.monotonic()
        added, removed = self._changes()
        if not added and not removed:
            nothing: dict[str, list[str]] = {kind: [] for kind in KINDS}
            return Report(0, 0, nothing, nothing, dict.fromkeys(KINDS, 0), 0, [], 0.0)
        change, learned = self._state.learn(added, removed, how)
        moved = self._moves(learned)
        tables = learned_tables(learned)
        named = {k: self._state.names[k].names[self._saved_names[k] :] for k in KINDS}
        content = save(tables, {"names": json.dumps(named)})
        self._journal.append(Record(_UPDATE, self._last + 1, content))
        self._take(change, tables)
        self._snapshot_if_long()
        return Report(
            len(added),
            len(removed),
            {k: [self._state.names[k][i] for i in change.new[k]] for k in KINDS},
            {k: [self._state.names[k][i] for i in change.gone[k]] for k in KINDS},
            {k: len(learned.affected[k]) for k in KINDS},
            learned.trained,
            moved,
            time.monotonic() - started,
        )

    def snapshot(self) -> None:
        """Write the graph whole and drop what the journal repeats of it."""
        self._check_writes()
        self._state.write(self.path / "net.safetensors")
        # A kill here leaves records that the snapshot holds; their numbers say so.
        self._journal.restart(self._state.applied)

    # -- asking

    def rank(
        self, head: str | None, relation: str, tail: str | None = None, *, k: int = 10
    ) -> list[Answer]:
        """The k most plausible answers to (head, relation, ?) or, with `tail`, (?, relation, tail).

        Raises:
            ValueError: a name is not there (the nearest are suggested), or both ends are given.
        """
        if (head is None) == (tail is None):
            raise ValueError("give a head or a tail, and ask for the other")
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        side: Side = "tail" if tail is None else "head"
        given = self._number("entity", str(head if tail is None else tail))
        row = np.array([[given, self._number("relation", relation), given]])
        far = distances_to_all(self._state.vectors(), row, side)[0]
        far[~self._state.present()] = torch.inf
        index, h, r = self._state.facts.index, row[:, 0], row[:, 1]
        known = set((index.tails(h, r) if side == "tail" else index.heads(r, h)).value.tolist())
        return [Answer(n, d, i in known) for n, d, i in self._nearest(far, k)]

    def neighbours(self, entity: str, k: int = 10) -> list[Answer]:
        """The k entities whose joint vectors are nearest; `known`: they share a triple with it.

        Raises:
            ValueError: there is no such entity; the nearest names are suggested.
        """
        number = self._number("entity", entity)
        vectors = self._state.vectors()["entity"]
        far = (vectors - vectors[number]).norm(dim=1)
        far[~self._state.present()] = torch.inf
        far[number] = torch.inf
        found = self._nearest(far, k)
        others = np.array([i for _, _, i in found], dtype=np.int64)
        joined = self._state.facts.neighbours.joined(np.full_like(others, number), others)
        return [Answer(n, d, bool(j)) for (n, d, _), j in zip(found, joined, strict=True)]

    def facts(self, entity: str) -> list[Fact]:
        """All learnt triples with an entity."""
        number = self._number("entity", entity)
        at, names, index = np.array([number]), self._state.names, self._state.facts.index
        _, out_relation, tail = index.out(at)
        _, in_relation, head = index.into(at)
        begin = [(entity, names["relation"][r], names["entity"][t])
                 for r, t in zip(out_relation, tail, strict=True)]  # fmt: skip
        end = [(names["entity"][h], names["relation"][r], entity)
               for r, h in zip(in_relation, head, strict=True) if h != number]  # fmt: skip
        return begin + end

    def score(self, facts: Iterable[Sequence[str]]) -> list[float]:
        """||h* + r* - t*|| of triples, whether they are in the graph or not; low is plausible."""
        checked = [check_fact(fact, "score") for fact in facts]
        rows = [[self._number("entity", h), self._number("relation", r), self._number("entity", t)]
                for h, r, t in checked]  # fmt: skip
        found: list[float] = distances(
            self._state.vectors(), np.array(rows, dtype=np.int64).reshape(-1, 3)
        ).tolist()
        return found

    def evaluate(
        self,
        test: Iterable[Sequence[str]],
        *,
        gone: Iterable[Sequence[str]] = (),
        ask: Literal["both", "head", "tail"] = "both",
    ) -> dict[str, float]:
        """How well true triples are ranked, and whether old ones were unlearnt.

        Ranks are realistic and filtered: other triples of the graph and of `test` do not compete.

        Args:
            test: triples that are true. Asking for the `tail` alone is answering questions.
            gone: triples that are true no more.
            ask: which ends are asked for.

        Returns:
            `link_measures` of `test`; with `gone`, "gone/..." of these in the same way, and "auc": how
            often one of them is more distant than one of `test`. "left_out" counts triples with a name
            that stands in no triple of the graph.
        """
        sides: tuple[Side, ...] = SIDES if ask == "both" else (ask,)
        asked = [check_fact(fact, "test") for fact in test]
        old = [check_fact(fact, "gone") for fact in gone]
        rows, before = (
            self._state.rows_of([f for f in fs if self._rankable(f)]) for fs in (asked, old)
        )
        joint, present = self._state.vectors(), self._state.present()
        far = partial(distances_to_all, joint)
        known = self._state.facts.index.changed(rows, rows[:0])
        found = {"triples": float(len(rows))}
        found["left_out"] = float(len(asked) + len(old) - len(rows) - len(before))
        found |= link_measures(rank_triples(far, rows, known, present, sides))
        if len(before):
            ranks = rank_triples(far, before, known, present, sides)
            found |= {f"gone/{name}": value for name, value in link_measures(ranks).items()}
            found["auc"] = retained_auc(distances(joint, rows), distances(joint, before))
        return found

    # -- inside

    def _rankable(self, fact: Fact) -> bool:
        pairs = zip((kind for _, kind in COLUMNS), fact, strict=True)
        return all(self._state.holds(kind, name) for kind, name in pairs)

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
        self._last = self._state.applied
        self._mark_names()
        for record in records:
            self._replay(record)

    def _replay(self, record: Record) -> None:
        self._last = record.number
        if record.kind == _CHANGE:
            for *fact, there in json.loads(record.content):
                self._pending[check_fact(fact, str(self._journal.path))] = there
            return
        tables = load(record.content)
        names = json.loads(_metadata(record.content)["names"])
        for kind in KINDS:
            for name in names[kind]:
                self._state.names[kind].add(name)
        change = Change.of(self._state, *self._changes())
        self._last -= 1
        self._take(change, tables)

    def _take(self, change: Change, tables: dict[str, torch.Tensor]) -> None:
        self._last += 1
        self._state.apply(change, tables, self._last)
        self._pending = {}
        self._mark_names()

    def _mark_names(self) -> None:
        self._saved_names = {kind: len(self._state.names[kind]) for kind in KINDS}

    def _change(self, facts: dict[Fact, bool]) -> int:
        self._check_writes()
        if facts:
            content = json.dumps([[*fact, there] for fact, there in facts.items()]).encode()
            self._journal.append(Record(_CHANGE, self._last + 1, content))
            self._last += 1
            self._pending |= facts
        return len(facts)

    def _changes(self) -> tuple[list[Fact], list[Fact]]:
        """What is to be added and removed; what was added and removed again is neither."""
        added = [f for f, there in self._pending.items() if there and not self._learnt(f)]
        removed = [f for f, there in self._pending.items() if not there and self._learnt(f)]
        return added, removed

    def _learnt(self, fact: Fact) -> bool:
        names = self._state.names
        if fact[0] not in names["entity"] or fact[2] not in names["entity"]:
            return False
        if fact[1] not in names["relation"]:
            return False
        return bool(self._state.facts.index.holds(self._state.rows_of([fact]))[0])

    def _number(self, kind: Kind, name: str) -> int:
        number = self._state.names[kind].number(name)
        if not self._state.holds(kind, name):
            raise ValueError(
                f"{kind} {name!r} stands in no triple of the graph"
                + (": update it first" if self._awaits(name) else " any more")
            )
        return number

    def _awaits(self, name: str) -> bool:
        return any(name in fact for fact in self._pending)

    def _present(self, kind: Kind) -> list[str]:
        names = self._state.names[kind].names
        return [names[i] for i in np.flatnonzero(self._state.count[kind])]

    def _nearest(self, far: torch.Tensor, k: int) -> list[tuple[str, float, int]]:
        if far.isnan().any():
            raise ValueError(f"{self.path}: vectors are not finite: train the run again")
        value, which = far.topk(min(k, len(far)), largest=False)
        names = self._state.names["entity"]
        pairs = zip(which.tolist(), value.tolist(), strict=True)
        return [(names[i], d, i) for i, d in pairs if d != float("inf")]

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


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of safetensors in memory, which the library reads from files alone."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return found
