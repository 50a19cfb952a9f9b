"""Time of decisions per image over the time of the network that makes none, on one thread and two.

Decisions are set, not learnt, so that each share of active work is met exactly; the gates' own time
counts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from benchmarks.timing import on_threads, ratio, side_by_side
from stepwell import Card, Cascade, build
from stepwell.cost import count_macs
from stepwell.measure.cascade import cascade_macs
from stepwell.measure.choices import macs_of_choices
from stepwell.measure.mixtures import break_even_of
from stepwell.measure.skipping import measure_break_even
from stepwell.measure.widths import measure_groups
from stepwell.nets import NestedNet
from stepwell.nets.decisions.deciding import use_break_even
from stepwell.nets.decisions.experts import Experts
from stepwell.nets.decisions.kernels import MixedConv2d
from stepwell.nets.decisions.skipping import gated_blocks
from stepwell.nets.decisions.widths import GateAt, WidthNet

#: Images in a batch, rounds, seconds to measure a block's break-even, and pixels by case.
IMAGES, ROUNDS, SECONDS = 64, 9, 1.0
CASES = {"32 pixels": 32}
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
MORE_THREADS = (2,)


class Forced(nn.Module):
    """A gate that computes its scores and then opens for the first images of a batch."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate, self.share = gate, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Scores that open for a share of the images."""
        scores: Tensor = self.gate(x)
        scores[:, 0] = 0
        scores[:, 1] = -1
        scores[: round(self.share * len(x)), 1] = 1
        return scores


def gated_and_plain() -> tuple[NestedNet, NestedNet]:
    """ResNet-20 of 64 channels throughout with gates, and the same network without."""
    arguments = {"widths": (64, 64, 64), "num_classes": 10}
    net = build("resnet20", gates=True, zero_init_residual=False, **arguments).eval()
    plain = build("resnet20", **arguments).eval()
    plain.load_full({k: v for k, v in net.module.state_dict().items() if ".gate." not in k})
    return net, plain


def with_exits(size: int) -> NestedNet:
    """ResNet-18 with three exits, for images of `size` pixels."""
    net = build("resnet18", stem="small", num_classes=10).eval()
    for i, after in enumerate([(2, 0, 0, 0), (2, 2, 0, 0), (2, 2, 2, 0)], start=1):
        net.add_exit(f"exit{i}", after, input_size=(3, size, size))
    net.mark("trained")
    net.card = Card(tuple("abcdefghij"), size)
    return net


def skipping(size: int, batch: int) -> dict[str, Any]:
    """A stage of three basic blocks of 64 channels with gates, over the same blocks without."""
    net, plain = gated_and_plain()
    blocks, dense = net.module.layer1, plain.module.layer1
    x = torch.randn(batch, 64, size, size, generator=torch.Generator().manual_seed(0)).relu()
    x = x.contiguous(memory_format=torch.channels_last)
    table = measure_break_even(net, size, seconds=SECONDS)
    gates = [Forced(block.gate) for block in blocks]
    of_gates = sum(count_macs(gate, x[:1]) for gate in gates) / count_macs(dense, x[:1])
    ratios = {}
    for adaptive in (False, True):
        use_break_even(net.module, table if adaptive else {})
        for block, gate in zip(blocks, gates, strict=True):
            block.gate = gate
        for share in SHARES if batch > 1 else (0.0, 1.0):
            for gate in gates:
                gate.share = share
            runs = {"gated": partial(blocks, x), "dense": partial(dense, x)}
            clock = ratio(side_by_side(runs, rounds=ROUNDS), "gated", "dense")
            name = f"open {share:.2f}" + ", dense above the break-even" * adaptive
            ratios[name] = {"over dense": clock, "by MACs": share + of_gates}
    values = [share for name, _ in gated_blocks(net.module) if "layer1" in name
              for size_, share in table[name].items() if int(size_) == 64]  # fmt: skip
    return {"shares": ratios, "break-even": sorted(values)}


def exits(size: int, batch: int) -> dict[str, Any]:
    """ResNet-18 with three exits, of which each answers a set share of the images."""
    net = with_exits(size)
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    return cascades(net, x, [0.0, 0.3, 0.5])


def cascades(
    net: NestedNet, x: Tensor, leaving: list[float], rounds: int = ROUNDS, **options: Any
) -> dict[str, Any]:
    """Cascades of all depths, over the full net: shares of the inputs that come to an exit leave there.

    Args:
        options: of `side_by_side`.
    """
    ratios = {}
    for share in leaving:
        *shallow, _ = net.depths
        cascade = Cascade(net, dict.fromkeys(shallow, 0.0), criterion=First(share))
        with torch.inference_mode():
            answered = cascade(x).depth
        costs = torch.tensor(cascade_macs(net, cascade.depths), dtype=torch.float64)
        full = cascade_macs(net, [net.full])[0]
        runs = {"cascade": partial(cascade, x), "full": partial(net, x)}
        clock = ratio(side_by_side(runs, rounds=rounds, **options), "cascade", "full")
        by_macs = float(costs[answered].mean()) / full
        ratios[f"leaving {share}"] = {"over full": clock, "by MACs": by_macs}
    return ratios


class Planned(nn.Module):
    """A gate that computes its scores and then chooses set widths."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.who = torch.zeros(1, dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        """Scores that are best at each image's set width."""
        scores: Tensor = self.gate(x)
        return scores.zero_().index_put_((torch.arange(len(x)), self.who), torch.ones(()))


def widths(size: int, batch: int, gate_at: GateAt = "stem") -> dict[str, Any]:
    """A network of 64 channels and four widths, over the same network at full width."""
    nested = build("resnet8", widths=(64, 64, 64), multipliers=(0.25, 0.5, 0.75, 1.0))
    net = WidthNet(nested, gate_at).eval()
    net.nested.card = Card(size=size)
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    table = measure_groups(net, size, seconds=SECONDS)
    plain, planned = net.plain(0).eval(), Planned(net.chooser.gate)
    macs = torch.tensor(macs_of_choices(net, size)) / count_macs(plain, x[:1])
    net.chooser.gate = planned
    plans = {f"full {share:.2f}, else 0.25": (share, 0, 0, 1 - share) for share in SHARES}
    plans["a quarter each"] = (0.25, 0.25, 0.25, 0.25)
    ratios = {}
    for adaptive in (False, True):
        net.times = (
            {name: {int(images): ms for images, ms in row.items()} for name, row in table.items()}
            if adaptive
            else {}
        )
        for name, shares in plans.items():
            counts = [round(share * batch) for share in shares]
            if sum(counts) != batch:
                continue  # one image has one width
            planned.who = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
            runs = {"chosen": partial(net, x), "full": partial(plain, x)}
            clock = ratio(side_by_side(runs, rounds=ROUNDS), "chosen", "full")
            by_macs = float(macs[planned.who].mean())
            ratios[name + ", joined" * adaptive] = {"over full": clock, "by MACs": by_macs}
    return {"shares": ratios}


def widths_by_doubt(size: int, batch: int) -> dict[str, Any]:
    """The same with a gate that sees how sure the narrowest width is."""
    return widths(size, batch, "doubt")


class First:
    """A criterion that is sure of the first images of a batch, a share of them."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, logits: Tensor) -> Tensor:
        """0 for sure, below it for unsure."""
        sure = torch.arange(len(logits)) < round(self.share * len(logits))
        return sure.float() - 1


def of_layers(runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Times of layers alone, which are short: other programs disturb the processor's own clock less.

    On several threads it would count the time of each.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    return side_by_side(runs, rounds=2 * ROUNDS, clock=clock, warmup=3)


def experts(tokens: int, top_k: int) -> dict[str, Any]:
    """A mixture of four MLPs of 128 and 512 channels, `tokens` a chosen expert, and its plain forms.

    "all" runs every expert on every token; "mlp" is one MLP. The router counts.
    """
    mlp = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))
    layer = Experts(mlp, 128, 4, top_k, "switch").eval()
    nn.init.normal_(layer.router.weight)
    every = deepcopy(layer)
    every.break_even = {1: 0.0}
    x = torch.randn(4 * tokens // top_k, 128)
    adaptive = deepcopy(layer)
    share = break_even_of(adaptive, len(x), SECONDS)
    adaptive.break_even = {len(x): share}
    runs = {"mixture": layer, "all": every, "mlp": mlp, "adaptive": adaptive}
    times = of_layers({k: partial(run, x) for k, run in runs.items()})
    return {
        "over all": ratio(times, "mixture", "all"), "over one mlp": ratio(times, "mixture", "mlp"),
        "dense above the break-even, over all": ratio(times, "adaptive", "all"),
        "by MACs, over all": count_macs(layer, x) / (4 * count_macs(mlp, x) + len(x) * 4 * 128),
        "break-even": share,
    }  # fmt: skip


def kernels(size: int, batch: int) -> dict[str, Any]:
    """Four mixed kernels of 64 channels, over the plain convolution and over four convolutions.

    Channels are last in memory, as training and prediction lay them.
    """
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    layer = MixedConv2d(conv, 4, "dynamic").eval().to(memory_format=torch.channels_last)
    x = torch.randn(batch, 64, size, size).contiguous(memory_format=torch.channels_last)

    def every(x: Tensor) -> Tensor:
        shares = layer.shares(x)
        convs = (conv2d(x, kernel, padding=1) for kernel in layer.weight.chunk(4))
        parts = [shares[:, i, None, None, None] * y for i, y in enumerate(convs)]
        return torch.stack(parts).sum(0)

    runs = {"mixed": layer, "plain": conv, "every kernel": every}
    times = of_layers({k: partial(run, x) for k, run in runs.items()})
    return {
        "over plain": ratio(times, "mixed", "plain"),
        "over every kernel": ratio(times, "mixed", "every kernel"),
    }


@torch.inference_mode()
def measure_mixtures() -> dict[str, Any]:
    """Ratios of times of experts and mixed kernels."""
    ratios = {
        f"experts, {tokens} tokens an expert, top {k} of 4": experts(tokens, k)
        for k in (1, 2) for tokens in (4, 64, 256)
    }  # fmt: skip
    return ratios | {
        f"kernels, {size} pixels, batch {batch}": kernels(size, batch)
        for size in (16, 32) for batch in (32, 1)
    }  # fmt: skip


def measure_all(batches: Sequence[int]) -> dict[str, Any]:
    """Ratios of times in batches of these sizes."""
    return measure_mixtures() | {
        f"{run.__name__}, {name}, batch {batch}": run(size, batch)
        for name, size in CASES.items()
        for run in (skipping, exits, widths, widths_by_doubt)
        for batch in batches
    }


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Ratios of times at batch 64 and batch 1 on one thread, and at batch 64 on more."""
    torch.manual_seed(0)
    with on_threads(1):
        ratios = measure_all((IMAGES, 1))
    for count in MORE_THREADS:
        with on_threads(count):
            ratios[f"{count} threads"] = measure_all((IMAGES,))
    return ratios
