"""Networks that choose: costs, accuracy and speed of each choice and of the network as a whole."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stepwell.cost import Latency, costs_of, count_macs, mean_of_medians, measure_latencies, time_each
from stepwell.cost.table import ROUNDS
from stepwell.data import Batches
from stepwell.evaluation import Tally, gather_logits
from stepwell.measure.depths import results_of
from stepwell.measure.speed import compare_speed, run_each, timed_images, timed_rows
from stepwell.nets.decisions.choosing import ChoosingNet
from stepwell.nets.inputs import blank_image
from stepwell.train_mode import in_eval_mode
from stepwell.types import Images, Labels, Logits

#: Name of the row in which the chooser decides for each image.
CHOSEN = "chosen"
#: Seconds to time, about.
SECONDS = 1.0


class System(NamedTuple):
    """A kind of network that chooses, and the key of its own measurements in results.json."""

    kind: str
    key: str


RESOLUTION, WIDTHS = System("resolution", "drnet"), System("widths", "widths")


def macs_of_choices(net: ChoosingNet, size: int) -> list[int]:
    """Count the MACs of an image of `size` pixels at each choice, including the chooser's."""
    x = blank_image(net, size)
    chooser = count_macs(net.chooser, x)
    macs = [alone + chooser for alone in macs_alone(net, size)]
    if net.reused is not None:
        choice, part = net.reused
        macs[choice] -= count_macs(part, x)
    return macs


def macs_alone(net: ChoosingNet, size: int) -> list[int]:
    """Count the MACs of an image of `size` pixels at each choice, without a chooser."""
    x = blank_image(net, size)
    return [count_macs(net.plain(i), x) for i in range(len(net.names))]


def choice_table(net: ChoosingNet, size: int) -> dict[str, dict[str, Any]]:
    """Measure the costs of each choice for all images, cheapest first, without the chooser's."""
    plain = {name: net.plain(i) for i, name in enumerate(net.names)}
    costs = costs_of(plain, blank_image(net, size))
    return {name: costs[name] for name in sorted(costs, key=lambda name: costs[name]["macs"])}


def times_of_choices(net: ChoosingNet, size: int) -> list[float]:
    """Measure the milliseconds of one image of `size` pixels at each choice, chooser included."""
    return [time.ms for time in latencies_of_choices(net, size)]


def latencies_of_choices(net: ChoosingNet, size: int) -> list[Latency]:
    """Measure the time of one image of `size` pixels at each choice, chooser included.

    What the chooser has run of a choice counts once.
    """
    x = blank_image(net, size)
    begun, part = net.reused or (-1, nn.Identity())
    runs = [net.chooser, part, *(net.plain(i) for i in range(len(net.names)))]
    with in_eval_mode(*runs), torch.inference_mode():
        calls = {str(i): partial(run_each, run, [x]) for i, run in enumerate(runs)}
        times = measure_latencies(calls, seconds=SECONDS / 2, rounds=ROUNDS)
    chooser, part_time, *choices = times.values()
    latencies = []
    for i, choice in enumerate(choices):
        counted_twice = part_time[:3] if i == begun else (0.0, 0.0, 0.0)
        ends = zip(chooser[:3], choice[:3], counted_twice, strict=True)
        ms, low, high = (first + max(0.0, time - once) for first, time, once in ends)
        latencies.append(Latency(ms, low, high, chooser.unsure or choice.unsure))
    return latencies


class Observed(NamedTuple):
    """Answers of a network that chooses for the test images, on the CPU.

    logits: by row: "chosen", then each choice for all images, cheapest first.
    who: each image's choice; unpriced: without the cost penalty.
    drawn: the mean share of each choice when drawn by the softmax of the scores.
    """

    logits: dict[str, Logits]
    labels: Labels
    who: Int[Tensor, " n"]
    unpriced: Int[Tensor, " n"]
    drawn: Float[Tensor, " choices"]


def observe_choices(net: ChoosingNet, test: Batches, order: Sequence[str]) -> Observed:
    """Run every choice on all images; `order` names the choices, cheapest first."""
    device = next(net.parameters()).device

    def predict(images: Tensor) -> dict[str, Tensor]:
        images = images.to(device)
        fixed = net.logits_by_choice(images)
        return {name: fixed[name] for name in order} | {"scores": net.chooser(images)}

    with in_eval_mode(net):
        logits, labels = gather_logits(predict, test)
        scores = logits.pop("scores").to(device)
        who, unpriced = net.pick(scores).cpu(), scores.argmax(1).cpu()
        drawn = scores.softmax(1).mean(0).cpu()
    return Observed({CHOSEN: at_choices(net, logits, who)} | logits, labels, who, unpriced, drawn)


def at_choices(net: ChoosingNet, logits: Mapping[str, Logits], who: Int[Tensor, " batch"]) -> Logits:
    """Select each image's logits at its own choice, `who`."""
    every = torch.stack([logits[name] for name in net.names], 1)
    return every[torch.arange(len(who)), who]


def measure_choices(
    net: ChoosingNet, test: Batches, costs: Mapping[str, Mapping[str, Any]], system: System = RESOLUTION
) -> tuple[dict[str, Any], Observed]:
    """Measure the network as a whole, and each choice for all images; `costs` from `choice_table`.

    Returns:
        Results as a run's results.json has them, with the row "chosen" in "test" and "costs". Under
        the system's key: "shares" of images by choice, and by "classes"; the mean "cost" as a share of
        the costliest choice; "price", the cost penalty; the network's "budgets"; accuracy and cost
        "unpriced"; "sampled_cost" of choices drawn by the softmax of the scores; "chooser_macs"; and
        "controls", see `controls_of`. Then the network's answers.
    """
    seen = observe_choices(net, test, list(costs))
    size = test.images.size
    macs = torch.tensor(macs_of_choices(net, size), dtype=torch.float64)
    mean = float(macs[seen.who].mean())
    mean_cost = mean / float(macs.max())
    alone = torch.tensor([row["macs"] for row in costs.values()], dtype=torch.float64)
    whole = {
        "params": sum(p.numel() for p in net.parameters()), "macs": round(mean),
        "ms": _one_by_one(net, test, seen.who), "batch": 1, "threads": torch.get_num_threads(),
    }  # fmt: skip
    order = [net.names.index(name) for name in costs]
    counts = torch.bincount(seen.who, minlength=len(order)).double()
    classes = net.card.classes or test.images.classes
    by_class = {c: seen.who[seen.labels == i] for i, c in enumerate(classes)}
    free = at_choices(net, seen.logits, seen.unpriced).argmax(1) == seen.labels
    record = {
        "shares": _shares(net.names, seen.who),
        "classes": {name: _shares(net.names, who) for name, who in by_class.items()},
        "cost": mean_cost,
        "price": float(net.price),
        "budgets": [b._asdict() | {"shares": list(b.shares)} for b in net.budgets],
        "unpriced": {
            "accuracy": free.double().mean().item(),
            "cost": float(macs[seen.unpriced].mean() / macs.max()),
        },
        "sampled_cost": float(seen.drawn.double() @ macs / macs.max()),
        "chooser_macs": count_macs(net.chooser, blank_image(net, size)),
        "controls": controls_of(
            right_of(seen, list(costs)), counts[order] / len(seen.who), alone / macs.max(), mean_cost
        ),
    }
    sums = Tally().add(seen.logits, seen.labels)
    results = results_of(sums, classes, {CHOSEN: whole} | dict(costs), system.kind, "choice")
    return results | {system.key: record}, seen


def controls_of(
    right: Bool[Tensor, "choices images"], shares: Float[Tensor, " choices"],
    costs: Float[Tensor, " choices"], mean_cost: float,
) -> dict[str, float]:  # fmt: skip
    """Accuracies of other ways to choose, at the mean cost of a network that chooses.

    Args:
        right: true where a choice, from cheap to costly, classifies an image correctly.
        shares: of the images, by choice.
        costs: of each choice alone: no other way needs the chooser.
        mean_cost: of the network with its chooser, in the same unit.

    Returns:
        "random": as many images at each choice, but drawn at random; "line": the best mixture of two
        choices at the mean cost; "oracle": the cheapest choice that is right, and "oracle cost", its
        mean cost.
    """
    accuracy = right.double().mean(1)
    first = right.double().argmax(0)  # the cheapest right one, or the cheapest
    return {
        "random": float(shares @ accuracy),
        "line": best_mixture(accuracy, costs, mean_cost),
        "oracle": right.any(0).double().mean().item(),
        "oracle cost": costs[first].mean().item(),
    }


def right_of(seen: Observed, order: Sequence[str]) -> Bool[Tensor, "choices images"]:
    """The correctness of the choices in `order` on each image."""
    return torch.stack([seen.logits[name].argmax(1) == seen.labels for name in order])


def best_mixture(
    accuracy: Float[Tensor, " choices"], costs: Float[Tensor, " choices"], cost: float
) -> float:
    """The best accuracy of random choices whose mean cost is at most `cost`."""
    best = float(accuracy[costs <= cost].max())
    for low in range(len(costs)):
        for high in range(len(costs)):
            if costs[low] < cost < costs[high]:
                share = (cost - costs[low]) / (costs[high] - costs[low])
                best = max(best, float(accuracy[low] + share * (accuracy[high] - accuracy[low])))
    return best


def _shares(names: Sequence[str], who: Tensor) -> dict[str, float]:
    counts = torch.bincount(who, minlength=len(names)).double() / max(1, len(who))
    return dict(zip(names, counts.tolist(), strict=True))


@torch.inference_mode()
def _one_by_one(net: ChoosingNet, test: Batches, who: Tensor) -> float:
    """Measure the mean milliseconds of one image at a time, from the median of each choice."""
    device = next(net.parameters()).device
    images = timed_images(test).to(device)
    with in_eval_mode(net):
        times = time_each({"": net.forward}, images.split(1), seconds=SECONDS)[""].times
    return 1000 * mean_of_medians(times, who[timed_rows(len(who))].tolist())


@torch.inference_mode()
def measure_speed(
    net: ChoosingNet, images: Images, *, seconds: float | None = None
) -> list[dict[str, float]]:
    """Measure images per second with the chooser, and at the first choice; as `compare_speed`."""
    images = images.to(next(net.parameters()).device)
    macs = torch.tensor(macs_of_choices(net, images.shape[-1]), dtype=torch.float64)
    full = net.plain(0)
    alone = count_macs(full, images[:1])

    def by_macs(parts: Sequence[Tensor]) -> float:
        ran = torch.cat([net.answer(x).depth for x in parts])  # a group may join a costlier choice
        return float(alone / macs[ran.cpu()].mean())

    with in_eval_mode(net, full):
        return compare_speed(net.forward, full, images, by_macs, seconds=seconds or SECONDS)
