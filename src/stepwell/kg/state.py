"""An embedded graph in memory: its triples, names and vectors, and a change of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from stepwell.data.triples import Fact, Names, numbered
from stepwell.kg.embedding import COLUMNS, KINDS, GraphEmbedding, Kind, Table
from stepwell.kg.objective import joint_vectors
from stepwell.kg.online import Online, Tables, UpdateResult, learn_change
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.triple_index import HEAD, RELATION, TAIL, Ints, Rows

#: Tables grow by this factor, so that growth costs little per element.
GROWTH = 1.25
#: Rows of a table that are measured to learn the size of its numbers.
MEASURED_ROWS = 4096
#: An update diverged if its vectors are this many times longer than the old ones plus the margin.
DIVERGED = 10

#: The parts of the joint vector: all, or an ablation: no attention (`mean`), no gate (`ungated`), no
#: context at all (`none`: TransE).
Encoder = Literal["full", "mean", "ungated", "none"]
PARTS: dict[Encoder, dict[str, bool]] = {
    "full": {}, "mean": {"attention": False}, "ungated": {"gate": False}, "none": {"context": False}
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters of an embedding; see `stepwell train dkge` for each."""

    dim: int
    encoder: Encoder
    context_size: int
    margin: float
    negatives: int
    seed: int

    def __post_init__(self) -> None:
        counts = (self.dim, self.context_size, self.negatives)
        if not all(type(n) is int and 1 <= n < 1 << 31 for n in counts):
            raise ValueError(f"dim, context size and negatives must be positive numbers, not {counts}")
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise ValueError(f"the seed must be a whole number from 0, not {self.seed!r:.60}")
        if not isinstance(self.margin, int | float) or not 0 <= self.margin < math.inf:
            raise ValueError(f"the margin must be a number from 0, not {self.margin!r:.60}")

    def net(self, entities: int, relations: int) -> GraphEmbedding:
        """Build a fresh embedding."""
        return GraphEmbedding(entities, relations, self.dim, **PARTS[self.encoder])


@dataclass
class State:
    """A graph, its vectors and its names; tables may have more rows than there are names.

    count: the number of triples of each element, by kind; elements without triples are not part of the
    graph. applied: the number of the last journal record in this state. updates: the number of updates.
    """

    settings: Settings
    net: GraphEmbedding
    joint: dict[Kind, Table]
    snapshot: Snapshot
    names: dict[Kind, Names]
    applied: int = 0
    updates: int = 0
    count: dict[Kind, Ints] = field(init=False)

    def __post_init__(self) -> None:
        self.net.requires_grad_(False)
        columns = _by_kind(self.snapshot.index.rows)
        self.count = {k: np.bincount(columns[k], minlength=len(self.names[k])) for k in KINDS}

    @staticmethod
    def learned(settings: Settings, net: GraphEmbedding, snapshot: Snapshot, *names: Names) -> "State":
        """The state after training from scratch; `names` of entities and of relations."""
        by_kind = dict(zip(KINDS, names, strict=True))
        return State(settings, net, joint_vectors(net, snapshot), snapshot, by_kind)

    def vectors(self) -> dict[Kind, Table]:
        """Joint vectors of all learned elements, by kind."""
        return {kind: self.joint[kind][: len(self.count[kind])] for kind in KINDS}

    def present(self) -> Bool[Tensor, " entities"]:
        """Mark the entities that are part of the graph."""
        return torch.from_numpy(self.count["entity"] > 0)

    def holds(self, kind: Kind, name: str) -> bool:
        """Check whether an element is in any learned triple."""
        if name not in self.names[kind]:
            return False
        number = self.names[kind].number(name)
        return number < len(self.count[kind]) and bool(self.count[kind][number])

    def rows_of(self, facts: Sequence[Fact]) -> Rows:
        """Triples by number; all names are known."""
        numbers = [[self.names[k].number(f[i]) for i, k in COLUMNS] for f in facts]
        return np.array(numbers, dtype=np.int64).reshape(-1, 3)

    def learn(
        self, added: Sequence[Fact], removed: Sequence[Fact], how: Online
    ) -> tuple["Change", UpdateResult]:
        """Learn a change without applying it; new names get numbers, which `forget_new` takes back."""
        try:
            change = Change.of(self, added, removed)
            self.make_room()
            result = learn_change(
                self.net, self.joint, self.snapshot, change.after, change.rows, change.new, how,
                entities=np.flatnonzero(change.count["entity"]),
                relations=np.flatnonzero(change.count["relation"]),
                contextual=self._drawn_contextual(change) if self.net.has_context else {},
                margin=self.settings.margin, negatives=self.settings.negatives,
                seed=self.settings.seed + 1 + self.updates,
            )  # fmt: skip
        except BaseException:
            self.forget_new()
            raise
        return change, result

    def forget_new(self) -> None:
        """Take back the numbers of names whose change was not applied."""
        for kind in KINDS:
            self.names[kind].truncate(len(self.count[kind]))

    def apply(self, change: "Change", tables: Tables, applied: int) -> None:
        """Apply an update; `tables` are its `UpdateResult.tables`."""
        self.make_room()
        for kind in KINDS:
            for name, table in self.tables(kind).items():
                which, rows = (tables[f"{name}.{kind}.{part}"] for part in ("which", "rows"))
                table[which] = rows
        self.snapshot, self.count = change.after, change.count
        self.applied, self.updates = applied, self.updates + 1

    def tables(self, kind: Kind) -> dict[str, Table]:
        """The tables of one kind of element, by name; changes of a table change the state."""
        tables = {"knowledge": self.net.knowledge[kind].data, "joint": self.joint[kind]}
        if self.net.has_context:
            tables["contextual"] = self.net.contextual[kind].data
        return tables

    def make_room(self) -> None:
        """Lengthen the tables if there are more names than rows."""
        for kind in KINDS:
            count = len(self.names[kind])
            if count <= len(self.joint[kind]):
                continue
            for name, table in self.tables(kind).items():
                longer = table.new_zeros(int(GROWTH * count), self.settings.dim)
                longer[: len(table)] = table
                if name == "joint":
                    self.joint[kind] = longer
                else:
                    getattr(self.net, name)[kind] = nn.Parameter(longer, requires_grad=False)

    def _drawn_contextual(self, change: "Change") -> dict[Kind, Tensor]:
        """Draw contextual vectors for new elements, from the seed and the number of updates.

        They have the size of existing ones: larger ones would outweigh all other neighbours.
        """
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.updates)
        drawn: dict[Kind, Tensor] = {}
        for kind in KINDS:
            scale = self._measured(kind, self.net.contextual[kind].data).square().mean().sqrt()
            size = len(change.new[kind]), self.settings.dim
            drawn[kind] = scale * torch.randn(*size, generator=generator)
        return drawn

    def diverged(self, tables: Tables) -> bool:
        """Check whether vectors of an update (`UpdateResult.tables`) are not finite or far too long."""
        for kind in KINDS:
            for name, before in self.tables(kind).items():
                rows = tables[f"{name}.{kind}.rows"]
                usual = self._measured(kind, before).norm(dim=1).mean() + self.settings.margin
                if len(rows) and not rows.norm(dim=1).mean() <= DIVERGED * usual:
                    return True
        return False

    def _measured(self, kind: Kind, table: Tensor) -> Tensor:
        """Some rows of learned elements, as a sample of the size of their numbers."""
        return table[: min(MEASURED_ROWS, len(self.count[kind]))]


@dataclass(frozen=True)
class Change:
    """A change of a graph by number.

    rows: triples in just one of before and after. after: the graph after the change. new, gone:
    elements that join the graph, and elements that lose their last triple. count: triples of each
    element, after.
    """

    rows: Rows
    after: Snapshot
    new: Mapping[Kind, Ints]
    gone: Mapping[Kind, Ints]
    count: dict[Kind, Ints]

    @staticmethod
    def of(state: State, added: Sequence[Fact], removed: Sequence[Fact]) -> "Change":
        """The change of `state` by these triples; new names get numbers."""
        more = numbered(added, state.names["entity"], state.names["relation"])
        fewer = state.rows_of(removed)
        come, left = _by_kind(more), _by_kind(fewer)
        new, gone, count = {}, {}, {}
        for kind in KINDS:
            total = len(state.names[kind])
            before = np.pad(state.count[kind], (0, total - len(state.count[kind])))
            after = before + np.bincount(come[kind], minlength=total)
            after -= np.bincount(left[kind], minlength=total)
            new[kind] = np.flatnonzero((before == 0) & (after > 0))
            gone[kind] = np.flatnonzero((before > 0) & (after == 0))
            count[kind] = after
        rows = np.concatenate([more, fewer])
        return Change(rows, state.snapshot.changed(more, fewer), new, gone, count)


def _by_kind(rows: Rows) -> dict[Kind, Ints]:
    """The entities and the relations of triples, with repetitions."""
    return {"entity": rows[:, [HEAD, TAIL]].ravel(), "relation": rows[:, RELATION]}
