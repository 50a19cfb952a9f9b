"""Embeddings of a knowledge graph that combine an element with its context (DKGE).

Wu et al. 2022, section 4: an element (entity or relation) has a knowledge vector for itself, and a
contextual vector for the contexts of other elements. An attentive graph convolution turns a context
into one vector. A gate mixes it with the knowledge vector to the joint vector o*. A triple (h, r, t) is
plausible if ||h* + r* - t*|| is small.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepwell.kg.contexts import CENTRE, Contexts
from stepwell.kg.ragged import attention_sums, weighted_sums

Vectors = Float[Tensor, "elements dim"]
#: The vectors of one kind of element; kinds differ in number.
Table = Float[Tensor, "_ _"]
Kind = Literal["entity", "relation"]
KINDS: tuple[Kind, Kind] = ("entity", "relation")
#: The kind of element in each column of a triple.
COLUMNS: tuple[tuple[int, Kind], ...] = ((0, "entity"), (1, "relation"), (2, "entity"))

#: After a start from TransE: the scale of contextual vectors, and the gates.
WARM_CONTEXT, WARM_GATE = 0.1, 1.0
#: Keeps the gradient of a distance finite at 0.
EPSILON = 1e-9


class ContextEncoder(nn.Module):
    """An attentive graph convolution over contexts and a gate: from knowledge to joint vectors.

    H = ReLU(D^-1/2 A D^-1/2 H0 W); s_i = v · ReLU(H_i ⊙ k) = (v ⊙ ReLU(k)) · H_i, as H >= 0; the
    context is sum_i softmax(s)_i H_i, and the joint vector sigmoid(g) ⊙ k + (1 - sigmoid(g)) ⊙ context.

    Args:
        attention: without it, all rows of a context have the same weight.
        gate: without it, the context and the knowledge vector have the same weight.
    """

    def __init__(self, dim: int, *, attention: bool = True, gate: bool = True) -> None:
        super().__init__()
        self.attends, self.gates = attention, gate
        bound = 1 / math.sqrt(dim)
        self.weight = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))
        self.attention = nn.Parameter(torch.rand(dim), requires_grad=attention)
        self.gate = nn.Parameter(torch.rand(dim), requires_grad=gate)

    def forward(
        self, knowledge: Vectors, contextual: Float[Tensor, "rows dim"], contexts: Contexts
    ) -> Vectors:
        """Joint vectors of the centres of `contexts`.

        Args:
            knowledge: the knowledge vectors of the centres.
            contextual: the table that `contexts.element` points into.
        """
        used, place = _used(contexts, len(contextual))
        # (Â H0) W is Â (H0 W): the product of each vector that is used, once
        vectors = torch.cat([contextual.index_select(0, used), knowledge]) @ self.weight
        hidden = torch.relu_(weighted_sums(vectors, place, contexts.bag, contexts.weight))
        if self.attends:
            query = self.attention * torch.relu(knowledge)
            context = attention_sums(hidden, query, contexts.rows, contexts.owner)
        else:
            share = (1 / contexts.rows.diff().to(hidden))[contexts.owner]
            context = weighted_sums(hidden, torch.arange(len(hidden)), contexts.rows, share)
        mix = torch.sigmoid(self.gate) if self.gates else 0.5
        return mix * knowledge + (1 - mix) * context


def _used(contexts: Contexts, count: int) -> tuple[Tensor, Tensor]:
    """The contextual vectors in use, and the place of each entry among them; centres come last."""
    mark = torch.zeros(count + 1, dtype=torch.bool)
    mark[contexts.element] = True
    mark[CENTRE] = False  # the last place, without a vector
    used = mark.nonzero().flatten()
    number = torch.zeros(count + 1, dtype=torch.long)
    number[used] = torch.arange(len(used))
    place = number[contexts.element]
    place[contexts.bag[:-1]] = len(used) + contexts.owner
    return used, place


class GraphEmbedding(nn.Module):
    """The vectors of all entities and relations, and the two encoders.

    Args:
        context: without it the joint vector is the knowledge vector: TransE (Bordes et al. 2013).
        attention, gate: as for `ContextEncoder`.
    """

    def __init__(
        self, entities: int, relations: int, dim: int, *, context: bool = True,
        attention: bool = True, gate: bool = True,
    ) -> None:  # fmt: skip
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
    def start_from(self, knowledge: Mapping[Kind, Table]) -> None:
        """Start from the vectors of a TransE model, with little weight on contexts."""
        for kind in KINDS:
            self.knowledge[kind].copy_(knowledge[kind])
            if self.has_context:
                self.contextual[kind].mul_(WARM_CONTEXT)
                self.encoders[kind].get_parameter("gate").fill_(WARM_GATE)

    def joint(self, kind: Kind, which: Int[Tensor, " elements"], contexts: Contexts | None) -> Vectors:
        """Joint vectors of the elements `which`.

        Args:
            contexts: of these elements, in the same order; None for a net without context.
        """
        knowledge = self.knowledge[kind].index_select(0, which)
        if not self.has_context:
            return knowledge
        assert contexts is not None
        joint: Tensor = self.encoders[kind](knowledge, self.contextual[kind], contexts)
        return joint

    def all_joint(self, kind: Kind, contexts: Contexts | None, block: int = 8192) -> Vectors:
        """Joint vectors of all elements, in blocks; `contexts` has the same order."""
        every = torch.arange(len(self.knowledge[kind]))
        parts = [
            self.joint(kind, part, None if contexts is None else contexts.select(part))
            for part in every.split(block)
        ]
        return torch.cat(parts)


def xavier(count: int, dim: int) -> Float[Tensor, "count dim"]:
    """Draw knowledge vectors, uniform as in Glorot and Bengio (2010); the bound ignores `count`."""
    bound = math.sqrt(6 / dim)
    return torch.empty(count, dim).uniform_(-bound, bound)


def distance(difference: Float[Tensor, "... dim"]) -> Float[Tensor, "..."]:
    """Euclidean length of h* + r* - t*; its gradient is finite at 0."""
    return (difference.square().sum(-1) + EPSILON).sqrt()
