"""Networks of experts or of mixed kernels: the use of each part, by layer and class, and the speed."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.cost import count_macs, measure_latencies
from stepwell.data import Batches
from stepwell.data.tokens import TextBatches
from stepwell.evaluation import gather_logits
from stepwell.measure import speed
from stepwell.measure.break_even import with_break_even
from stepwell.nets import NestedNet, build
from stepwell.nets.decisions.executor import mixture
from stepwell.nets.decisions.experts import Experts, expert_layers
from stepwell.nets.decisions.kernels import kernel_layers
from stepwell.nets.inputs import blank_image
from stepwell.train_mode import in_eval_mode
from stepwell.types import Labels

#: Numbers of tokens at which experts are timed.
TOKENS = (8, 64, 512)
#: Shares of the parts: for each image and layer, of the tokens (experts) or the mean weight (kernels).
Shares = Float[Tensor, "n layers parts"]


def mixture_record(net: NestedNet, test: Batches | TextBatches) -> dict[str, Any]:
    """Measure the experts, or the mixed kernels, of a network on test images; empty without either.

    Break-even shares of experts are measured where the card has none.

    Returns:
        Under "experts" or "kernels": by "layers", the "shares" of the parts, the mean over the images;
        "cv", the coefficient of variation of these; "by_class", the share of the variance between
        images that their classes explain. "speed" as of `compare_speed`; "fixed" runs all experts of
        every token, or plain kernels.
    """
    for key, layers_of, fixed_of in (
        ("experts", expert_layers, all_experts), ("kernels", kernel_layers, plain_kernels),
    ):  # fmt: skip
        if layers := layers_of(net.module):
            assert isinstance(test, Batches), "networks of texts have no mixtures"
            if key == "experts":
                with_break_even(net, measure_break_even)
            shares, labels = observe_shares(net, test)
            names = [name for name, _ in layers]
            use = {name: _use(shares[:, i], labels) for i, name in enumerate(names)}
            return {key: {"layers": use, "speed": _speed(net, fixed_of(net), test)}}
    return {}


def observe_shares(net: NestedNet, test: Batches) -> tuple[Shares, Labels]:
    """The shares of the parts in each layer of the full net, for all test images, on the CPU."""
    device = next(net.parameters()).device

    def predict(images: Tensor) -> dict[str, Tensor]:
        exit = net.forward_all(images.to(device), [net.full], extras=("shares",))[net.full]
        layers = torch.cat(exit.extras["shares"], 1).unbind(1)
        return {str(i): shares for i, shares in enumerate(layers)}

    with in_eval_mode(net):
        layer_shares, labels = gather_logits(predict, test)
    return torch.stack([*layer_shares.values()], 1), labels


def _use(shares: Float[Tensor, "n parts"], labels: Labels) -> dict[str, Any]:
    shares = shares.double()
    mean = shares.mean(0)
    between = torch.zeros((), dtype=torch.float64)
    for label in labels.unique():
        class_shares = shares[labels == label]
        between += len(class_shares) * (class_shares.mean(0) - mean).square().sum()
    total = (shares - mean).square().sum()
    return {
        "shares": mean.tolist(),
        "cv": float(mean.std(correction=0) / mean.mean()),
        "by_class": float(between / total) if total > 0 else 0.0,
    }


def all_experts(net: NestedNet) -> nn.Module:
    """A copy of the full net that runs all experts of every token."""
    dense = deepcopy(net.module).eval()
    for _, layer in expert_layers(dense):
        layer.break_even = {1: 0.0}
    return dense


def plain_kernels(net: NestedNet) -> nn.Module:
    """The full net with one kernel in each convolution, and other weights."""
    assert net.builder is not None, "a network of mixed kernels is built by name"
    name, arguments = net.builder
    plain = build(name, **{k: v for k, v in arguments.items() if k not in ("kernels", "routing")})
    return plain.module.eval().to(next(net.parameters()).device)


@torch.inference_mode()
def _speed(net: NestedNet, fixed: nn.Module, test: Batches) -> list[dict[str, float]]:
    x = blank_image(net, net.card.size)
    counted = deepcopy(fixed)
    for _, layer in expert_layers(counted):
        layer.top_k = len(layer.experts)
    by_macs = count_macs(counted, x) / count_macs(net.module, x)

    def ratio(parts: Sequence[Tensor]) -> float:
        return by_macs

    with in_eval_mode(net):
        images = speed.timed_images(test).to(x.device)
        return speed.compare_speed(net.forward, fixed, images, ratio, seconds=speed.SECONDS)


@torch.no_grad()
def measure_break_even(
    net: NestedNet, size: int, *, seconds: float | None = None
) -> dict[str, dict[str, float]]:
    """Measure the share of the experts below which sorted tokens are faster than all experts.

    Layers of one shape are measured once. The time of sorted tokens is taken to grow with the share.

    Returns:
        By layer, then by number of tokens as text: a share in [0, 1], for `Card.break_even`.
    """
    seconds = (speed.SECONDS if seconds is None else seconds) / 10
    by_shape: dict[str, dict[str, float]] = {}
    shares = {}
    for name, layer in expert_layers(net.module):
        shape = f"{layer.top_k} of {layer}"
        if shape not in by_shape:
            by_shape[shape] = {str(tokens): break_even_of(layer, tokens, seconds) for tokens in TOKENS}
        shares[name] = by_shape[shape]
    return shares


def break_even_of(layer: Experts, tokens: int, seconds: float) -> float:
    """The break-even share of one layer for a number of tokens; as `measure_break_even`."""
    generator = torch.Generator().manual_seed(0)
    like = layer.router.weight
    count, k = len(layer.experts), layer.top_k
    x = torch.randn(tokens, like.shape[1], generator=generator).to(like)
    weights, who = (v.to(like.device) for v in torch.rand(tokens, count, generator=generator).topk(k))
    call = partial(mixture, who=who, weights=weights.to(like), parts=[*layer.experts])
    runs = {"sorted": call, "all": partial(call, break_even={tokens: 0.0})}
    calls = {name: partial(speed.run_each, run, [x]) for name, run in runs.items()}
    times = measure_latencies(calls, seconds=seconds, warmup=2, least=5, rounds=2)
    return min(1.0, k / count * times["all"].ms / times["sorted"].ms)
