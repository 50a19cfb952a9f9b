"""An embedded graph as it stands, as one file, and as what an update leaves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from stepwell.data.triples import Fact, Names, numbered
from stepwell.files import write_whole
from stepwell.kg.embedding import COLUMNS, KINDS, GraphEmbedding, Kind
from stepwell.kg.objective import joint_vectors
from stepwell.kg.online import Learned, Online, learn_change
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.triple_index import HEAD, RELATION, TAIL, Ints
from stepwell.nets.files.container import GRAPH, digest

#: 1 had no checksum.
FORMAT = 2
#: Tables grow by this factor, so that growing costs little an element.
GROWTH = 1.25
#: Rows of a table that say how large its numbers are.
MEASURED_ROWS = 4096
#: An update has diverged whose vectors are so many times as long as those before and the margin.
DIVERGED = 10

#: What the joint vectors are made of: all the parts of the method, or an ablation: contexts whose rows
#: weigh the same, knowledge and context weighing the same, or no context at all (TransE).
Encoder = Literal["full", "mean", "ungated", "none"]
PARTS: dict[Encoder, dict[str, bool]] = {
    "full": {},
    "mean": {"attention": False},
    "ungated": {"gate": False},
    "none": {"context": False},
}


@dataclass(frozen=True)
class Shape:
    """What an embedding was made with; see `stepwell train dkge` for what each is."""

    dim: int
    encoder: Encoder
    context_size: int
    margin: float
    negatives: int
    seed: int

    def net(self, entities: int, relations: int) -> GraphEmbedding:
        """A fresh embedding."""
        return GraphEmbedding(entities, relations, self.dim, **PARTS[self.encoder])


@dataclass
class State:
    """The graph, its vectors and its names; tables may have room for more rows than there are names.

    count: triples in which each element stands, by kind; those in none are not part of the graph.
    applied: the last record of the journal that is in it.
    updates: how many it went through.
    """

    shape: Shape
    net: GraphEmbedding
    joint: dict[Kind, Tensor]
    facts: Snapshot
    names: dict[Kind, Names]
    count: dict[Kind, Ints] = field(init=False)
    applied: int = 0
    updates: int = 0

    def __post_init__(self) -> None:
        self.net.requires_grad_(False)
        rows = self.facts.index.rows
        self.count = {
            "entity": _counted(rows[:, [HEAD, TAIL]].ravel(), len(self.names["entity"])),
            "relation": _counted(rows[:, RELATION], len(self.names["relation"])),
        }

    @staticmethod
    def learnt(
        shape: Shape, net: GraphEmbedding, facts: Snapshot, entities: Names, relations: Names
    ) -> "State":
        """The state right after learning from scratch."""
        names: dict[Kind, Names] = {"entity": entities, "relation": relations}
        return State(shape, net, joint_vectors(net, facts), facts, names)

    def vectors(self) -> dict[Kind, Tensor]:
        """Joint vectors of all elements that have been learnt, by kind."""
        return {kind: self.joint[kind][: len(self.count[kind])] for kind in KINDS}

    def present(self) -> Tensor:
        """Which entities are part of the graph."""
        return torch.from_numpy(self.count["entity"] > 0)

    def holds(self, kind: Kind, name: str) -> bool:
        """Whether an element stands in any triple that has been learnt."""
        if name not in self.names[kind]:
            return False
        number = self.names[kind].number(name)
        return number < len(self.count[kind]) and bool(self.count[kind][number])

    def rows_of(self, facts: Sequence[Fact]) -> Ints:
        """Triples by number (n, 3), all of whose names are there."""
        numbers = [[self.names[k].number(f[i]) for i, k in COLUMNS] for f in facts]
        return np.array(numbers, dtype=np.int64).reshape(-1, 3)

    def learn(
        self, added: Sequence[Fact], removed: Sequence[Fact], how: Online
    ) -> tuple["Change", Learned]:
        """What a change leads to; the state stays as it is, but for room and numbers for new names.

        They are the state's own once the change is applied; `forget_new` takes the numbers back.
        """
        try:
            change = Change.of(self, added, removed)
            self.make_room()
            learned = learn_change(
                self.net, self.joint, self.facts, change.after, change.rows, change.new, how,
                entities=np.flatnonzero(change.count["entity"]),
                relations=np.flatnonzero(change.count["relation"]),
                contextual=self._drawn_contextual(change) if self.net.has_context else {},
                margin=self.shape.margin, negatives=self.shape.negatives,
                seed=self.shape.seed + 1 + self.updates,
            )  # fmt: skip
        except BaseException:
            self.forget_new()
            raise
        return change, learned

    def forget_new(self) -> None:
        """Take back the numbers of names whose change was not applied."""
        for kind in KINDS:
            self.names[kind].keep(len(self.count[kind]))

    def apply(self, change: "Change", tables: Mapping[str, Tensor], applied: int) -> None:
        """Take what an update learnt; `tables` are `learned_tables` of it."""
        self.make_room()
        for kind in KINDS:
            for what, table in self._tables(kind).items():
                which, rows = (tables[f"{what}.{kind}.{part}"] for part in ("which", "rows"))
                table[which] = rows
        self.facts, self.count = change.after, change.count
        self.applied, self.updates = applied, self.updates + 1

    def _tables(self, kind: Kind) -> dict[str, Tensor]:
        tables = {"knowledge": self.net.knowledge[kind].data, "joint": self.joint[kind]}
        if self.net.has_context:
            tables["contextual"] = self.net.contextual[kind].data
        return tables

    def make_room(self) -> None:
        """Lengthen the tables where there are more names than rows."""
        for kind in KINDS:
            count = len(self.names[kind])
            if count <= len(self.joint[kind]):
                continue
            room = int(GROWTH * count)
            self.joint[kind] = _longer(self.joint[kind], room)
            for tables in (self.net.knowledge, getattr(self.net, "contextual", None)):
                if tables is not None:
                    longer = _longer(tables[kind].data, room)
                    tables[kind] = nn.Parameter(longer, requires_grad=False)

    def _drawn_contextual(self, change: "Change") -> dict[Kind, Tensor]:
        """Contextual vectors for new elements to begin with: functions of the seed and the update.

        They are as large as those that are there: a start from vectors of translation makes these
        small, and beside them a new neighbour of the usual size would drown all others.
        """
        generator = torch.Generator().manual_seed(self.shape.seed * 1_000_003 + self.updates)
        drawn: dict[Kind, Tensor] = {}
        for kind in KINDS:
            scale = self._measured(kind, self.net.contextual[kind].data).square().mean().sqrt()
            size = len(change.new[kind]), self.shape.dim
            drawn[kind] = scale * torch.randn(*size, generator=generator)
        return drawn

    def diverged(self, tables: Mapping[str, Tensor]) -> bool:
        """Whether vectors that an update learnt, `learned_tables`, are not finite or far too long."""
        for kind in KINDS:
            for what, before in self._tables(kind).items():
                rows = tables[f"{what}.{kind}.rows"]
                usual = self._measured(kind, before).norm(dim=1).mean() + self.shape.margin
                if len(rows) and not rows.norm(dim=1).mean() <= DIVERGED * usual:
                    return True
        return False

    def _measured(self, kind: Kind, table: Tensor) -> Tensor:
        """Some rows of learnt elements, by which lengths of vectors are told."""
        return table[: min(MEASURED_ROWS, len(self.count[kind]))]

    def to_bytes(self) -> bytes:
        """The file of this state: safetensors, everything in it, and a checksum of that."""
        tensors: dict[str, Tensor] = {}
        for kind in KINDS:
            count = len(self.count[kind])  # names beyond are of a change that was not applied
            for what, table in self._tables(kind).items():
                tensors[f"{what}.{kind}"] = table[:count].contiguous()
            text = "\n".join(self.names[kind].names[:count]).encode()
            tensors[f"names.{kind}"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        if self.net.has_context:
            tensors |= {f"encoders.{k}": v for k, v in self.net.encoders.state_dict().items()}
        tensors["triples"] = torch.from_numpy(self.facts.index.rows.astype(np.int32))
        about = {
            "format": FORMAT,
            "kind": GRAPH,
            "shape": asdict(self.shape),
            "applied": self.applied,
            "updates": self.updates,
        }
        about["sha256"] = digest(about, tensors)
        return save(tensors, {"stepwell": json.dumps(about)})

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_whole(path, self.to_bytes())


def read_state(path: Path) -> State:
    """The state in a file.

    Raises:
        ValueError: it is no file of a knowledge graph, or is damaged.
        OSError: it cannot be read.
    """
    content = path.read_bytes()  # once: a writer may put another file in place at any time
    try:
        tensors = load(content)
        about = dict(json.loads(metadata(content).get("stepwell", "{}")))
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    if about.get("kind") != GRAPH:
        raise ValueError(f"{path} holds no knowledge graph: name a run of `stepwell train dkge`")
    version = about.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise ValueError(
            f"{path} has format {version}; this version of Stepwell reads up to {FORMAT}: upgrade"
        )
    if version != 1 and about.pop("sha256", None) != digest(about, tensors):
        raise _damaged(path, "its checksum does not match")
    try:
        return _state_of(about, tensors)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def applied_in(path: Path) -> int:
    """The last record of the journal that the state in a file holds, without the state."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["stepwell"])
    return int(about["applied"])


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is damaged ({why}): bring back a copy, or train into another --out")


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of safetensors in memory, which the library reads from files alone."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return found


def _state_of(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State:
    shape = Shape(**about["shape"])
    names: dict[Kind, Names] = {}
    for kind in KINDS:
        text = tensors[f"names.{kind}"].numpy().tobytes().decode()
        names[kind] = Names(kind, text.split("\n") if text else [])
    with torch.device(
        "meta"
    ):  # nothing is drawn: opening a graph leaves the caller's generator alone
        net = shape.net(len(names["entity"]), len(names["relation"]))
    parts = ("knowledge.", "contextual.", "encoders.")
    net.load_state_dict({k: v for k, v in tensors.items() if k.startswith(parts)}, assign=True)
    facts = Snapshot.of(
        tensors["triples"].numpy().astype(np.int64), size=shape.context_size, seed=shape.seed
    )
    joint: dict[Kind, Tensor] = {kind: tensors[f"joint.{kind}"] for kind in KINDS}
    state = State(shape, net, joint, facts, names)
    state.applied, state.updates = about["applied"], about["updates"]
    return state


@dataclass(frozen=True)
class Change:
    """A change of a graph by number.

    rows: triples that are in just one of before and after. after: the graph then. new, gone: elements
    that join it, and that stand in no triple any more. count: triples of each element, after.
    """

    rows: Ints
    after: Snapshot
    new: Mapping[Kind, Ints]
    gone: Mapping[Kind, Ints]
    count: dict[Kind, Ints]

    @staticmethod
    def of(state: State, added: Sequence[Fact], removed: Sequence[Fact]) -> "Change":
        """A change of `state`, which gives new names numbers."""
        more = numbered(added, state.names["entity"], state.names["relation"])
        fewer = state.rows_of(removed)
        rows = np.concatenate([more, fewer])
        sign = np.repeat([1, -1], [len(more), len(fewer)])
        columns: dict[Kind, tuple[Ints, Ints]] = {
            "entity": (rows[:, [HEAD, TAIL]].ravel(), np.repeat(sign, 2)),
            "relation": (rows[:, RELATION], sign),
        }
        new, gone, count = {}, {}, {}
        for kind, (which, times) in columns.items():
            before = state.count[kind]
            now = np.concatenate([before, np.zeros(len(state.names[kind]) - len(before), np.int64)])
            was = now.copy()
            np.add.at(now, which, times)
            seen = np.unique(which)
            new[kind] = seen[(was[seen] == 0) & (now[seen] > 0)]
            gone[kind] = seen[(was[seen] > 0) & (now[seen] == 0)]
            count[kind] = now
        return Change(rows, state.facts.changed(more, fewer), new, gone, count)


def learned_tables(learned: Learned) -> dict[str, Tensor]:
    """The rows that an update changes, as named tensors."""
    parts = {
        "knowledge": learned.knowledge,
        "joint": learned.joint,
        "contextual": learned.contextual,
    }
    tables: dict[str, Tensor] = {}
    for what, rows in parts.items():
        for kind, (which, values) in rows.items():
            tables[f"{what}.{kind}.which"] = torch.from_numpy(which.copy())
            tables[f"{what}.{kind}.rows"] = values.clone()
    return tables


def _counted(which: Ints, count: int) -> Ints:
    return np.bincount(which, minlength=count).astype(np.int64)


def _longer(table: Tensor, room: int) -> Tensor:
    longer = table.new_zeros(room, table.shape[1])
    longer[: len(table)] = table
    return longer
