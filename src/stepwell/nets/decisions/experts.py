"""Mixtures of experts in the place of a transformer's MLPs (Shazeer et al. 2017; Fedus et al. 2021).

y(t) = sum over the k experts i of token t of G_i(t) · E_i(t)

Each token has its own experts. No token is dropped: an expert takes as many as come.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, softplus
from torch.special import ndtr

from stepwell.losses.precision import in_full_precision
from stepwell.nets.decisions.deciding import Deciding, deciding_parts, drawn_anew, like_block
from stepwell.nets.decisions.estimators import refuse_in_graphs
from stepwell.nets.decisions.executor import mixture
from stepwell.ranges import RANGES, check_choice, check_number

#: noisy: Shazeer et al.'s gate, whose scores have noise in training. switch: Fedus et al.'s, without.
Router = Literal["noisy", "switch"]
Tokens = Float[Tensor, "*batch width"]
#: The further outputs of a block with experts; see `Routes`.
EXTRAS = ("gates", "load", "shares")


class Routes(NamedTuple):
    """The experts of each token.

    who, weights: the k experts of each token and their weights G.
    scores: of all experts.
    load: the probability that an expert would be chosen if its noise were drawn again; None without
        noise.
    """

    who: Int[Tensor, "rows k"]
    weights: Float[Tensor, "rows k"]
    scores: Float[Tensor, "rows experts"]
    load: Float[Tensor, "rows experts"] | None = None

    def extras(self, batch: int) -> dict[str, Tensor]:
        """Further outputs of a block.

        gates: (rows, experts), G of each token, zero for experts that do not run.
        load: (rows, experts), a differentiable estimate of the choice of an expert: `load`, or without
            noise the softmax of the scores.
        shares: (batch, 1, experts), the share of each expert in the choices of an image's tokens.
        """
        none = torch.zeros_like(self.scores)
        gates = none.scatter(1, self.who, self.weights)
        chosen = none.scatter(1, self.who, 1.0).view(batch, 1, -1, none.shape[1])
        load = self.scores.softmax(1) if self.load is None else self.load
        return {"gates": gates, "load": load, "shares": chosen.mean(2) / self.who.shape[1]}


class Experts(Deciding):
    """A router, and the experts that it chooses from.

    The router's scores are linear in the token. The weights G of the k chosen experts are the softmax
    of their scores; with k = 1 the softmax over all experts, which is not one, so that the router
    learns.

    Args:
        expert: an MLP; the experts are like it, with random weights of their own.
        width: channels of a token.
        count: number of experts.
        top_k: k, of every token.

    Raises:
        ValueError: `count` or `top_k` is no whole number in its range, or `top_k` above `count`; no
            such router.
    """

    in_graphs = MappingProxyType({"pt2": "every expert for every token: ONNX saves time"})

    def __init__(
        self, expert: nn.Module, width: int, count: int, top_k: int = 1, router: Router = "noisy"
    ) -> None:
        super().__init__()
        for name, number in (("experts", count), ("top_k", top_k)):
            if not isinstance(number, int):
                raise ValueError(f"{name}={number!r}: must be a whole number")
            check_number(name, number, RANGES[name])
        if top_k > count:
            raise ValueError(f"top_k {top_k}: there are {count} experts, so between 1 and {count}")
        check_choice("router", router, Router)
        self.top_k, self.kind = top_k, router
        self.experts = nn.ModuleList(deepcopy(expert) for _ in range(count))
        for parameter in self.experts.parameters():
            parameter.data = drawn_anew(parameter)
        self.router = nn.Linear(width, count, bias=False)
        self.noise = nn.Linear(width, count, bias=False) if router == "noisy" else None
        if self.noise is None:
            # small scores: each weight begins at nearly 1 / E, as `from_plain` assumes
            nn.init.normal_(self.router.weight, std=1e-3)
        else:
            nn.init.zeros_(self.router.weight)
            nn.init.zeros_(self.noise.weight)

    def route(self, x: Tokens) -> Routes:
        """Choose the experts of each token; noise is drawn in training only."""
        rows = x.flatten(0, -2)
        clean = scores = _scores(rows, self.router.weight)
        spread = None
        if self.noise is not None and self.training:
            refuse_in_graphs()
            spread = softplus(_scores(rows, self.noise.weight))
            scores = clean + torch.randn_like(clean) * spread
        best, order = scores.topk(min(self.top_k + 1, len(self.experts)), 1)
        who = order[:, : self.top_k]
        if self.top_k == 1:
            weights = (best[:, :1] - scores.logsumexp(1, keepdim=True)).exp()
        else:
            weights = best[:, : self.top_k].softmax(1)
        if spread is None:
            return Routes(who, weights, scores)
        if self.top_k == len(self.experts):
            return Routes(who, weights, scores, torch.ones_like(scores))
        # the k-th best score of the others: one further down for an expert that is chosen
        chosen = torch.zeros_like(scores).scatter(1, who, 1.0)
        bound = torch.where(chosen > 0, best[:, -1:], best[:, -2:-1])
        return Routes(who, weights, scores, ndtr((clean - bound) / spread))

    def run(self, x: Tokens, routes: Routes) -> Tokens:
        """Run the chosen experts."""
        rows, weights = x.flatten(0, -2), routes.weights.to(x.dtype)
        return mixture(rows, routes.who, weights, [*self.experts], self.break_even).view_as(x)

    def forward(self, x: Tokens) -> Tokens:
        """Maps tokens to tokens."""
        return self.run(x, self.route(x))

    def from_plain(self, plain: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of one MLP as every expert, and this part's own router ("sparse upcycling").

        With k = 1 the last layer is multiplied by the number of experts E, because the weight of the
        chosen expert is nearly 1 / E at first: so the network starts nearly as the plain one, and with
        scores of zero ("noisy") exactly so.
        """
        if any(name.startswith("experts.") for name in plain):
            return dict(plain)
        *_, last = (
            name for name, part in self.experts[0].named_modules() if isinstance(part, nn.Linear)
        )
        scale = len(self.experts) if self.top_k == 1 else 1
        copies = {k: v * scale if k.rpartition(".")[0] == last else v for k, v in plain.items()}
        router = {k: v for k, v in state.items() if not k.startswith("experts.")}
        return router | {
            f"experts.{i}.{k}": v for i in range(len(self.experts)) for k, v in copies.items()
        }


@in_full_precision
def _scores(
    rows: Float[Tensor, "tokens _"], weight: Float[Tensor, "experts _"]
) -> Float[Tensor, "tokens experts"]:
    """The scores of a linear router; one in half precision is unstable (Fedus et al. 2021)."""
    return linear(rows, weight)


class RoutedBlock(nn.Module):
    """A transformer block whose MLP is a mixture of experts; the base of the classes below.

    It has the children of the plain block under their names.
    """

    mlp: Experts

    def attend(self, x: Tokens) -> Tokens:
        """The first half of the block."""
        raise NotImplementedError

    def normed(self, x: Tokens) -> Tokens:
        """The input of the MLP."""
        raise NotImplementedError

    def dropped(self, y: Tokens) -> Tokens:
        """The output of the MLP as the residual connection adds it."""
        return y

    def forward(
        self, x: Tokens, extras: Collection[str] = ()
    ) -> Tokens | tuple[Tokens, Mapping[str, Tensor]]:
        """The block's output; with `extras`, also those of `Routes.extras`."""
        x = self.attend(x)
        inner = self.normed(x)
        routes = self.mlp.route(inner)
        y = x + self.dropped(self.mlp.run(inner, routes))
        return (y, routes.extras(len(x))) if extras else y


class TorchvisionBlock(RoutedBlock):
    """torchvision's `EncoderBlock` with experts."""

    ln_1: nn.Module
    self_attention: nn.MultiheadAttention
    dropout: nn.Module
    ln_2: nn.Module

    def attend(self, x: Tokens) -> Tokens:
        """Self-attention with its norm."""
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        return self.dropout(y) + x

    def normed(self, x: Tokens) -> Tokens:
        """The second norm."""
        return self.ln_2(x)


class TimmBlock(RoutedBlock):
    """timm's `Block` of vision transformers with experts."""

    norm1: nn.Module
    attn: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def attend(self, x: Tokens) -> Tokens:
        """Self-attention with its norm."""
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))

    def normed(self, x: Tokens) -> Tokens:
        """The second norm."""
        return self.norm2(x)

    def dropped(self, y: Tokens) -> Tokens:
        """Layer scale and stochastic depth."""
        return self.drop_path2(self.ls2(y))


#: Blocks with experts, by the plain block's class.
ROUTED: Mapping[str, type[RoutedBlock]] = {
    "torchvision.models.vision_transformer.EncoderBlock": TorchvisionBlock,
    "timm.models.vision_transformer.Block": TimmBlock,
}


def with_experts(
    module: nn.Module, *, experts: int = 0, top_k: int = 1, router: Router = "noisy"
) -> nn.Module:
    """A vision transformer whose MLPs are mixtures of `experts` (0: as it is); arguments of `Experts`.

    ValueError for a network without blocks of a ViT, options without experts, and as for `Experts`.
    """
    check_choice("router", router, Router)
    if not experts:
        if top_k != 1 or router != "noisy":
            raise ValueError("top_k and router are of networks with experts: give their number, too")
        return module
    named = [(name, block, _routed(block)) for name, block in module.named_modules()]
    blocks = [(name, block, kind) for name, block, kind in named if kind is not None]
    if not blocks:
        raise ValueError(
            f"{type(module).__name__} has no blocks of a vision transformer, whose MLPs could be "
            "experts: name a ViT or DeiT"
        )
    for name, block, kind in blocks:
        mlp = block.get_submodule("mlp")
        width = next(part.in_features for part in mlp.modules() if isinstance(part, nn.Linear))
        mixed = Experts(mlp, width, experts, top_k, router)
        module.set_submodule(name, like_block(kind, block, {"mlp": mixed}))
    return module


def _routed(block: nn.Module) -> type[RoutedBlock] | None:
    return ROUTED.get(f"{type(block).__module__}.{type(block).__name__}")


def expert_layers(module: nn.Module) -> list[tuple[str, Experts]]:
    """The mixtures of experts of a network by name, in order."""
    return [(name, part) for name, part in deciding_parts(module) if isinstance(part, Experts)]
