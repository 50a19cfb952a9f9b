"""Snapshots of a graph that changes, for a study, and how well embeddings of one answer."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from stepwell.data.triples import Fact, Names, facts_digest, numbered, read_triples
from stepwell.evaluation.link_prediction import link_measures, retained_auc
from stepwell.kg.ranking import Far, rank_triples
from stepwell.nets.triple_index import HEAD, TAIL, Ints, TripleIndex

PARTS = ("train", "valid", "test")


class Snapshot(NamedTuple):
    """A graph at one moment: the triples that are learnt, and others that are true and held out."""

    name: str
    train: list[Fact]
    held_out: list[Fact]


class Question(NamedTuple):
    """(head, relation, ?), the answer now, and one that was right in the snapshot before."""

    now: Fact
    before: Fact


def read_snapshots(data: str, steps: int) -> list[Snapshot]:
    """The last `steps` + 1 snapshots of a folder, by name; what is held out is taken out of training.

    Args:
        data: a folder of folders with train.tsv, valid.tsv and test.tsv; or `toy`.

    Raises:
        ValueError: there are not two.
    """
    if data == "toy":
        return _toy(steps)
    folders = sorted(p.parent for p in Path(data).glob("*/train.tsv"))[-steps - 1 :]
    if len(folders) < 2:
        raise ValueError(
            f"--data {data}: not two snapshots: give a folder of folders (such as 2008/, 2009/), each "
            "with train.tsv, valid.tsv and test.tsv, HEAD<tab>RELATION<tab>TAIL a line"
        )
    snapshots = []
    for folder in folders:
        train, valid, test = (read_triples(folder / f"{part}.tsv") for part in PARTS)
        held = dict.fromkeys([*valid, *test])
        train = [f for f in train if f not in held]
        seen = {name for h, _, t in train for name in (h, t)}
        relations = {r for _, r, _ in train}
        usable = [f for f in held if f[0] in seen and f[2] in seen and f[1] in relations]
        snapshots.append(Snapshot(folder.name, train, usable))
    return snapshots


def snapshots_digest(arguments: Mapping[str, object]) -> str:
    """Hash of the snapshots that an arm with these arguments sees."""
    found = read_snapshots(str(arguments["data"]), int(str(arguments["steps"])))
    return "/".join(facts_digest([*s.train, *s.held_out]) for s in found)


def questions(before: Snapshot, now: Snapshot) -> list[Question]:
    """What has another answer now: an old one is true no more, and a new one is learnt."""
    old, new = set(before.train), set(now.train)
    gone: dict[tuple[str, str], Fact] = {f[:2]: f for f in sorted(old - new - set(now.held_out))}
    return [Question(f, gone[f[:2]]) for f in sorted(new - old) if f[:2] in gone]


class Examined:
    """A graph's measures at one snapshot, whatever gives the distances.

    Args:
        entities, relations: names by number, all of the snapshot's among them.
        first: names of the entities that were there at the start: other test triples are "new".
        before: the snapshot before.
    """

    def __init__(
        self,
        entities: Names,
        relations: Names,
        first: Collection[str],
        before: Snapshot,
        now: Snapshot,
    ) -> None:
        def rows(facts: Sequence[Fact]) -> Ints:
            return numbered(facts, entities, relations)

        train = rows(now.train)
        self.known = TripleIndex(np.concatenate([train, rows(now.held_out)]))
        self.candidate = torch.zeros(len(entities), dtype=torch.bool)
        self.candidate[torch.from_numpy(np.unique(train[:, [HEAD, TAIL]]))] = True
        old = [f for f in now.held_out if f[0] in first and f[2] in first]
        self.parts = {"old": rows(old), "new": rows(sorted(set(now.held_out) - set(old)))}
        there = {name for h, _, t in now.train for name in (h, t)}
        kept = {r for _, r, _ in now.train}
        true = {*now.train, *now.held_out}
        self.gone = rows([f for f in before.train
                          if f not in true and f[1] in kept and {f[0], f[2]} <= there])  # fmt: skip
        asked = [q for q in questions(before, now) if q.before[2] in there]
        self.now, self.was = rows([q.now for q in asked]), rows([q.before for q in asked])

    def measures(self, far: Far) -> dict[str, float]:
        """Link prediction on triples of old and with new entities, unlearning, and questions."""
        found: dict[str, float] = {}
        for part, rows in self.parts.items():
            ranks = rank_triples(far, rows, self.known, self.candidate)
            measures = link_measures(ranks)
            found |= {f"{part}/{name}": measures[name] for name in ("mrr", "hits@10")}
        found["unlearnt"] = self._auc(far)
        for name, rows in (("answer", self.now), ("old answer", self.was)):
            ranks = rank_triples(far, rows, self.known, self.candidate, ("tail",))
            measures = link_measures(ranks)
            found |= {f"{name}/{key}": measures[key] for key in ("hits@1", "mrr")}
        return found

    def _auc(self, far: Far) -> float:
        """How often a deleted triple is more distant than a held-out true one."""
        if not len(self.gone) or not len(self.parts["old"]):
            return math.nan
        parts = []
        for rows in (self.parts["old"], self.gone):
            own = [far(block, "tail").gather(1, torch.from_numpy(block[:, [TAIL]]))
                   for block in np.array_split(rows, len(rows) // 256 + 1)]  # fmt: skip
            parts.append(torch.cat(own).flatten())
        return retained_auc(*parts)


def mean_measures(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over the steps that have it; what none has is left out."""
    found = {}
    for name in dict.fromkeys(name for step in steps for name in step):
        values = [step[name] for step in steps if name in step and not math.isnan(step[name])]
        if values:
            found[name] = sum(values) / len(values)
    return found


def _toy(steps: int) -> list[Snapshot]:
    """Teams of a league and their members, some of whom change their team at every step."""
    rng = np.random.default_rng(0)
    team = rng.integers(0, 6, 60)
    snapshots = []
    for step in range(steps + 1):
        facts: list[Fact] = []
        for i, t in enumerate(team):
            facts += [(f"p{i}", "plays_for", f"t{t}"), (f"p{i}", "lives_in", f"city{t}")]
            facts.append((f"p{i}", "knows", f"p{(i * 7 + 6) % len(team)}"))
        facts += [(f"t{t}", "based_in", f"city{t}") for t in range(6)]
        held = [f for i, f in enumerate(facts) if f[1] == "lives_in" and i % 5 == 0]
        snapshots.append(Snapshot(str(step), [f for f in facts if f not in held], held))
        team = np.append(team, rng.integers(0, 6, 4))
        team[rng.choice(len(team), 8, replace=False)] = rng.integers(0, 6, 8)
    return snapshots
