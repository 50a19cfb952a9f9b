"""Questions to an embedded graph: the most plausible answers, the nearest entities, and measures."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial, wraps
from numbers import Integral
from pathlib import Path
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

from stepwell.data.triples import Fact, check_fact
from stepwell.evaluation.link_prediction import link_measures, retained_auc
from stepwell.kg.embedding import COLUMNS, Kind
from stepwell.kg.ranking import SIDES, Side, distances, distances_to_all, rank_triples
from stepwell.kg.state import State

P, R = ParamSpec("P"), TypeVar("R")


def alone(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], R]:
    """Let one thread at a time into the methods of a graph."""

    @wraps(method)
    def entered(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._alone:
            return method(self, *args, **kwargs)

    return entered


class Answer(NamedTuple):
    """An entity as an answer: its distance (low: plausible), and whether the graph has that triple."""

    name: str
    distance: float
    known: bool


class Asked:
    """A graph that can be asked; it is as it was at its last update."""

    path: Path
    _state: State
    #: Held by each call, so that threads see a graph between changes, never amid one.
    _alone: AbstractContextManager[object]

    @property
    @alone
    def entities(self) -> list[str]:
        """Names of the entities in any triple."""
        return self._present("entity")

    @property
    @alone
    def relations(self) -> list[str]:
        """Names of the relations in any triple."""
        return self._present("relation")

    @alone
    def vector(self, entity: str) -> torch.Tensor:
        """The joint vector of an entity, (dim,)."""
        return self._state.joint["entity"][self._number("entity", entity)].clone()

    @alone
    def rank(
        self, head: str | None, relation: str, tail: str | None = None, *, k: int = 10
    ) -> list[Answer]:
        """The k most plausible answers to (head, relation, ?) or, with `tail`, (?, relation, tail).

        Raises:
            ValueError: a name is not there (the nearest are suggested), both ends are given, or `k` is
                no whole number above 0.
        """
        if (head is None) == (tail is None):
            raise ValueError("give a head or a tail, and ask for the other")
        _check_count(k)
        side: Side = "tail" if tail is None else "head"
        given = self._number("entity", head if tail is None else tail)
        row = np.array([[given, self._number("relation", relation), given]])
        far = distances_to_all(self._state.vectors(), row, side)[0]
        far[~self._state.present()] = torch.inf
        index, h, r = self._state.facts.index, row[:, 0], row[:, 1]
        known = set((index.tails(h, r) if side == "tail" else index.heads(r, h)).value.tolist())
        return [Answer(n, d, i in known) for n, d, i in self._nearest(far, k)]

    @alone
    def neighbours(self, entity: str, k: int = 10) -> list[Answer]:
        """The k entities whose joint vectors are nearest; `known`: they share a triple with it.

        Raises:
            ValueError: there is no such entity (the nearest names are suggested), or `k` is no whole
                number above 0.
        """
        _check_count(k)
        number = self._number("entity", entity)
        vectors = self._state.vectors()["entity"]
        far = (vectors - vectors[number]).norm(dim=1)
        far[~self._state.present()] = torch.inf
        far[number] = torch.inf
        found = self._nearest(far, k)
        others = np.array([i for _, _, i in found], dtype=np.int64)
        joined = self._state.facts.neighbours.joined(np.full_like(others, number), others)
        return [Answer(n, d, bool(j)) for (n, d, _), j in zip(found, joined, strict=True)]

    @alone
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

    @alone
    def score(self, facts: Iterable[Sequence[str]]) -> list[float]:
        """||h* + r* - t*|| of triples, whether they are in the graph or not; low is plausible."""
        checked = [check_fact(fact, "score") for fact in facts]
        rows = [[self._number(kind, fact[i]) for i, kind in COLUMNS] for fact in checked]
        found: list[float] = distances(
            self._state.vectors(), np.array(rows, dtype=np.int64).reshape(-1, 3)
        ).tolist()
        return found

    @alone
    def evaluate(
        self,
        test: Iterable[Sequence[str]],
        *,
        gone: Iterable[Sequence[str]] = (),
        ask: Literal["both", "head", "tail"] = "both",
    ) -> dict[str, float]:
        """How well true triples are ranked, and whether old ones were unlearnt.

        Ranks are realistic and filtered: other triples of the graph and of `test` do not compete. That
        holds for `gone` ones, too: an old answer is ranked among wrong ones, with the new answer left
        out, so that its ranks compare with those of `test`.

        Args:
            test: triples that are true. Asking for the `tail` alone is answering questions.
            gone: triples that are true no more.
            ask: which ends are asked for.

        Returns:
            `link_measures` of `test`; with `gone`, "gone/..." of these in the same way, and "auc": the
            share of pairs in which one of them is more distant than one of `test`. They were learnt,
            and those of `test` perhaps never, so it is low before they are removed: compare it with
            that, or with that of a graph trained anew. "left_out" counts triples of `test` with a name
            that stands in no triple of the graph, and "gone/left_out" those of `gone`; where that is
            all of `test`, nothing is measured, and there is no more than these counts.
        """
        if ask not in ("both", *SIDES):
            raise ValueError(f"ask is 'both', 'head' or 'tail', not {ask!r}")
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
        found["left_out"] = float(len(asked) - len(rows))
        if old:
            found["gone/left_out"] = float(len(old) - len(before))
        if not len(rows):
            return found
        found |= link_measures(rank_triples(far, rows, known, present, sides))
        if len(before):
            ranks = rank_triples(far, before, known, present, sides)
            found |= {f"gone/{name}": value for name, value in link_measures(ranks).items()}
            found["auc"] = retained_auc(distances(joint, rows), distances(joint, before))
        return found

    def _rankable(self, fact: Fact) -> bool:
        return all(self._state.holds(kind, fact[i]) for i, kind in COLUMNS)

    def _number(self, kind: Kind, name: object) -> int:
        if not isinstance(name, str):
            raise ValueError(f"{kind}: give a name, not {name!r}")
        if not self._state.holds(kind, name):
            if self._awaits(kind, name):
                raise ValueError(
                    f"{kind} {name!r} waits for an update of the graph: update it first"
                )
            if name in self._state.names[kind]:
                raise ValueError(f"{kind} {name!r} stands in no triple of the graph any more")
        return self._state.names[kind].number(name)

    def _present(self, kind: Kind) -> list[str]:
        names = self._state.names[kind].names
        return [names[i] for i in np.flatnonzero(self._state.count[kind])]

    def _nearest(self, far: torch.Tensor, k: int) -> list[tuple[str, float, int]]:
        if far.isnan().any():
            raise ValueError(
                f"{self.path}: vectors are not finite: bring back a copy of the run, or train into "
                "another --out"
            )
        value, which = far.topk(min(k, len(far)), largest=False)
        names = self._state.names["entity"]
        pairs = zip(which.tolist(), value.tolist(), strict=True)
        return [(names[i], d, i) for i, d in pairs if d != float("inf")]

    def _awaits(self, kind: Kind, name: str) -> bool:
        """Whether the next update will bring the name."""
        return False


def _check_count(k: object) -> None:
    if not isinstance(k, Integral) or isinstance(k, bool) or int(k) < 1:
        raise ValueError(f"k must be at least 1 and a whole number, not {k!r}")
