"""Embeddings of a knowledge graph that mix what an element is with what it stands beside (DKGE).

Wu et al. 2022, section 4: an element (entity or relation) o has a knowledge vector, used for itself,
and a contextual vector, used where it stands in another's context. An attentive graph convolution turns
the context into one vector, a gate mixes the two into the joint vector o*, and a triple (h, r, t) is as
plausible as ||h* + r* - t*|| is small.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepwell.kg.contexts import CENTRE, Contexts
from stepwell.kg.ragged import attended, weighted_sums

Vectors = Float[Tensor, "elements dim"]
Table = Float[Tensor, "context dim"]
Kind = Literal["entity", "relation"]
KINDS: tuple[Kind, Kind] = ("entity", "relation")
#: What stands in each column of a triple.
COLUMNS: tuple[tuple[int, Kind], ...] = ((0, "entity"), (1, "relation"), (2, "entity"))

#: Of a net that starts from another's vectors: the scale of contextual vectors, and the gates.
WARM_CONTEXT, WARM_GATE = 0.1, 1.0
#: What keeps the gradient of a distance finite where it is 0.
EPSILON = 1e-9


class ContextEncoder(nn.Module):
    """An attentive graph convolution over contexts, and the gate: knowledge to joint vectors.

    H = ReLU(D^-1/2 A D^-1/2 H0 W); s_i = v · ReLU(H_i ⊙ k); the context is sum_i softmax(s)_i H_i, and
    the joint vector sigmoid(g) ⊙ k + (1 - sigmoid(g)) ⊙ context. As H >= 0, ReLU(H_i ⊙ k) is
    H_i ⊙ ReLU(k), so each s_i is one product.

    Args:
        dim: of all vectors.
        attention: without it all rows of a context weigh the same.
        gate: without it both halves weigh the same.
    """

    def __init__(self, dim: int, *, attention: bool = True, gate: bool = True) -> None:
        super().__init__()
        self.attends, self.gates = attention, gate
        bound = 1 / math.sqrt(dim)
        self.weight = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))
        self.attention = nn.Parameter(torch.rand(dim), requires_grad=attention)
        self.gate = nn.Parameter(torch.rand(dim), requires_grad=gate)

    def forward(self, knowledge: Vectors, contextual: Table, contexts: Contexts) -> Vectors:
        """Joint vectors of the centres of `contexts`.

        Args:
            knowledge: theirs.
            contextual: the table that `contexts.element` points into.
        """
        used, place = _used(contexts, len(contextual))
        # (Â H0) W is Â (H0 W): the product of each vector that is used, once
        vectors = torch.cat([contextual.index_select(0, used), knowledge]) @ self.weight
        hidden = torch.relu_(weighted_sums(vectors, place, contexts.bag, contexts.weight))
        if self.attends:
            query = self.attention * torch.relu(knowledge)
            context = attended(hidden, query, contexts.rows, contexts.owner)
        else:
            share = (1 / contexts.rows.diff().to(hidden))[contexts.owner]
            context = weighted_sums(hidden, torch.arange(len(hidden)), contexts.rows, share)
        mix = torch.sigmoid(self.gate) if self.gates else 0.5
        return mix * knowledge + (1 - mix) * context


def _used(contexts: Contexts, count: int) -> tuple[Tensor, Tensor]:
    """Which of `count` contextual vectors are used, and each entry's place in them.

    The places of centres come behind.
    """
    mark = torch.zeros(count + 1, dtype=torch.bool)
    mark[contexts.element] = True
    mark[CENTRE] = False  # the last one, which nothing else has
    used = mark.nonzero().flatten()
    number = torch.zeros(count + 1, dtype=torch.long)
    number[used] = torch.arange(len(used))
    place = number[contexts.element]
    place[contexts.bag[:-1]] = len(used) + contexts.owner
    return used, place


class GraphEmbedding(nn.Module):
    """The vectors of all entities and relations, and the two encoders.

    Args:
        entities, relations: how many there are.
        dim: of all vectors.
        context: without it the joint vector is the knowledge vector: TransE (Bordes et al. 2013).
        attention, gate: as for `ContextEncoder`.
    """

    def __init__(
        self,
        entities: int,
        relations: int,
        dim: int,
        *,
        context: bool = True,
        attention: bool = True,
        gate: bool = True,
    ) -> None:
        super().__init__()
        self.dim = dim
        sizes = {"entity": entities, "relation": relations}
        self.knowledge = nn.ParameterDict({k: xavier(sizes[k], dim) for k in KINDS})
        self.has_context = context
        if context:
            self.contextual = nn.ParameterDict({k: torch.randn(sizes[k], dim) for k in KINDS})
            self.encoders = nn.ModuleDict(
                {k: ContextEncoder(dim, attention=attention, gate=gate) for k in KINDS}
            )

    @torch.no_grad()
    def start_from(self, knowledge: Mapping[Kind, Tensor]) -> None:
        """Begin near a model of translation: with its vectors, and contexts that say little yet.

        Args:
            knowledge: its vectors by kind.
        """
        for kind in KINDS:
            self.knowledge[kind].copy_(knowledge[kind])
            if self.has_context:
                self.contextual[kind].mul_(WARM_CONTEXT)
                self.encoders[kind].get_parameter("gate").fill_(WARM_GATE)

    def joint(
        self, kind: Kind, which: Int[Tensor, " elements"], contexts: Contexts | None
    ) -> Vectors:
        """Joint vectors of the elements `which`.

        Args:
            contexts: theirs, in the same order; none for a net without context.
        """
        knowledge = self.knowledge[kind].index_select(0, which)
        if not self.has_context:
            return knowledge
        assert contexts is not None
        joint: Tensor = self.encoders[kind](knowledge, self.contextual[kind], contexts)
        return joint

    def all_joint(self, kind: Kind, contexts: Contexts | None, block: int = 8192) -> Vectors:
        """Joint vectors of all elements, which `contexts` are in the order of; in blocks."""
        every = torch.arange(len(self.knowledge[kind]))
        parts = [
            self.joint(kind, part, None if contexts is None else contexts.select(part))
            for part in every.split(block)
        ]
        return torch.cat(parts)


def xavier(count: int, dim: int) -> Tensor:
    """New knowledge vectors (count, dim), uniform as Glorot and Bengio (2010) for one vector.

    The bound does not depend on how many there are, so vectors that join later are like the first.
    """
    bound = math.sqrt(6 / dim)
    return torch.empty(count, dim).uniform_(-bound, bound)


def distance(difference: Float[Tensor, "... dim"]) -> Float[Tensor, "..."]:
    """Euclidean length of h* + r* - t*; its gradient is finite at 0, too."""
    return (difference.square().sum(-1) + EPSILON).sqrt()
