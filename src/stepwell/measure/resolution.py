"""Resolution networks: costs, accuracy and speed of each choice and of the network as a whole."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepwell.cost import Latency, costs_of, count_macs, mean_of_medians, measure_latencies, time_each
from stepwell.cost.table import ROUNDS
from stepwell.data import Batches
from stepwell.evaluation import Tally, gather_logits
from stepwell.measure.depths import results_of
from stepwell.measure.inputs import blank_image
from stepwell.measure.speed import compare_speed, run_each
from stepwell.nets.resolution.chooser import ResolutionNet
from stepwell.nets.resolution.resolutions import resize
from stepwell.train_mode import in_eval_mode
from stepwell.types import Images, Labels, Logits

#: Name of the row in which the chooser decides for each image.
CHOSEN = "chosen"
#: Images to time, at most; seconds to time, about.
TIMED = 512
SECONDS = 1.0


class AtChoice(nn.Module):
    """One depth at one resolution as a plain network; it takes images of any size."""

    def __init__(self, net: ResolutionNet, choice: int) -> None:
        super().__init__()
        depth, self.size = net.choices[choice]
        self.net = net.net.at(self.size).subnet(depth)

    def forward(self, x: Images) -> Logits:
        """Resize the images to the resolution, and give their logits."""
        logits: Tensor = self.net(resize(x, self.size))
        return logits


def macs_of_choices(net: ResolutionNet, size: int) -> list[int]:
    """Count the MACs of an image of `size` pixels at each choice, including the chooser's."""
    x = blank_image(net, size)
    chooser = count_macs(net.chooser, x)
    return [count_macs(AtChoice(net, i), x) + chooser for i in range(len(net.choices))]


def choice_table(net: ResolutionNet, size: int) -> dict[str, dict[str, Any]]:
    """Measure the costs of each choice for all images, cheapest first, without the chooser's."""
    plain = {name: AtChoice(net, i) for i, name in enumerate(net.names)}
    costs = costs_of(plain, blank_image(net, size))
    return {name: costs[name] for name in sorted(costs, key=lambda name: costs[name]["macs"])}


def times_of_choices(net: ResolutionNet, size: int) -> list[float]:
    """Measure the milliseconds of one image of `size` pixels at each choice, chooser included."""
    chooser, *choices = latencies_of_choices(net, size)
    return [chooser.ms + choice.ms for choice in choices]


def latencies_of_choices(net: ResolutionNet, size: int) -> list[Latency]:
    """Measure the time of one image of `size` pixels: of the chooser, then of each choice."""
    x = blank_image(net, size)
    runs = [net.chooser, *(AtChoice(net, i) for i in range(len(net.choices)))]
    with in_eval_mode(*runs), torch.inference_mode():
        calls = {str(i): partial(run_each, run, [x]) for i, run in enumerate(runs)}
        return [*measure_latencies(calls, seconds=SECONDS / 2, rounds=ROUNDS).values()]


class Observed(NamedTuple):
    """Answers of a resolution network for the test images, on the CPU.

    logits: by row: "chosen", then each choice for all images, cheapest first.
    who: each image's choice; unpriced: without the cost penalty.
    drawn: the mean share of each choice when drawn as in training, by the softmax of the scores.
    """

    logits: dict[str, Logits]
    labels: Labels
    who: Int[Tensor, " n"]
    unpriced: Int[Tensor, " n"]
    drawn: Float[Tensor, " choices"]


def observe_choices(net: ResolutionNet, test: Batches, order: Sequence[str]) -> Observed:
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


def at_choices(net: ResolutionNet, logits: Mapping[str, Logits], who: Int[Tensor, " batch"]) -> Logits:
    """Select each image's logits at its own choice, `who`."""
    every = torch.stack([logits[name] for name in net.names], 1)
    return every[torch.arange(len(who)), who]


def measure_resolution(
    net: ResolutionNet, test: Batches, costs: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], Observed]:
    """Measure the network as a whole, and each choice for all images; `costs` from `choice_table`.

    Returns:
        Results as a run's results.json has them, with the row "chosen" in "test" and "costs". Under
        "drnet": "shares" of images by choice, and by "classes"; the mean "cost" as a share of the
        costliest choice; "price", the cost penalty; the network's "budgets"; accuracy and cost
        "unpriced"; "sampled_cost" of choices drawn as in training; and "chooser_macs". Then the
        network's answers.
    """
    seen = observe_choices(net, test, list(costs))
    size = test.images.size
    macs = torch.tensor(macs_of_choices(net, size), dtype=torch.float64)
    mean = float(macs[seen.who].mean())
    whole = {
        "params": sum(p.numel() for p in net.parameters()), "macs": round(mean),
        "ms": _one_by_one(net, test, seen.who), "batch": 1, "threads": torch.get_num_threads(),
    }  # fmt: skip
    classes = net.net.net.card.classes or test.images.classes
    by_class = {c: seen.who[seen.labels == i] for i, c in enumerate(classes)}
    free = at_choices(net, seen.logits, seen.unpriced).argmax(1) == seen.labels
    record = {
        "shares": _shares(net.names, seen.who),
        "classes": {name: _shares(net.names, who) for name, who in by_class.items()},
        "cost": mean / float(macs.max()),
        "price": float(net.price),
        "budgets": [b._asdict() | {"shares": list(b.shares)} for b in net.budgets],
        "unpriced": {
            "accuracy": free.double().mean().item(),
            "cost": float(macs[seen.unpriced].mean() / macs.max()),
        },
        "sampled_cost": float(seen.drawn.double() @ macs / macs.max()),
        "chooser_macs": count_macs(net.chooser, torch.zeros(1, 3, size, size)),
    }
    sums = Tally().add(seen.logits, seen.labels)
    results = results_of(sums, classes, {CHOSEN: whole} | dict(costs), "resolution", "choice")
    return results | {"drnet": record}, seen


def _shares(names: Sequence[str], who: Tensor) -> dict[str, float]:
    counts = torch.bincount(who, minlength=len(names)).double() / max(1, len(who))
    return dict(zip(names, counts.tolist(), strict=True))


@torch.inference_mode()
def _one_by_one(net: ResolutionNet, test: Batches, who: Tensor) -> float:
    """Measure the mean milliseconds of one image at a time, from the median of each choice."""
    device = next(net.parameters()).device
    images = timed_images(test).to(device)
    with in_eval_mode(net):
        times = time_each({"": net.forward}, images.split(1), seconds=SECONDS)[""].times
    return 1000 * mean_of_medians(times, who.tolist())


def timed_images(test: Batches) -> Images:
    """Take the first images of a part, on which speed is measured."""
    return Batches(test.images, TIMED, mean=test.mean, std=test.std).at(0).images


@torch.inference_mode()
def measure_speed(
    net: ResolutionNet, images: Images, *, seconds: float | None = None
) -> list[dict[str, float]]:
    """Measure images per second with the chooser, and at the first choice; as `compare_speed`."""
    images = images.to(next(net.parameters()).device)
    macs = torch.tensor(macs_of_choices(net, images.shape[-1]), dtype=torch.float64)
    depth, size = net.choices[0]
    full = net.net.at(size)
    alone = count_macs(full.subnet(depth), resize(images[:1], size))

    def by_macs(parts: Sequence[Tensor]) -> float:
        return float(alone / macs[torch.cat([net.choose(x) for x in parts]).cpu()].mean())

    with in_eval_mode(net):
        return compare_speed(
            net.forward, lambda x: full(resize(x, size), depth), images, by_macs,
            seconds=seconds or SECONDS,
        )  # fmt: skip
