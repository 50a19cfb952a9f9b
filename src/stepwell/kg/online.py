"""Dynamic knowledge-graph embedding, online: an update learns only what a change affects.

Wu et al. 2022, section 5: the encoders and the contextual vectors of old elements are fixed. An update
trains the knowledge vectors of affected and new elements, and the contextual vectors of new elements.
The joint vector of an unaffected element is a constant that is looked up, so the cost of an update
follows the change.

Ours: removed triples are taught as false, a sample stands for the triples of an affected hub, triples
give the initial vectors of new elements, and only trained vectors are parameters.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from stepwell.kg.embedding import KINDS, GraphEmbedding, Kind, Table
from stepwell.kg.objective import Corruption
from stepwell.kg.online_objective import OnlineDKGE, initial_vectors
from stepwell.kg.snapshot import (
    Rule,
    Snapshot,
    UpdateTriples,
    affected_entities,
    affected_relations,
)
from stepwell.kg.triple_index import Ints, Rows
from stepwell.ranges import NOT_NEGATIVE, ONE_OR_MORE, POSITIVE, check_number

#: Of `Online`: no epochs train nothing, and a batch may hold one triple.
_RANGES = {
    "epochs": NOT_NEGATIVE, "triples": ONE_OR_MORE, "batch_size": ONE_OR_MORE, "lr": POSITIVE,
    "unlearn": NOT_NEGATIVE, "seconds": NOT_NEGATIVE,
}  # fmt: skip


@dataclass(frozen=True)
class Online:
    """The settings of an update.

    rule: the elements that a change affects (`stepwell.kg.snapshot.Rule`).
    epochs: passes over the triples of affected and new elements.
    triples: the most triples of an entity as head, and as tail, in an epoch; a hub gets a new sample in
        every epoch.
    batch_size: triples of a step. lr: the highest learning rate, of Adam.
    unlearn: weight of removed triples, which are taught as false; 0 in the paper.
    seconds: a time limit (0: none); if it is reached, the result depends on the machine.

    Raises:
        ValueError: there is no such rule, or a number is out of its range.
    """

    rule: Rule = "touched"
    epochs: int = 20
    triples: int = 64
    batch_size: int = 1024
    lr: float = 0.03
    unlearn: float = 0.1
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            rules = ", ".join(get_args(Rule))
            raise ValueError(f"Online(rule={self.rule!r}): must be one of {rules}")
        for name, within in _RANGES.items():
            check_number(name, getattr(self, name), within)


#: Rows of tables by kind: the elements, and their vectors.
TableRows = Mapping[Kind, tuple[Ints, Table]]
#: Changed rows as named tensors: "knowledge.entity.which", "knowledge.entity.rows", ...
Tables = Mapping[str, Shaped[Tensor, "..."]]


@dataclass(frozen=True)
class UpdateResult:
    """The vectors that an update changes; all others stay the same to the bit.

    affected, new: elements by kind.
    knowledge, joint: of affected and new elements. contextual: of new elements.
    trained: triples in an epoch. seconds: of the whole update, by the clock.
    """

    affected: Mapping[Kind, Ints]
    new: Mapping[Kind, Ints]
    knowledge: TableRows
    contextual: TableRows
    joint: TableRows
    trained: int
    seconds: float

    def tables(self) -> dict[str, Shaped[Tensor, "..."]]:
        """The changed rows as named tensors."""
        tables = {}
        for name in ("knowledge", "joint", "contextual"):
            for kind, (which, rows) in getattr(self, name).items():
                tables[f"{name}.{kind}.which"] = torch.from_numpy(which.copy())
                tables[f"{name}.{kind}.rows"] = rows.clone()
        return tables


def learn_change(
    net: GraphEmbedding, joint: Mapping[Kind, Table], before: Snapshot, after: Snapshot,
    changes: Rows, new: Mapping[Kind, Ints], how: Online, *, entities: Ints, relations: Ints,
    contextual: Mapping[Kind, Table], margin: float, negatives: int, seed: int,
) -> UpdateResult:  # fmt: skip
    """Learn what a change affects; no argument is modified.

    Its loop is not `fit` because an update has a time limit, draws new triples in every epoch and
    writes no checkpoints.

    Args:
        net, joint: the vectors before the change, with rows for new elements.
        before, after: the graph.
        changes: the triples in just one of the two.
        new: sorted elements that are new in `after`, by kind.
        entities, relations: the elements in any triple of `after`.
        contextual: initial contextual vectors of new elements, by kind; empty without contexts.
        margin, negatives: as for `DKGE`.
        seed: of samples and steps.
    """
    started = time.monotonic()
    old = np.setdiff1d(relations, new["relation"])
    affected: dict[Kind, Ints] = {
        "entity": affected_entities(before, after, changes, how.rule),
        "relation": affected_relations(before, after, old, how.rule),
    }
    trained = {kind: np.union1d(affected[kind], new[kind]) for kind in KINDS}
    is_added = after.index.holds(changes)
    added, removed = changes[is_added], changes[~is_added]
    triples = UpdateTriples.of(after, added, trained, how.triples, seed)
    rows = triples.draw(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = OnlineDKGE(
            net, joint, after, trained, new, initial_vectors(joint, added, new), contextual,
            torch.from_numpy(removed), Corruption(after.index, rows, entities), unlearn=how.unlearn,
            margin=margin, negatives=negatives,
        )  # fmt: skip
        if len(rows):
            _train(objective, triples, rows, how, started)
    return UpdateResult(
        affected,
        new,
        {k: (trained[k], objective.knowledge[k].detach()) for k in KINDS},
        {k: (new[k], objective.contextual[k].detach()) for k in KINDS if k in objective.contextual},
        {k: (trained[k], objective.trained_joint(k).detach()) for k in KINDS},
        len(rows),
        time.monotonic() - started,
    )


def _train(
    objective: OnlineDKGE, triples: UpdateTriples, rows: Rows, how: Online, started: float
) -> None:
    """Train by Adam, with a rate that falls along half a cosine; `rows` are those of epoch 0."""
    trained = [p for p in objective.parameters() if p.numel()]
    optimizer = torch.optim.Adam(trained, lr=how.lr, fused=True)
    for epoch in range(how.epochs):
        rows = triples.draw(epoch) if epoch else rows
        batches = torch.from_numpy(rows)[torch.randperm(len(rows))].split(how.batch_size)
        for i, batch in enumerate(batches):
            share = (epoch + i / len(batches)) / how.epochs
            if how.seconds:
                share = max(share, (time.monotonic() - started) / how.seconds)
            if share >= 1:
                return
            for group in optimizer.param_groups:
                group["lr"] = how.lr * 0.5 * (1 + math.cos(math.pi * share))
            optimizer.zero_grad()
            objective.training_step(batch).loss.backward()
            optimizer.step()
