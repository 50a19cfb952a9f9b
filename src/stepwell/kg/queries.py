"""Queries to an embedded graph: the most plausible answers, the nearest entities, and measures."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial, wraps
from numbers import Integral
from pathlib import Path
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.data.triples import Fact, check_fact
from stepwell.evaluation.link_prediction import link_measures, retained_auc
from stepwell.kg.embedding import COLUMNS, Kind
from stepwell.kg.pending import Pending
from stepwell.kg.ranking import SIDES, Side, distances, distances_to_all, rank_triples
from stepwell.kg.state import State

P, R = ParamSpec("P"), TypeVar("R")


def synchronized(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Let only one thread at a time into the methods of a graph."""

    @wraps(method)
    def entered(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._one_at_a_time:
            return method(self, *args, **kwargs)

    return entered


class Answer(NamedTuple):
    """An entity as an answer: its distance (low: plausible), and whether the graph has that triple."""

    name: str
    distance: float
    known: bool


class GraphQueries:
    """The queries to a graph; they see it as it was after its last update."""

    path: Path
    _state: State
    _pending: Pending
    #: Held by each call, so that a thread never sees a graph in the middle of a change.
    _one_at_a_time: AbstractContextManager[object]

    @property
    @synchronized
    def entities(self) -> list[str]:
        """Names of the entities in any triple."""
        return self._present("entity")

    @property
    @synchronized
    def relations(self) -> list[str]:
        """Names of the relations in any triple."""
        return self._present("relation")

    @synchronized
    def vector(self, entity: str) -> Float[Tensor, " dim"]:
        """The joint vector of an entity."""
        return self._state.joint["entity"][self._number("entity", entity)].clone()

    @synchronized
    def rank(
        self, head: str | None, relation: str, tail: str | None = None, *, k: int = 10
    ) -> list[Answer]:
        """The k most plausible answers to (head, relation, ?) or, with `tail`, (?, relation, tail).

        Raises:
            ValueError: a name is unknown (the nearest are suggested), both ends are given, or `k` is
                not a positive whole number.
        """
        if (head is None) == (tail is None):
            raise ValueError("give either a head or a tail; the other end is what is asked for")
        _check_count(k)
        side: Side = "tail" if tail is None else "head"
        given = self._number("entity", head if tail is None else tail)
        row = np.array([[given, self._number("relation", relation), given]])
        far = distances_to_all(self._state.vectors(), row, side)[0]
        index, h, r = self._state.snapshot.index, row[:, 0], row[:, 1]
        known = set((index.tails(h, r) if side == "tail" else index.heads(r, h)).value.tolist())
        return [Answer(name, d, i in known) for name, d, i in self._nearest(far, k)]

    @synchronized
    def neighbours(self, entity: str, k: int = 10) -> list[Answer]:
        """The k entities with the nearest joint vectors; `known`: they share a triple with `entity`.

        Raises:
            ValueError: there is no such entity (the nearest names are suggested), or `k` is not a
                positive whole number.
        """
        _check_count(k)
        number = self._number("entity", entity)
        vectors = self._state.vectors()["entity"]
        far = (vectors - vectors[number]).norm(dim=1)
        far[number] = torch.inf
        nearest = self._nearest(far, k)
        others = np.array([i for _, _, i in nearest], dtype=np.int64)
        joined = self._state.snapshot.neighbours.joined(np.full_like(others, number), others)
        return [Answer(name, d, bool(j)) for (name, d, _), j in zip(nearest, joined, strict=True)]

    @synchronized
    def facts(self, entity: str) -> list[Fact]:
        """All learned triples with an entity."""
        number = self._number("entity", entity)
        names, index = self._state.names, self._state.snapshot.index
        at = np.array([number])
        triples = [(number, r, t) for _, r, t in zip(*index.out(at), strict=True)]
        triples += [(h, r, number) for _, r, h in zip(*index.into(at), strict=True) if h != number]
        return [(names["entity"][h], names["relation"][r], names["entity"][t]) for h, r, t in triples]

    @synchronized
    def score(self, facts: Iterable[Sequence[str]]) -> list[float]:
        """||h* + r* - t*|| of any triples with known names; low is plausible."""
        checked = [check_fact(fact, "score") for fact in facts]
        rows = [[self._number(kind, fact[i]) for i, kind in COLUMNS] for fact in checked]
        triples = np.array(rows, dtype=np.int64).reshape(-1, 3)
        far: list[float] = distances(self._state.vectors(), triples).tolist()
        return far

    @synchronized
    def evaluate(
        self, test: Iterable[Sequence[str]], *, gone: Iterable[Sequence[str]] = (),
        ask: Literal["both", "head", "tail"] = "both",
    ) -> dict[str, float]:  # fmt: skip
        """Measure how well true triples rank, and whether old triples were unlearned.

        Ranks are realistic and filtered: other triples of the graph and of `test` do not compete. So a
        `gone` triple is ranked among wrong answers, without the new answer.

        Args:
            test: triples that are true. With `ask="tail"` they are questions.
            gone: triples that are no longer true.
            ask: the queried ends.

        Returns:
            `link_measures` of `test`; with `gone`, the same measures as "gone/...", and "auc": the
            share of pairs in which a gone triple is farther than a test triple. Gone triples were
            learned once, so "auc" is low before an update: compare with that value, or with a graph
            trained from scratch. "left_out" and "gone/left_out" count triples with a name that no
            triple of the graph has. If all of `test` is left out, only these counts are given.
        """
        if ask not in ("both", *SIDES):
            raise ValueError(f"ask must be 'both', 'head' or 'tail', got {ask!r}")
        sides: tuple[Side, ...] = SIDES if ask == "both" else (ask,)
        test_facts = [check_fact(fact, "test") for fact in test]
        gone_facts = [check_fact(fact, "gone") for fact in gone]
        rows, gone_rows = (
            self._state.rows_of([f for f in facts if self._rankable(f)])
            for facts in (test_facts, gone_facts)
        )
        joint, present = self._state.vectors(), self._state.present()
        far = partial(distances_to_all, joint)
        known = self._state.snapshot.index.changed(rows, rows[:0])
        measures = {"triples": float(len(rows)), "left_out": float(len(test_facts) - len(rows))}
        if gone_facts:
            measures["gone/left_out"] = float(len(gone_facts) - len(gone_rows))
        if not len(rows):
            return measures
        measures |= link_measures(rank_triples(far, rows, known, present, sides))
        if len(gone_rows):
            ranks = rank_triples(far, gone_rows, known, present, sides)
            measures |= {f"gone/{name}": value for name, value in link_measures(ranks).items()}
            measures["auc"] = retained_auc(distances(joint, rows), distances(joint, gone_rows))
        return measures

    def _rankable(self, fact: Fact) -> bool:
        return all(self._state.holds(kind, fact[i]) for i, kind in COLUMNS)

    def _number(self, kind: Kind, name: object) -> int:
        if not isinstance(name, str):
            raise ValueError(f"{kind}: give a name, not {name!r}")
        if not self._state.holds(kind, name):
            if self._pending.adds_name(kind, name):
                raise ValueError(f"{kind} {name!r} waits for an update: update the graph first")
            if name in self._state.names[kind]:
                raise ValueError(f"{kind} {name!r} is no longer in any triple of the graph")
        return self._state.names[kind].number(name)

    def _present(self, kind: Kind) -> list[str]:
        names = self._state.names[kind].names
        return [names[i] for i in np.flatnonzero(self._state.count[kind])]

    def _nearest(self, far: Tensor, k: int) -> list[tuple[str, float, int]]:
        """Name, distance and number of the k nearest entities of the graph."""
        far[~self._state.present()] = torch.inf
        if far.isnan().any():
            raise ValueError(
                f"{self.path}: vectors are not finite: restore a copy of the run, or train into "
                "another --out"
            )
        value, which = far.topk(min(k, len(far)), largest=False)
        names = self._state.names["entity"]
        pairs = zip(which.tolist(), value.tolist(), strict=True)
        return [(names[i], d, i) for i, d in pairs if d != float("inf")]


def _check_count(k: object) -> None:
    if not isinstance(k, Integral) or isinstance(k, bool) or int(k) < 1:
        raise ValueError(f"k must be at least 1 and a whole number, not {k!r}")
