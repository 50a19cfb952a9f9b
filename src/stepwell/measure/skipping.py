"""Networks whose blocks an image may skip: costs, budgets, speed, and where skipping pays."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.cost import cost_of, count_macs, mean_of_medians, measure_latencies, time_each
from stepwell.cost.latency import marked
from stepwell.data import Batches
from stepwell.evaluation import Tally, gather_logits
from stepwell.evaluation.cost_penalty import Priced, front
from stepwell.measure import speed
from stepwell.measure.break_even import with_break_even
from stepwell.measure.data_parts import in_random_order
from stepwell.measure.depths import results_of
from stepwell.nets import NestedNet, build
from stepwell.nets.decisions.budgets import Budget
from stepwell.nets.decisions.deciding import use_break_even
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.pixels import Given, has_masks
from stepwell.nets.decisions.skipping import Chance, Gated, gated_blocks, priced
from stepwell.nets.inputs import blank_image
from stepwell.train_mode import in_eval_mode
from stepwell.types import Labels, Logits

#: Rows of the results: the gates decide, or every block runs, without gates.
CHOSEN, ALL = "chosen", "all"
#: Cost penalties of budgets; the first leaves the gates as they are.
PRICES = (0.0, *(step / 2 for step in range(-3, 7) if step))
#: Shares of a batch, and batch sizes, at which blocks are timed.
SHARES, BATCHES = (0.25, 0.5, 0.75), (1, 8, 64)


class Branch(nn.Module):
    """The residual branch of a gated block alone."""

    def __init__(self, block: Gated) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """The branch of the block's input."""
        return self.block.branch(x)


def without_gates(net: NestedNet) -> nn.Module:
    """The plain network that runs every block: the same weights, no gates; nothing is shared."""
    assert net.builder is not None, "a network with gates is built by name"
    name, arguments = net.builder
    plain = build(name, **{k: v for k, v in arguments.items() if k != "gates"})
    state = {k: v for k, v in net.module.state_dict().items() if ".gate." not in k}
    plain.load_full(state)
    return plain.module.eval().to(next(net.parameters()).device)


class SkippingMacs(NamedTuple):
    """MACs of an image: of what always runs (`gates` among it), and of each gated branch in order."""

    fixed: int
    branches: tuple[int, ...]
    gates: int

    @property
    def all(self) -> int:
        """MACs of every block, without gates."""
        return self.fixed - self.gates + sum(self.branches)

    def at(self, open: Float[Tensor, "*images gates"]) -> Float[Tensor, "*images"]:
        """MACs by the gates that are open, or by their rates; gates count, too."""
        return self.fixed + open.double() @ torch.tensor(self.branches, dtype=torch.float64)


@torch.no_grad()
def skipping_macs(net: NestedNet, size: int) -> SkippingMacs:
    """Count the MACs of the full net for images of `size` pixels."""
    counts = [
        (count_macs(Branch(block), x), count_macs(block.gate, x))
        for _, block, x in _inputs(net, blank_image(net, size))
    ]
    branches, gates = zip(*counts, strict=True)
    whole = count_macs(without_gates(net), blank_image(net, size))
    return SkippingMacs(whole - sum(branches) + sum(gates), branches, sum(gates))


def _inputs(net: NestedNet, x: Tensor) -> Iterator[tuple[str, Gated, Tensor]]:
    """Each gated block of the full net by name, and its input when every block runs."""
    names = {block: name for name, block in gated_blocks(net.module)}
    with in_eval_mode(net):
        for step in net.path():
            if isinstance(step, Gated):
                yield names[step], step, x
                x = step(x, draw=Draw("always"))
            else:
                x = step(x)


@torch.no_grad()
def measure_break_even(
    net: NestedNet, size: int, *, seconds: float | None = None
) -> dict[str, dict[str, float]]:
    """Measure the share of a batch below which each gated block is faster on its images alone.

    The time of the compacted form is a line in the share, fitted at `SHARES`. It meets the time of the
    dense form, which runs all images and multiplies by zero, at the break-even.

    Returns:
        By block, then by batch size as text: a share in [0, 1], for `Card.break_even`.
    """
    seconds = (speed.SECONDS if seconds is None else seconds) / 10
    shares: dict[str, dict[str, float]] = {}
    for batch in BATCHES:
        x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        x = x.contiguous(memory_format=torch.channels_last)
        for name, block, inputs in _inputs(net, x.to(next(net.parameters()).device)):
            shares.setdefault(name, {})[str(batch)] = break_even_of(block, inputs, seconds)
    return shares


def break_even_of(block: Gated, x: Tensor, seconds: float) -> float:
    """The share of the block's work below which running it in part is faster, for a batch like `x`."""
    base = x if block.downsample is None else block.downsample(x)
    decisions = {block.share_of(d, x): d for d in (block.some(x, share) for share in SHARES)}
    if len(decisions) < 2 or max(decisions) == 1:  # on tiny maps, some positions are all
        return 0.0
    run = partial(block.run, base, x)
    calls = {str(share): partial(speed.run_each, run, [d]) for share, d in decisions.items()}
    # at a break-even of 0, any decision makes the form dense
    dense = partial(run, break_even={len(x): 0.0})
    calls["dense"] = partial(speed.run_each, dense, [decisions[max(decisions)]])
    times = measure_latencies(calls, seconds=seconds, warmup=2, least=5, rounds=2)
    shares = torch.tensor([[1.0, share] for share in decisions], dtype=torch.float64)
    ms = torch.tensor([[times[str(share)].ms] for share in decisions], dtype=torch.float64)
    start, slope = torch.linalg.lstsq(shares, ms).solution[:, 0].tolist()
    if slope <= 0:  # too noisy to tell: the time does not grow with the share
        return 1.0 if times["dense"].ms >= float(ms.mean()) else 0.0
    return min(1.0, max(0.0, (times["dense"].ms - start) / slope))


class Observed(NamedTuple):
    """Answers for the test images, on the CPU.

    logits: by row, `CHOSEN` and `ALL`.
    open: 1 where an image runs a gate's block; of positions, the share of the block that runs.
    """

    logits: dict[str, Logits]
    labels: Labels
    open: Float[Tensor, "n gates"]


def observe_skipping(net: NestedNet, test: Batches) -> Observed:
    """Run the network as its gates decide, and with every block, on all test images."""
    device = next(net.parameters()).device

    def predict(images: Tensor) -> dict[str, Tensor]:
        images = images.to(device)
        exit = net.forward_all(images, [net.full], extras=("open",))[net.full]
        every = net(images, given={"draw": Draw("always")})
        open = torch.stack(exit.extras["open"], 1)
        return {CHOSEN: exit.logits, ALL: every, "open": open}

    with in_eval_mode(net):
        logits, labels = gather_logits(predict, test)
    return Observed(logits, labels, logits.pop("open"))


def keep_budgets(net: NestedNet, batches: Batches) -> None:
    """Measure `gate_budgets`, and keep them on the card of the network."""
    budgets = tuple(
        (budget.price, budget.macs, budget.accuracy) for budget in gate_budgets(net, batches)
    )
    net.card = replace(net.card, gate_budgets=budgets)


@torch.no_grad()
def gate_budgets(net: NestedNet, batches: Batches) -> tuple[Budget, ...]:
    """Measure accuracy and mean MACs of the full net at several cost penalties, cheapest first.

    A penalty is subtracted from every gate's score "run" (`priced`). Only those stay that no other
    beats in both.
    """
    macs = skipping_macs(net, batches.images.size)
    device = next(net.parameters()).device

    def predict(images: Tensor) -> dict[str, Tensor]:
        exit = net.forward_all(images.to(device), [net.full], extras=("open",))[net.full]
        return {CHOSEN: exit.logits, "open": torch.stack(exit.extras["open"], 1)}

    candidates = []
    for price in PRICES:
        with priced(net.module, price), in_eval_mode(net):
            answers, labels = gather_logits(predict, batches)
        right = (answers[CHOSEN].argmax(1) == labels).double().mean().item()
        candidates.append(Priced(price, right, float(macs.at(answers["open"]).mean()), ()))
    unbeaten = front(candidates, len(candidates))
    return tuple(Budget(point.price, point.cost, point.accuracy) for point in unbeaten)


@contextmanager
def other_gates(net: NestedNet, others: Iterable[nn.Module]) -> Iterator[None]:
    """Let other modules stand for the gates of a network's blocks, in order."""
    blocks = [block for _, block in gated_blocks(net.module)]
    gates = [block.gate for block in blocks]
    try:
        for block, other in zip(blocks, others, strict=True):
            block.gate = other
        yield
    finally:
        for block, gate in zip(blocks, gates, strict=True):
            block.gate = gate


@contextmanager
def at_random(net: NestedNet, rates: Float[Tensor, " gates"]) -> Iterator[Mapping[str, Any]]:
    """Let each gate open by chance, as often as its rate; gives the constants that a call needs."""
    chances = map(Chance, rates.to(next(net.parameters()).device))
    with other_gates(net, chances), torch.random.fork_rng():
        torch.manual_seed(0)
        yield {"draw": Draw("reinforce")}


def with_masks_of_others(net: NestedNet, images: Tensor) -> Logits:
    """Answers where each image has all masks of the image before it in the batch, and so its work.

    The masks are those that the other image has by itself.
    """
    given = {"draw": Draw("threshold")}
    exit = net.forward_all(images, [net.full], given=given, extras=("mask",))[net.full]
    with other_gates(net, (Given(mask.roll(1, 0)) for mask in exit.extras["mask"])):
        return net(images, given=given)


def accuracy_at_random(net: NestedNet, test: Batches, rates: Float[Tensor, " gates"]) -> float | None:
    """The accuracy on test images if each gate opens by chance, as often as it does.

    Of masks: if each image has the masks of another one. They come from batches in random order,
    because neighbours in a folder are mostly of one class; a last batch of one image is left out. None
    for a single test image.
    """
    device = next(net.parameters()).device
    with in_eval_mode(net):
        if has_masks(net.module):
            if len(test.images) < 2:
                return None
            answers = gather_logits(
                lambda x: {"": with_masks_of_others(net, x.to(device))}, in_random_order(test)
            )
        else:
            with at_random(net, rates) as given:
                answers = gather_logits(lambda x: {"": net(x.to(device), given=given)}, test)
    logits, labels = answers
    return (logits[""].argmax(1) == labels).double().mean().item()


def measure_skipping(
    net: NestedNet, test: Batches, kind: str = "skipping"
) -> tuple[dict[str, Any], Observed]:
    """Measure the network as its gates decide, and with every block.

    Times use break-even shares, measured where the card has none; answers do not, so that no result
    depends on a clock.

    Returns:
        Results as a run's results.json has them, with the rows "chosen" and "all". Under `kind`: the
        "open" rate of each block, their "mean"; "work", the share of the blocks' MACs that runs;
        "cost", the share of the MACs of every block; "gate_macs"; "speed" of both, as `compare_speed`;
        "random_accuracy" by `accuracy_at_random`, if there is one. Then the network's answers.
    """
    use_break_even(net.module, {})
    seen = observe_skipping(net, test)
    with_break_even(net, measure_break_even)
    macs = skipping_macs(net, net.card.size)
    costs = _costs(net, test, seen, macs)
    names = [name for name, _ in gated_blocks(net.module)]
    rates = seen.open.double().mean(0)
    branches = torch.tensor(macs.branches, dtype=torch.float64)
    record = {
        "open": dict(zip(names, rates.tolist(), strict=True)), "mean": float(rates.mean()),
        "work": float(rates @ branches / branches.sum()),
        "cost": costs[CHOSEN]["macs"] / macs.all, "gate_macs": macs.gates,
        "speed": measure_speed(net, speed.timed_images(test), macs),
    }  # fmt: skip
    if (chance := accuracy_at_random(net, test, rates)) is not None:
        record["random_accuracy"] = chance
    sums = Tally().add(seen.logits, seen.labels)
    results = results_of(sums, net.card.classes, costs, kind, "choice")
    return results | {kind: record}, seen


def _costs(
    net: NestedNet, test: Batches, seen: Observed, macs: SkippingMacs
) -> dict[str, dict[str, Any]]:
    images = speed.timed_images(test).to(next(net.parameters()).device)
    with in_eval_mode(net), torch.inference_mode():
        watch = time_each({"": net.forward}, images.split(1), seconds=speed.SECONDS)[""]
    # images of equally many blocks, or of about equally much of their work, take equally long
    timed = seen.open[speed.timed_rows(len(seen.open))]
    groups = timed.sum(1).round().long().tolist()
    chosen = {
        "params": sum(p.numel() for p in net.module.parameters()),
        "macs": round(float(macs.at(seen.open).mean())),
        "ms": 1000 * mean_of_medians(watch.times, groups[: len(watch.times)]),
        "batch": 1, "threads": torch.get_num_threads(),
    } | marked(watch.busy)  # fmt: skip
    plain = without_gates(net).cpu()
    every = cost_of(plain, blank_image(plain, net.card.size), seconds=speed.SECONDS / 2)
    return {CHOSEN: chosen, ALL: every}


@torch.inference_mode()
def measure_speed(net: NestedNet, images: Tensor, macs: SkippingMacs) -> list[dict[str, float]]:
    """Measure images per second as the gates decide, and of the plain network; as `compare_speed`."""
    plain = without_gates(net)

    def by_macs(parts: Sequence[Tensor]) -> float:
        exits = (net.forward_all(x, [net.full], extras=("open",))[net.full] for x in parts)
        open = torch.cat([torch.stack(e.extras["open"], 1) for e in exits])
        return float(macs.all / macs.at(open.cpu()).mean())

    with in_eval_mode(net):
        return speed.compare_speed(
            net.forward, plain, images.to(next(net.parameters()).device), by_macs
        )
