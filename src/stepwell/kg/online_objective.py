"""The training rule of an update, and the initial vectors of new elements."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from stepwell.kg.contexts import CENTRE, Contexts
from stepwell.kg.embedding import COLUMNS, KINDS, GraphEmbedding, Kind, Table, Vectors, xavier
from stepwell.kg.objective import Corruption, Translation, Triples
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.triple_index import Ints, Rows

#: Steps that move a new element's knowledge vector until its joint vector has its initial value.
PLACING_STEPS = 8


class OnlineDKGE(Translation):
    """The training rule of the affected and new elements.

    Args:
        net: the whole embedding; it is read only.
        joint: joint vectors of all elements, by kind; rows of trained elements are not used.
        after: the graph after the change.
        trained: sorted elements whose knowledge vectors are trained, with all of `new`.
        new: sorted elements whose contextual vectors are trained.
        initial: joint vectors of new elements, by kind. contextual: their contextual vectors.
        removed, unlearn, corrupt, margin, negatives: as for `Translation`.
    """

    def __init__(
        self, net: GraphEmbedding, joint: Mapping[Kind, Table], after: Snapshot,
        trained: Mapping[Kind, Ints], new: Mapping[Kind, Ints], initial: Mapping[Kind, Table],
        contextual: Mapping[Kind, Table], removed: Triples, corrupt: Corruption, *, unlearn: float,
        margin: float, negatives: int,
    ) -> None:  # fmt: skip
        super().__init__(corrupt, margin=margin, negatives=negatives, removed=removed, unlearn=unlearn)
        self._joint = joint
        self.trained = {kind: torch.from_numpy(trained[kind]) for kind in KINDS}
        self.knowledge, self.contextual = nn.ParameterDict(), nn.ParameterDict()
        self.encoders: Mapping[Kind, nn.Module] | None = None
        if net.has_context:
            self.encoders = {k: deepcopy(net.encoders[k]).requires_grad_(False) for k in KINDS}
        self._contexts: dict[Kind, Contexts] = {}
        self._fixed: dict[Kind, Tensor] = {}
        for kind in KINDS:
            vectors = net.knowledge[kind].detach()[self.trained[kind]]
            place = np.searchsorted(trained[kind], new[kind])
            vectors[place] = initial[kind]
            self.knowledge[kind] = nn.Parameter(vectors)
            if net.has_context:
                self.contextual[kind] = nn.Parameter(contextual[kind])
                self._hold_contexts(kind, net, after.contexts(kind, trained[kind]), new[kind])
                self._place(kind, place, initial[kind])

    @torch.no_grad()
    def _place(self, kind: Kind, which: Ints, goal: Table) -> None:
        """Move the knowledge vectors at positions `which` until their joint vectors are near `goal`.

        A step adds the difference. If that leads away, the step is undone and the next one is half as
        long.
        """
        at = torch.from_numpy(which)
        vectors, step = self.knowledge[kind], torch.ones(len(which), 1)
        best, missing = vectors[at], goal - self.trained_joint(kind, at)
        for _ in range(PLACING_STEPS):
            vectors[at] = best + step * missing
            now = goal - self.trained_joint(kind, at)
            nearer = now.norm(dim=1, keepdim=True) < missing.norm(dim=1, keepdim=True)
            best = torch.where(nearer, vectors[at], best)
            missing = torch.where(nearer, now, missing)
            step = torch.where(nearer, step, step / 2)
        vectors[at] = best

    def _hold_contexts(self, kind: Kind, net: GraphEmbedding, contexts: Contexts, new: Ints) -> None:
        """Point the contexts into a small table of the rows they use, with new elements last."""
        element = contexts.element.numpy()
        centre = element == CENTRE
        old = np.setdiff1d(element[~centre], new)
        place = np.where(centre, CENTRE, np.searchsorted(old, element))
        is_new = np.isin(element, new)
        place[is_new] = len(old) + np.searchsorted(new, element[is_new])
        self._contexts[kind] = replace(contexts, element=torch.from_numpy(place))
        self._fixed[kind] = net.contextual[kind].detach()[torch.from_numpy(old)]

    def trained_joint(self, kind: Kind, which: Int64[Tensor, " some"] | None = None) -> Vectors:
        """Joint vectors of the trained elements, or of those at positions `which`."""
        knowledge: Tensor = self.knowledge[kind]
        knowledge = knowledge if which is None else knowledge[which]
        if self.encoders is None:
            return knowledge
        contexts = self._contexts[kind] if which is None else self._contexts[kind].select(which)
        table = torch.cat([self._fixed[kind], self.contextual[kind]])
        joint: Tensor = self.encoders[kind](knowledge, table, contexts)
        return joint

    def joint(self, kind: Kind, which: Int64[Tensor, " elements"]) -> Vectors:
        """Joint vectors of the elements `which`; only those of trained elements have a gradient."""
        at, joint = _positions(self.trained[kind], which), self._joint[kind][which]
        mine = (at >= 0).nonzero().flatten()
        return joint.index_put((mine,), self.trained_joint(kind, at[mine])) if len(mine) else joint


def initial_vectors(
    joint: Mapping[Kind, Table], added: Rows, new: Mapping[Kind, Ints], passes: int = 3
) -> dict[Kind, Table]:
    """Compute joint vectors for new elements from their triples.

    An entity gets the mean of t* - r* and h* + r* over its triples, and a relation the mean of t* - h*.
    A triple counts if its other elements have a vector; a later pass uses vectors of the one before.
    Other new elements get a random vector.

    Args:
        joint: joint vectors by kind; rows of new elements are not used.
        added: triples, including all triples of new elements.
        new: sorted elements without a vector, by kind.
    """
    number = {kind: torch.from_numpy(new[kind]) for kind in KINDS}
    vectors = {kind: xavier(len(new[kind]), joint[kind].shape[1]) for kind in KINDS}
    known = {kind: torch.zeros(len(new[kind]), dtype=torch.bool) for kind in KINDS}
    rows = torch.from_numpy(added)
    for _ in range(passes):
        h, r, t = (
            _Column.of(rows[:, i].contiguous(), joint[k], number[k], vectors[k], known[k])
            for i, k in COLUMNS
        )
        estimates: dict[Kind, list[tuple[_Column, Tensor, Tensor]]] = {
            "entity": [(h, t.vector - r.vector, r.known & t.known),
                       (t, h.vector + r.vector, h.known & r.known)],
            "relation": [(r, t.vector - h.vector, h.known & t.known)],
        }  # fmt: skip
        for kind in KINDS:
            _take_means(vectors[kind], known[kind], estimates[kind])
    return vectors


class _Column(NamedTuple):
    """The elements in one column of triples: current vectors, and places among new ones (-1: old)."""

    vector: Tensor
    known: Tensor
    place: Tensor

    @staticmethod
    def of(which: Tensor, joint: Tensor, new: Tensor, vectors: Tensor, known: Tensor) -> "_Column":
        vector, has_vector = joint[which], torch.ones(len(which), dtype=torch.bool)
        place = _positions(new, which)
        is_new = place >= 0
        vector[is_new], has_vector[is_new] = vectors[place[is_new]], known[place[is_new]]
        return _Column(vector, has_vector, place)


def _positions(
    numbers: Int64[Tensor, " numbers"], which: Int64[Tensor, " which"]
) -> Int64[Tensor, " which"]:
    """The positions of `which` among sorted `numbers`; -1 for absent ones."""
    if not len(numbers):
        return torch.full_like(which, -1)
    at = torch.searchsorted(numbers, which).clamp(max=len(numbers) - 1)
    return torch.where(numbers[at] == which, at, -1)


def _take_means(
    vectors: Tensor, known: Tensor, estimates: list[tuple[_Column, Tensor, Tensor]]
) -> None:
    """Set the vectors of new elements to the mean of their estimates, if there are any."""
    total, count = torch.zeros_like(vectors), torch.zeros(len(vectors))
    for column, estimate, usable in estimates:
        take = usable & (column.place >= 0)
        total.index_add_(0, column.place[take], estimate[take])
        count.index_add_(0, column.place[take], torch.ones(int(take.sum())))
    some = count > 0
    vectors[some] = total[some] / count[some, None]
    known |= some
