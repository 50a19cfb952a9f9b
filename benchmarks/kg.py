"""Knowledge graphs: a training step and an evaluation against the usual way, and updates by graph size.

The usual way follows the method's first published code. Each element of a batch has its own context,
padded to the largest size, as a dense matrix, and a loop over all candidates ranks a test triple. Both
ways get the same contexts and vectors. Graphs are random, with hubs, and have the size of the first
snapshot of YAGO-3SP.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import ratio, side_by_side
from stepwell.data.triples import Names
from stepwell.kg.contexts import Contexts
from stepwell.kg.embedding import GraphEmbedding, Kind, distance
from stepwell.kg.objective import DKGE, by_kind, margin_loss
from stepwell.kg.online import Online
from stepwell.kg.ranking import distances_to_all, rank_triples
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.state import Settings, State
from stepwell.kg.triple_index import Rows, TripleIndex

YAGO = {"triples": 123_974, "entities": 26_897, "relations": 37}
DIM, BATCH, IN_A_ROW = 64, 500, 5
SIZES = (10_000, 100_000, 1_000_000)
CHANGE = {"added": 500, "removed": 100}
UPDATE = Online(epochs=5)


def drawn_graph(triples: int, entities: int, relations: int, seed: int = 0) -> Rows:
    """Draw distinct triples; most have one of a few tails, as in real graphs.

    At YAGO-3SP's size the mean context has 5.8 of at most 30 neighbours (YAGO: 5.7) and the median is 5
    (YAGO: 3); the largest hub has thousands of neighbours.
    """
    rng = np.random.default_rng(seed)
    weights = [np.arange(1, entities + 1) ** -power for power in (0.3, 1.1)]
    head, tail = (rng.choice(entities, 2 * triples, p=w / w.sum()) for w in weights)
    rows = np.stack([head, rng.integers(0, relations, 2 * triples), tail], axis=1)
    rows = np.unique(rows.astype(np.int64), axis=0)
    return rng.permutation(rows)[:triples]


class Dense:
    """An encoder over the same contexts, padded: matrices (elements, size + 1, size + 1)."""

    def __init__(self, net: GraphEmbedding, contexts: dict[str, Contexts], size: int) -> None:
        self.net, self.size = net, size
        self.matrix, self.member = {}, {}
        for kind, ragged in contexts.items():
            self.matrix[kind], self.member[kind] = _padded(ragged, size)

    def joint(self, kind: str, which: Tensor) -> Tensor:
        """Joint vectors, one for each place in the batch; repeated elements are encoded again."""
        encoder, centre = self.net.encoders[kind], self.net.knowledge[kind][which]
        beside = self.net.contextual[kind][self.member[kind][which]]
        nodes = torch.cat([centre[:, None], beside], dim=1)
        hidden = torch.relu(self.matrix[kind][which] @ nodes @ encoder.weight)
        score = (torch.relu(hidden * centre[:, None]) * encoder.attention).sum(2)
        context = (torch.softmax(score, 1)[:, :, None] * hidden).sum(1)
        mix = torch.sigmoid(encoder.gate)
        return mix * centre + (1 - mix) * context


def _padded(contexts: Contexts, size: int) -> tuple[Tensor, Tensor]:
    count = len(contexts)
    matrix, member = (
        torch.zeros(count, size + 1, size + 1),
        torch.zeros(count, size, dtype=torch.long),
    )
    for i in range(count):
        first, last = int(contexts.rows[i]), int(contexts.rows[i + 1])
        # (the first entry of every row is the centre)
        entry = slice(int(contexts.bag[first]) + 1, int(contexts.bag[first + 1]))
        mine = contexts.element[entry]
        member[i, : len(mine)] = mine
        place = {int(e): j + 1 for j, e in enumerate(mine)}
        for row in range(first, last):
            begin = int(contexts.bag[row])
            matrix[i, row - first, 0] = contexts.weight[begin]
            for k in range(begin + 1, int(contexts.bag[row + 1])):
                matrix[i, row - first, place[int(contexts.element[k])]] = contexts.weight[k]
    return matrix, member


class EntitiesAlone(DKGE):
    """The method without contexts of relations, as `Dense`."""

    def joint(self, kind: Kind, which: Tensor) -> Tensor:
        """Joint vectors of entities, knowledge vectors of relations."""
        return super().joint(kind, which) if kind == "entity" else self.net.knowledge[kind][which]


def _steps(
    objective: DKGE, alone: EntitiesAlone, dense: Dense, batch: Tensor
) -> dict[str, Callable[[], None]]:
    false, counts = objective.corrupt(batch, 1)

    def far(triples: Tensor) -> Tensor:
        (_, ends), (_, relation) = by_kind(triples)
        head, tail = dense.joint("entity", ends[:, 0]), dense.joint("entity", ends[:, 1])
        return distance(head + dense.net.knowledge["relation"][relation] - tail)

    # several in a row, as in training: the first step after the other way allocates its memory again
    def usual() -> None:
        for _ in range(IN_A_ROW):
            dense.net.zero_grad()
            margin_loss(far(batch), far(false)[:, None], 4.0, counts[:, None]).backward()

    def step(objective: DKGE) -> None:
        for _ in range(IN_A_ROW):
            objective.net.zero_grad()
            objective.training_step(batch).loss.backward()

    return {"dense": usual, "ours": partial(step, alone), "whole": partial(step, objective)}


def epoch(rounds: int = 5) -> dict[str, Any]:
    """Time a training step, ragged against dense; context sizes 15 (ours) and 30 (the paper's).

    "ours" and "dense" have contexts of entities only; "whole" is the method.
    """
    results = {}
    for size in (15, 30):
        torch.manual_seed(0)
        snapshot = Snapshot.of(drawn_graph(**YAGO), size=size, seed=0)
        net = GraphEmbedding(YAGO["entities"], YAGO["relations"], DIM)
        objective = DKGE(net, snapshot)
        dense = Dense(net, {"entity": objective.contexts["entity"]}, size)
        batch = torch.from_numpy(snapshot.index.rows[:: YAGO["triples"] // BATCH][:BATCH])
        calls = _steps(objective, EntitiesAlone(net, snapshot), dense, batch)
        times = side_by_side(calls, rounds=rounds)
        results[f"context of {size}"] = {
            "batch": BATCH,
            **{f"ms, {name}": 1000 * statistics.median(times[name]) / IN_A_ROW for name in times},
            "dense / ours": ratio(times, "dense", "ours"),
        }
    return results


def evaluation(queries: int = 4) -> dict[str, Any]:
    """Rank both ends of a triple: in blocks of 256, and by a loop over candidates."""
    torch.manual_seed(0)
    rows = drawn_graph(**YAGO)
    joint = {"entity": torch.randn(YAGO["entities"], DIM), "relation": torch.randn(37, DIM)}
    known, every = TripleIndex(rows), torch.ones(YAGO["entities"], dtype=torch.bool)
    facts = {tuple(row) for row in rows.tolist()}
    start = time.perf_counter()
    ours = rank_triples(partial(distances_to_all, joint), rows[:256], known, every).rank
    in_blocks = (time.perf_counter() - start) / 256
    start = time.perf_counter()
    for i, (h, r, t) in enumerate(rows[:queries].tolist()):
        for place, ends in ((i, [(e, r, t) for e in range(YAGO["entities"])]),
                            (256 + i, [(h, r, e) for e in range(YAGO["entities"])])):  # fmt: skip
            far = [float((joint["entity"][a] + joint["relation"][b] - joint["entity"][c]).norm())
                   if (a, b, c) not in facts or (a, b, c) == (h, r, t) else torch.inf
                   for a, b, c in ends]  # fmt: skip
            true_distance = far[h if place < 256 else t]
            assert abs(1 + sum(x < true_distance for x in far) - float(ours[place])) <= 1
    by_loop = (time.perf_counter() - start) / queries
    return {
        "ms a triple, in blocks": 1000 * in_blocks,
        "ms a triple, by a loop": 1000 * by_loop,
        "loop / blocks": by_loop / in_blocks,
    }


def update() -> dict[str, Any]:
    """Update graphs of ten thousand to a million triples by a change of the same size."""
    results = {}
    for triples in SIZES:
        rows = drawn_graph(triples, triples // 5, 37)
        keep, added = rows[: -CHANGE["added"]], rows[-CHANGE["added"] :]
        state = _untrained(keep, triples // 5)
        named = [[(f"e{h}", f"r{r}", f"e{t}") for h, r, t in part.tolist()]
                 for part in (added, keep[: CHANGE["removed"]])]  # fmt: skip
        start = time.perf_counter()
        change, learned = state.learn(*named, UPDATE)
        middle = time.perf_counter()
        state.apply(change, learned.tables(), 1)
        results[f"{triples:,} triples"] = {
            "seconds": time.perf_counter() - start,
            "of which applying": time.perf_counter() - middle,
            "of which learning": learned.seconds,
            "affected entities": len(learned.affected["entity"]),
            "triples an epoch": learned.trained,
        }
    return {"change": CHANGE, "epochs": UPDATE.epochs, **results}


def _untrained(rows: Rows, entities: int) -> State:
    names = Names("entity", (f"e{i}" for i in range(entities)))
    relations = Names("relation", (f"r{i}" for i in range(37)))
    settings = Settings(DIM, "full", 15, 4.0, 1, 0)
    torch.manual_seed(0)
    snapshot = Snapshot.of(rows, size=15, seed=0)
    return State.learned(settings, settings.net(entities, 37), snapshot, names, relations)


def measure() -> dict[str, Any]:
    """All three."""
    return {
        "goals": {"dense / ours": 5, "loop / blocks": 50},
        "step": epoch(),
        "evaluation": evaluation(),
        "update": update(),
    }
