"""Dynamic knowledge-graph embedding, online: only what a change affects is learnt again.

Wu et al. 2022, section 5: the encoders stay as they are, and so do the contextual vectors of all
elements that were there; the knowledge vectors of affected and of new elements are trained, and the
contextual ones of new elements. The joint vector of an unaffected element is then a constant, which is
looked up and never computed: the cost of an update is that of what it affects.

Ours: removed triples are taught as false, a sample stands for an affected hub's triples, new elements
begin where their triples place them, and parameters hold just what is trained, so that nothing else can
move.
"""

import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from stepwell.kg.contexts import CENTRE, Contexts
from stepwell.kg.embedding import COLUMNS, KINDS, GraphEmbedding, Kind, xavier
from stepwell.kg.snapshot import About, Rule, Snapshot, affected_entities, affected_relations
from stepwell.kg.translation import Corruption, Translation
from stepwell.kg.triple_index import Ints
from stepwell.ranges import NOT_NEGATIVE, ONE_OR_MORE, POSITIVE, check_number

#: How often a new element's vector is moved to where it is to begin.
PLACING = 8
#: Of `Online`, where nothing learns for no epochs, and a batch of one will do.
_RANGES = {
    "epochs": NOT_NEGATIVE,
    "triples": ONE_OR_MORE,
    "batch_size": ONE_OR_MORE,
    "lr": POSITIVE,
    "unlearn": NOT_NEGATIVE,
    "seconds": NOT_NEGATIVE,
}


@dataclass(frozen=True)
class Online:
    """How an update learns.

    rule: which elements a change affects (`nets.facts.Rule`).
    epochs: passes over the triples of what is affected.
    triples: of an affected element that has more heads or tails, a sample of so many each, drawn anew
        for every epoch.
    batch_size: triples of a step. lr: the highest learning rate, of Adam.
    unlearn: weight of removed triples, which are to be farther than true ones; 0 in the paper.
    seconds: stop after so long (0: no bound); where that cuts an update short depends on the machine.

    Raises:
        ValueError: the rule is none, or a number is not in its range.
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
            raise ValueError(f"Online(rule={self.rule!r}): it is one of {rules}")
        for name, within in _RANGES.items():
            check_number(name, getattr(self, name), within)


#: Rows of tables, by kind: which elements, and their vectors.
Rows = Mapping[Kind, tuple[Ints, Tensor]]


@dataclass(frozen=True)
class Learned:
    """What an update changes; everything else stays to the bit.

    affected, new: elements by kind.
    knowledge, joint: of affected and of new elements. contextual: of new ones.
    trained: triples in an epoch. seconds: of all, by the clock.
    """

    affected: Mapping[Kind, Ints]
    new: Mapping[Kind, Ints]
    knowledge: Rows
    contextual: Rows
    joint: Rows
    trained: int
    seconds: float

    @property
    def knowledge_ids(self) -> dict[Kind, Ints]:
        """The elements that may have moved, by kind."""
        return {kind: self.knowledge[kind][0] for kind in KINDS}


class Local(Translation):
    """The part of an embedding that an update trains, on its own.

    Args:
        net: all of it; only looked at.
        joint: joint vectors of all elements, by kind; those of the trained ones are not used.
        after: the graph as it is now.
        trained: elements whose knowledge vectors are trained, sorted; `new` ones are among them.
        new: their contextual vectors are trained, too; sorted.
        start: joint vectors that new elements begin with, by kind. contextual: their contextual ones.
        removed: triples (n, 3) that are true no more. unlearn: weight of their loss.
        corrupt, margin, negatives: as for `Translation`.
    """

    def __init__(
        self,
        net: GraphEmbedding,
        joint: Mapping[Kind, Tensor],
        after: Snapshot,
        trained: Mapping[Kind, Ints],
        new: Mapping[Kind, Ints],
        start: Mapping[Kind, Tensor],
        contextual: Mapping[Kind, Tensor],
        removed: Tensor,
        corrupt: Corruption,
        *,
        unlearn: float,
        margin: float,
        negatives: int,
    ) -> None:
        super().__init__(
            corrupt, margin=margin, negatives=negatives, removed=removed, unlearn=unlearn
        )
        self._joint = joint
        self.trained = {kind: torch.from_numpy(trained[kind]) for kind in KINDS}
        self.knowledge, self.contextual = nn.ParameterDict(), nn.ParameterDict()
        self.encoders: Mapping[Kind, nn.Module] | None = None
        if net.has_context:
            self.encoders = {k: deepcopy(net.encoders[k]).requires_grad_(False) for k in KINDS}
        self._contexts: dict[Kind, Contexts] = {}
        self._fixed: dict[Kind, Tensor] = {}
        for kind in KINDS:
            own = net.knowledge[kind].detach()[self.trained[kind]]
            own[np.searchsorted(trained[kind], new[kind])] = start[kind]
            self.knowledge[kind] = nn.Parameter(own)
            if net.has_context:
                self.contextual[kind] = nn.Parameter(contextual[kind])
                self._hold_contexts(kind, net, after.contexts(kind, trained[kind]), new[kind])
                self._begin_at(kind, np.searchsorted(trained[kind], new[kind]), start[kind])

    @torch.no_grad()
    def _begin_at(self, kind: Kind, which: Ints, start: Tensor) -> None:
        """Set the knowledge vectors at positions `which` so that their joint vectors are near `start`.

        A joint vector is for the most part its knowledge vector, so what is missing is added to that, a
        few times. Where a gate is nearly closed that leads away: such a step is undone, and the next
        one half as long.
        """
        at = torch.from_numpy(which)
        own, step = self.knowledge[kind], torch.ones(len(which), 1)
        kept, missing = own[at], start - self.trained_joint(kind, at)
        for _ in range(PLACING):
            own[at] = kept + step * missing
            now = start - self.trained_joint(kind, at)
            nearer = now.norm(dim=1, keepdim=True) < missing.norm(dim=1, keepdim=True)
            kept = torch.where(nearer, own[at], kept)
            missing = torch.where(nearer, now, missing)
            step = torch.where(nearer, step, step / 2)
        own[at] = kept

    def _hold_contexts(
        self, kind: Kind, net: GraphEmbedding, contexts: Contexts, new: Ints
    ) -> None:
        """Point the contexts into a table of the few rows they need, those of new elements last."""
        element = contexts.element.numpy()
        centre = element == CENTRE
        old = np.setdiff1d(element[~centre], new)
        place = np.where(centre, CENTRE, np.searchsorted(old, element))
        fresh = np.isin(element, new)
        place[fresh] = len(old) + np.searchsorted(new, element[fresh])
        self._contexts[kind] = contexts.pointing(torch.from_numpy(place))
        self._fixed[kind] = net.contextual[kind].detach()[torch.from_numpy(old)]

    def trained_joint(self, kind: Kind, which: Tensor | None = None) -> Tensor:
        """Joint vectors of the trained elements, or of those at positions `which`."""
        knowledge: Tensor = self.knowledge[kind]
        knowledge = knowledge if which is None else knowledge[which]
        if self.encoders is None:
            return knowledge
        contexts = self._contexts[kind]
        table = torch.cat([self._fixed[kind], self.contextual[kind]])
        joint: Tensor = self.encoders[kind](
            knowledge, table, contexts if which is None else contexts.select(which)
        )
        return joint

    def joint(self, kind: Kind, which: Tensor) -> Tensor:
        """Joint vectors of the elements `which`: constants, but for the trained ones."""
        at, found = _among(self.trained[kind], which), self._joint[kind][which]
        mine = (at >= 0).nonzero().flatten()
        return found.index_put((mine,), self.trained_joint(kind, at[mine])) if len(mine) else found


def learn_change(
    net: GraphEmbedding,
    joint: Mapping[Kind, Tensor],
    before: Snapshot,
    after: Snapshot,
    changes: Ints,
    new: Mapping[Kind, Ints],
    how: Online,
    *,
    entities: Ints,
    relations: Ints,
    contextual: Mapping[Kind, Tensor],
    margin: float,
    negatives: int,
    seed: int,
) -> Learned:
    """Learn what a change affects; nothing that is given is changed.

    Args:
        net, joint: the vectors as they were, with rows for new elements, too.
        before, after: the graph.
        changes: triples that are in just one of the two.
        new: elements that are new in `after`, by kind, sorted.
        entities, relations: those that stand in a triple of `after`.
        contextual: what the contextual vectors of new elements begin with, by kind; of a net that has
            any.
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
    there = after.index.holds(changes)
    added, removed = changes[there], changes[~there]
    about = About.of(after, added, trained, how.triples, seed)
    rows = about.draw(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        local = Local(
            net, joint, after, trained, new, placed(joint, added, new), contextual,
            torch.from_numpy(removed), Corruption(after.index, rows, entities), unlearn=how.unlearn,
            margin=margin, negatives=negatives,
        )  # fmt: skip
        if len(rows):
            _train(local, about, rows, how, started)
    with torch.no_grad():
        found = {kind: local.trained_joint(kind).detach() for kind in KINDS}
    return Learned(
        affected,
        new,
        {k: (trained[k], local.knowledge[k].detach()) for k in KINDS},
        {k: (new[k], local.contextual[k].detach()) for k in KINDS if k in local.contextual},
        {k: (trained[k], found[k]) for k in KINDS},
        len(rows),
        time.monotonic() - started,
    )


def placed(
    joint: Mapping[Kind, Tensor], added: Ints, new: Mapping[Kind, Ints], passes: int = 3
) -> dict[Kind, Tensor]:
    """Vectors for new elements from their triples alone, without training.

    An entity is the mean of t* - r* and h* + r* over its triples, a relation that of t* - h*, over
    those whose other elements have a vector; where new elements stand beside new ones, in several
    passes. What no pass reaches is drawn at random.

    Args:
        joint: joint vectors by kind; the rows of new elements are not used.
        added: triples (n, 3), all those of the new elements among them.
        new: elements without a vector, by kind, sorted.
    """
    number = {kind: torch.from_numpy(new[kind]) for kind in KINDS}
    vectors = {kind: xavier(len(new[kind]), joint[kind].shape[1]) for kind in KINDS}
    known = {kind: torch.zeros(len(new[kind]), dtype=torch.bool) for kind in KINDS}
    rows = torch.from_numpy(added)
    for _ in range(passes):
        h, r, t = (
            _Seen.at(rows[:, i].contiguous(), joint[k], number[k], vectors[k], known[k])
            for i, k in COLUMNS
        )
        offers: dict[Kind, list[tuple[_Seen, Tensor, Tensor]]] = {
            "entity": [(h, t.vector - r.vector, r.known & t.known),
                       (t, h.vector + r.vector, h.known & r.known)],
            "relation": [(r, t.vector - h.vector, h.known & t.known)],
        }  # fmt: skip
        for kind in KINDS:
            _take_means(vectors[kind], known[kind], offers[kind])
    return vectors


class _Seen(NamedTuple):
    """Elements of triples as they are placed by now; `place` among the new ones, -1: not new."""

    vector: Tensor
    known: Tensor
    place: Tensor

    @staticmethod
    def at(which: Tensor, joint: Tensor, new: Tensor, vectors: Tensor, known: Tensor) -> "_Seen":
        """The elements `which`."""
        vector, there = joint[which], torch.ones(len(which), dtype=torch.bool)
        place = _among(new, which)
        fresh = place >= 0
        vector[fresh], there[fresh] = vectors[place[fresh]], known[place[fresh]]
        return _Seen(vector, there, place)


def _among(numbers: Tensor, which: Tensor) -> Tensor:
    """Positions of `which` among sorted `numbers`; -1 where they are not there."""
    if not len(numbers):
        return torch.full_like(which, -1)
    at = torch.searchsorted(numbers, which).clamp(max=len(numbers) - 1)
    return torch.where(numbers[at] == which, at, -1)


def _take_means(vectors: Tensor, known: Tensor, offers: list[tuple[_Seen, Tensor, Tensor]]) -> None:
    """Set the vectors of new elements to the mean of what is offered for them, where anything is."""
    total, count = torch.zeros_like(vectors), torch.zeros(len(vectors))
    for seen, offered, usable in offers:
        take = usable & (seen.place >= 0)
        total.index_add_(0, seen.place[take], offered[take])
        count.index_add_(0, seen.place[take], torch.ones(int(take.sum())))
    some = count > 0
    vectors[some] = total[some] / count[some, None]
    known |= some


def _train(local: Local, about: About, rows: Ints, how: Online, started: float) -> None:
    """A few epochs of Adam, its rate falling along half a cosine; `rows` are the first one's."""
    optimizer = torch.optim.Adam(
        [p for p in local.parameters() if p.numel()], lr=how.lr, fused=True
    )
    for epoch in range(how.epochs):
        rows = about.draw(epoch) if epoch else rows
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
            local.training_step(batch).loss.backward()
            optimizer.step()
