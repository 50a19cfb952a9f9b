"""Snapshots of a graph that changes, for a study, and measures of an embedding's answers."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from stepwell.data.triples import Fact, Names, facts_digest, numbered, read_triples
from stepwell.evaluation.link_prediction import link_measures, retained_auc
from stepwell.kg.ranking import Far, rank_triples
from stepwell.kg.triple_index import HEAD, TAIL, Rows, TripleIndex

PARTS = ("train", "valid", "test")
#: Learned triples beside a change that are ranked, drawn at random.
BESIDE = 1000


@dataclass(frozen=True)
class Snapshot:
    """A graph at one moment.

    train: learned triples. held_out: other true triples. judged: held-out triples that are ranked.
    """

    name: str
    train: list[Fact]
    held_out: list[Fact]
    judged: list[Fact]

    @cached_property
    def true(self) -> set[Fact]:
        """All triples."""
        return {*self.train, *self.held_out}


class Question(NamedTuple):
    """(head, relation, ?), the answer now, and one that was right in the snapshot before."""

    now: Fact
    before: Fact


def read_snapshots(data: str, steps: int, part: str = "test") -> list[Snapshot]:
    """The last `steps` + 1 snapshots of a folder, by name: 9 before 10.

    A triple that any of them holds out is in no training: an earlier one would be remembered, and a
    later one taught as removed.

    Args:
        data: a folder of folders with train.tsv, valid.tsv and test.tsv; or `toy`.
        part: `test`, or `valid` to choose settings by.

    Raises:
        ValueError: there are not two snapshots.
    """
    if data == "toy":
        return _toy(steps)
    folders = snapshot_folders(Path(data))[-steps - 1 :]
    if len(folders) < 2:
        problem = f"--data {data}: not two snapshots" if data else "--data is missing"
        raise ValueError(
            f"{problem}: give a folder of folders (such as 2008/, 2009/), each "
            "with train.tsv, valid.tsv and test.tsv, HEAD<tab>RELATION<tab>TAIL a line"
        )
    read = [{name: read_triples(f / f"{name}.tsv") for name in PARTS} for f in folders]
    held_out = {fact for parts in read for name in ("valid", "test") for fact in parts[name]}
    snapshots = []
    for folder, parts in zip(folders, read, strict=True):
        train = [f for f in parts["train"] if f not in held_out]
        entities = {name for h, _, t in train for name in (h, t)}
        relations = {r for _, r, _ in train}
        true = dict.fromkeys([*parts["valid"], *parts["test"], *parts["train"]])
        usable = [f for f in true
                  if f in held_out and f[0] in entities and f[2] in entities
                  and f[1] in relations]  # fmt: skip
        judged = set(parts[part])
        snapshots.append(Snapshot(folder.name, train, usable, [f for f in usable if f in judged]))
    return snapshots


def snapshot_folders(data: Path) -> list[Path]:
    """The folders with a train.tsv in a folder, in order."""
    return sorted((p.parent for p in data.glob("*/train.tsv")), key=_in_order)


def _in_order(folder: Path) -> list[tuple[int, str]]:
    """By name; numbers in it count as numbers, so that 10 comes after 9."""
    parts = re.split(r"(\d+)", folder.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def snapshots_digest(arguments: Mapping[str, object]) -> str:
    """Hash of the snapshots that an arm with these arguments sees."""
    snapshots = read_snapshots(str(arguments["data"]), int(str(arguments["steps"])))
    return "/".join(facts_digest([*s.train, *s.held_out]) for s in snapshots)


def questions(before: Snapshot, now: Snapshot) -> list[Question]:
    """Questions whose answer has changed: the old one is gone, the only one now is learned and new."""
    gone: dict[tuple[str, str], Fact] = {f[:2]: f for f in sorted(set(before.train) - now.true)}
    answers = Counter(f[:2] for f in now.true)
    came = sorted(set(now.train) - before.true)
    return [Question(f, gone[f[:2]]) for f in came if f[:2] in gone and answers[f[:2]] == 1]


class Examined:
    """Measures of a graph at one snapshot, for any source of distances.

    Args:
        entities, relations: names by number, with all names of the snapshot.
        first: the first snapshot. Judged triples were true there ("still"), came later between its
            entities ("came"), or have a new entity ("new").
        before: the snapshot before. A triple is "beside" the change if all three snapshots have it and
            it shares an end with a changed triple.
    """

    def __init__(
        self, entities: Names, relations: Names, first: Snapshot, before: Snapshot, now: Snapshot
    ) -> None:
        def rows(facts: Sequence[Fact]) -> Rows:
            return numbered(facts, entities, relations)

        train = rows(now.train)
        self.known = TripleIndex(np.concatenate([train, rows(now.held_out)]))
        self.candidate = torch.zeros(len(entities), dtype=torch.bool)
        self.candidate[torch.from_numpy(np.unique(train[:, [HEAD, TAIL]]))] = True
        names = {name for h, _, t in first.train for name in (h, t)}
        parts: dict[str, list[Fact]] = {"still": [], "came": [], "new": []}
        for fact in now.judged:
            old = fact[0] in names and fact[2] in names
            parts["still" if fact in first.true else "came" if old else "new"].append(fact)
        self.parts = {part: rows(facts) for part, facts in parts.items()}
        present = {name for h, _, t in now.train for name in (h, t)}
        relations_now = {r for _, r, _ in now.train}
        ends = {name for h, _, t in {*before.train} ^ {*now.train} for name in (h, t)}
        long = first.true & before.true
        beside = [f for f in now.train if f in long and not ends.isdisjoint((f[0], f[2]))]
        drawn = np.random.default_rng(0).permutation(len(beside))[:BESIDE]
        self.beside = rows([beside[i] for i in drawn])
        gone = [f for f in before.train if f not in now.true and f[1] in relations_now]
        self.gone = rows([f for f in gone if {f[0], f[2]} <= present])
        answerable = [q for q in questions(before, now) if q.before[2] in present]
        self.now, self.was = rows([q.now for q in answerable]), rows([q.before for q in answerable])

    def measures(self, far: Far) -> dict[str, float]:
        """Link prediction on each part of the held-out triples, unlearning, and questions.

        With "n" of each, the number of triples that it is a mean over.
        """
        numbers: dict[str, float] = {}
        for part, rows in {**self.parts, "beside": self.beside}.items():
            ranks = rank_triples(far, rows, self.known, self.candidate)
            numbers |= _named(part, len(rows), link_measures(ranks), "mrr", "hits@10")
        numbers |= _named("gone", len(self.gone), {"unlearnt": self._auc(far)}, "unlearnt")
        for name, rows in (("answer", self.now), ("old answer", self.was)):
            ranks = rank_triples(far, rows, self.known, self.candidate, ("tail",))
            numbers |= _named(name, len(rows), link_measures(ranks), "hits@1", "mrr", "mean_rank")
        return numbers

    def _auc(self, far: Far) -> float:
        """The share of pairs in which a deleted triple is more distant than a held-out true one."""
        if not len(self.gone) or not len(self.parts["still"]):
            return math.nan
        parts = []
        for rows in (self.parts["still"], self.gone):
            distances = [far(block, "tail").gather(1, torch.from_numpy(block[:, [TAIL]]))
                         for block in np.array_split(rows, len(rows) // 256 + 1)]  # fmt: skip
            parts.append(torch.cat(distances).flatten())
        return retained_auc(*parts)


def _named(part: str, count: int, measures: Mapping[str, float], *names: str) -> dict[str, float]:
    return {f"{part}/{name}": measures[name] for name in names} | {f"{part}/n": count}


def mean_measures(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over steps; of "part/measure" over the triples of all steps, of "part/n" the sum."""
    means = {}
    for name in dict.fromkeys(name for step in steps for name in step):
        having = [step for step in steps if name in step and not math.isnan(step[name])]
        part, _, measure = name.rpartition("/")
        if measure == "n":
            means[name] = sum(step[name] for step in having)
            continue
        weights = [step.get(f"{part}/n", 1.0) if part else 1.0 for step in having]
        if sum(weights):
            total = sum(step[name] * w for step, w in zip(having, weights, strict=True))
            means[name] = total / sum(weights)
    return means


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
        held_out = [f for i, f in enumerate(facts) if f[1] == "lives_in" and i % 5 == 0]
        snapshots.append(
            Snapshot(str(step), [f for f in facts if f not in held_out], held_out, held_out)
        )
        team = np.append(team, rng.integers(0, 6, 4))
        team[rng.choice(len(team), 8, replace=False)] = rng.integers(0, 6, 8)
    return snapshots
