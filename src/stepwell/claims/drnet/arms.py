"""Arms of the study of dynamic resolution: networks that choose, others, and controls of a choice."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

from stepwell.claims.kit.measuring import Clock, validated_parts
from stepwell.data import Batches, load_images
from stepwell.evaluation.cascade import Goal, Outcome, better, find_thresholds, outcome_of
from stepwell.evaluation.cost_penalty import Priced, best_within, outcome_at, outcomes
from stepwell.files import config_of, write_whole
from stepwell.flags import call
from stepwell.measure.choices import (
    CHOSEN,
    Observed,
    controls_of,
    macs_alone,
    macs_of_choices,
    observe_choices,
    right_of,
)
from stepwell.measure.data_parts import parts_for
from stepwell.methods.resolution import Mixing
from stepwell.nets.files.resolution import load_resolution
from stepwell.nets.nested.criteria import top_probability
from stepwell.nets.resolution.chooser import ResolutionNet
from stepwell.recipes.drnet import SHARES, Schedule, drnet
from stepwell.recipes.supervised import supervised
from stepwell.training import Loop

#: Mean costs at which choices of resolution and of depth are compared.
COSTS = (0.25, 0.4, 0.55, 0.7, 0.85)
#: Resolutions of the planted task. At the target, half of the images have full size, half the smallest.
PLANTED, PLANTED_TARGET = (32, 16, 8), 0.53
#: Scores of the chooser, and the correctness of each choice, for some images.
Scores = Float[Tensor, "_ choices"]
Right = Bool[Tensor, "_ choices"]
#: Cost of each choice, as a share of the costliest.
Costs = Float[Tensor, " choices"]


def learned(
    *, out: Path, data: str, size: int | None, net: str, subnets: tuple[str, ...] = (),
    nested: bool = False, resized: bool = True, epochs: int = 10, choose_epochs: int = 10,
    init: Path | None = None, val_fraction: float = 0.1, part: str | None = None, seed: int = 0,
    loop: Loop = Loop(), **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train by the recipe `drnet`.

    Args:
        subnets: depths below the full one, of an arm that is `nested`.
        resized: at several resolutions; else at full size alone.
        options: further options of the recipe.

    Returns:
        Under "test": "accuracy" and "cost" of the network with its cost penalty, and "unpriced" without
        it; "sampled cost", of choices drawn as in training; "random, own" and "line, own" of random
        choices at this cost, chooser included; and, of one depth, the accuracy "at 1",
        "at 0.75" and "at 0.5" of the full size for all images.
    """
    full = size or load_images(data, None).train.size
    result = call(
        drnet, out=out, data=data, size=full, net=net, depths=subnets if nested else (),
        sizes=() if resized else (full,), epochs=epochs, choose_epochs=choose_epochs, init=init,
        val_fraction=val_fraction, part=part, seed=seed, loop=loop, **options,
    )  # fmt: skip
    test, record = result["test"], result["drnet"]
    numbers = {
        "accuracy": test[f"{CHOSEN}/accuracy"],
        "nll": test[f"{CHOSEN}/nll"],
        "cost": record["cost"],
        "unpriced accuracy": record["unpriced"]["accuracy"],
        "unpriced cost": record["unpriced"]["cost"],
        "sampled cost": record["sampled_cost"],
        **{f"{how}, own": record["controls"][how] for how in ("random", "line")},
    }
    if resized and not nested:
        rows = reversed(list(result["costs"]))  # costly to cheap; the last is "chosen"
        named = zip(SHARES, rows, strict=False)
        numbers |= {f"at {share:g}": test[f"{row}/accuracy"] for share, row in named}
    return {"test": numbers} | {k: result[k] for k in ("seconds", "cpu_seconds")}


def alone(
    *, out: Path, data: str, size: int | None, net: str, share: float = 1.0, epochs: int,
    val_fraction: float = 0.1, part: str | None = None, seed: int = 0, loop: Loop = Loop(),
) -> dict[str, Any]:  # fmt: skip
    """Train one network on labels, at a `share` of the full size.

    Returns:
        Under "test": "accuracy", and "cost" as a share of the MACs at full size.
    """
    full = size or load_images(data, None).train.size
    side = round(share * full)
    result = call(
        supervised, out=out, data=data, size=side, net=net, epochs=epochs,
        val_fraction=val_fraction, part=part, seed=seed, loop=loop,
    )  # fmt: skip
    ((depth, _),) = result["costs"].items()
    test = {"accuracy": result["test"][f"{depth}/accuracy"], "nll": result["test"][f"{depth}/nll"]}
    # nearly all MACs are of convolutions
    test["cost"] = (side / full) ** 2
    return {"test": test} | {k: result[k] for k in ("seconds", "cpu_seconds")}


def controls(
    *, out: Path, fixed: Path, dynamic: Path, random: Path, data: str, seed: int = 0
) -> dict[str, Any]:
    """Measure other ways to choose, at the mean cost of a dynamic network.

    Args:
        fixed: file of a network of one depth, trained at all resolutions; its chooser is not used.
        dynamic: file of the dynamic network.
        random: file of a network trained like it, with random choices.

    Returns:
        Under "test", accuracies on the test part: "random" of random choices with the dynamic network's
        histogram by `random`, "line" of the best random mixture of resolutions by `fixed`, and both as
        "NAME, own" by the dynamic network itself; "oracle" of the cheapest resolution at which `fixed`
        is right; "cascade" as in `best_cascade`; "oracle cost" and "cascade cost". Areas under the ROC
        for the images that `fixed` has right at full size alone: "auc", of the chooser's preference for
        full size over the cheapest choice; "auc of doubt", of the doubt of `fixed` itself at the
        cheapest choice, which takes a run at that size.

    Raises:
        ValueError: the runs have no validation part.
    """
    clock = Clock()
    files = {"fixed": fixed, "dynamic": dynamic, "random": random}
    nets = {name: load_resolution(file) for name, file in files.items()}
    parts = validated_parts(nets["dynamic"].nested, dynamic, data)
    assert parts.validation is not None
    order = list(reversed(nets["fixed"].names))
    observed = {name: observe_choices(net, parts.test, order) for name, net in nets.items()}
    validation = observe_choices(nets["fixed"], parts.validation, order)
    costs, alone = _costs(nets["fixed"])
    three = observed["fixed"], observed["dynamic"], observed["random"]
    measures = at_its_cost(*three, order, costs, alone)
    measures |= best_cascade(observed["fixed"], validation, order, alone, measures["cost"])
    measures["auc"] = auc_of_need(preference(nets["dynamic"], parts.test), observed["fixed"], order)
    doubt = -top_probability(observed["fixed"].logits[order[0]])
    measures["auc of doubt"] = auc_of_need(doubt, observed["fixed"], order)
    return _finished(measures, out / "controls.json", clock)


def fronts(
    *, out: Path, resolution: Path, depth: Path, both: Path, data: str, seed: int = 0
) -> dict[str, Any]:
    """Compare networks that choose the resolution, the depth, or both, at the same costs.

    Returns:
        Under "test": accuracies such as "resolution at 0.4", at the cost penalty that is best within
        this mean cost on validation images, where choices reach it; and "cost of" each.

    Raises:
        ValueError: the runs have no validation part.
    """
    clock = Clock()
    measures: dict[str, float] = {}
    for name, file in {"resolution": resolution, "depth": depth, "both": both}.items():
        net = load_resolution(file)
        parts = validated_parts(net.nested, file, data)
        assert parts.validation is not None
        known = scored(net, parts.validation), scored(net, parts.test)
        for cost, outcome in held_to(COSTS, *known, net.costs).items():
            measures[f"{name} at {cost:g}"] = outcome.accuracy
            measures[f"cost of {name} at {cost:g}"] = outcome.cost
    return _finished(measures, out / "fronts.json", clock)


def _finished(measures: dict[str, float], file: Path, clock: Clock) -> dict[str, Any]:
    """Write the numbers, and return the arm's result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(measures, indent=1).encode())
    return clock.result(measures)


def held_to(
    wanted: Sequence[float], validation: tuple[Scores, Right], test: tuple[Scores, Right], costs: Costs
) -> dict[float, Priced]:
    """Outcomes on test images at the cost penalties that are best on validation images.

    Args:
        wanted: the largest mean costs; a cost that no choice reaches is left out.
    """
    tried = outcomes(*validation, costs)
    within = {
        cost: best_within(tried, cost, len(validation[1]))
        for cost in wanted
        if cost >= float(costs.min())
    }
    return {cost: outcome_at(best.price, *test, costs) for cost, best in within.items()}


def scored(net: ResolutionNet, images: Batches) -> tuple[Scores, Right]:
    """The chooser's scores, and the correctness of each choice."""
    return scores_of(net, images), right_of(observe_choices(net, images, net.names), net.names).T


@torch.inference_mode()
def scores_of(net: ResolutionNet, images: Batches) -> Scores:
    """The chooser's scores."""
    return torch.cat([net.chooser(x) for x, _ in images])


def _costs(net: ResolutionNet) -> tuple[Costs, Costs]:
    """The cost of each choice, cheap to costly, with and without the chooser."""
    size = net.net.sizes[0]
    counts = macs_of_choices(net, size), macs_alone(net, size)
    macs, alone = (torch.tensor(count, dtype=torch.float64).flip(0) for count in counts)
    return macs / macs.max(), alone / macs.max()


def at_its_cost(
    fixed: Observed, dynamic: Observed, random: Observed, order: Sequence[str], costs: Costs,
    alone: Costs,
) -> dict[str, float]:  # fmt: skip
    """Random choices and mixtures of fixed ones at the dynamic network's cost, and the oracle.

    Args:
        order: the choices, cheap to costly.
        costs, alone: of each choice in `order`, with and without the chooser.
    """
    who = len(order) - 1 - dynamic.who  # choices are costly to cheap
    shares = torch.bincount(who, minlength=len(order)).double() / len(who)
    cost = float(shares @ costs)
    by_chance, at_dynamic, at_fixed = (
        controls_of(right_of(observed, order), shares, alone, cost)
        for observed in (random, dynamic, fixed)
    )
    return {
        "random": by_chance["random"],
        "random, own": at_dynamic["random"],
        "cost": cost,
        "line": at_fixed["line"],
        "line, own": at_dynamic["line"],
        "oracle": at_fixed["oracle"],
        "oracle cost": at_fixed["oracle cost"],
    }


def best_cascade(
    test: Observed, validation: Observed, order: Sequence[str], costs: Costs, target: float
) -> dict[str, float]:
    """The cascade that is best at a mean cost on validation images: a larger size where it is unsure.

    Its cost counts all resolutions that were run.

    Args:
        order: the choices, cheap to costly.
    """
    goal = Goal(cost=target)

    def sure(observed: Observed, names: Sequence[str]) -> Float[Tensor, "stages images"]:
        return torch.stack([top_probability(observed.logits[name]) for name in names])

    best: tuple[Outcome, Outcome] | None = None
    for count in range(1, len(order) + 1):
        for taken in combinations(range(len(order)), count):
            names, paid = [order[i] for i in taken], costs[list(taken)].cumsum(0).tolist()
            known = sure(validation, names), right_of(validation, names)
            values, outcome = find_thresholds(*known, paid, goal)
            if best is None or better(outcome, best[0], goal):
                best = outcome, outcome_of(values, sure(test, names), right_of(test, names), paid)
    assert best is not None
    return {"cascade": best[1].accuracy, "cascade cost": best[1].cost}


def preference(net: ResolutionNet, test: Batches) -> Float[Tensor, " images"]:
    """The chooser's score of full size minus its score of the cheapest choice, for each image."""
    scores = scores_of(net, test)
    return scores[:, 0] - scores[:, -1]


def auc_of_need(score: Float[Tensor, " images"], observed: Observed, order: Sequence[str]) -> float:
    """The area under a score's ROC, for the images that are right at full size alone.

    Args:
        order: the choices, cheap to costly.
    """
    right = right_of(observed, order)
    needs = right[-1] & ~right[0]
    if not needs.any() or needs.all():
        return 0.5
    return float(roc_auc_score(needs.numpy(), score.numpy()))


def planted(
    *, out: Path, mixing: Mixing = "expected", schedule: Schedule = "joint", epochs: int = 10,
    choose_epochs: int = 10, seed: int = 0, loop: Loop = Loop(),
) -> dict[str, Any]:  # fmt: skip
    """Train by the recipe `drnet` where the needed resolution is visible.

    Half of the images are small digits in large pictures, which only full size shows; in the others
    the digit fills the picture, and a quarter of the size shows it as well.

    Returns:
        Under "test": "accuracy" and "cost"; "line, own" and "auc", as `controls` has them.
    """
    data = two_scales(out.with_name("data"))
    result = call(
        drnet, out=out, data=str(data), net="resnet8", sizes=PLANTED, target=PLANTED_TARGET,
        mixing=mixing, schedule=schedule, epochs=epochs, choose_epochs=choose_epochs, flip=False,
        seed=seed, loop=loop,
    )  # fmt: skip
    net = load_resolution(out / "net.safetensors")
    fingerprint = config_of(out / "net.safetensors", "train it again")["data"]["fingerprint"]
    parts = parts_for(net.nested, str(data), fingerprint)
    order = list(reversed(net.names))
    observed = observe_choices(net, parts.test, order)
    measures = at_its_cost(observed, observed, observed, order, *_costs(net))
    numbers = {
        "accuracy": result["test"][f"{CHOSEN}/accuracy"],
        "unpriced cost": result["drnet"]["unpriced"]["cost"],
        "auc": auc_of_need(preference(net, parts.test), observed, order),
    } | {name: measures[name] for name in ("cost", "line, own")}
    return {"test": numbers} | {k: result[k] for k in ("seconds", "cpu_seconds")}


def two_scales(folder: Path) -> Path:
    """Write scikit-learn's digits at two scales, as class folders; a digit's two are in one part.

    Images are of 32 pixels: the digit's 8 × 8 at a random place on black, or enlarged to all of it.
    """
    digits = load_digits()
    generator = np.random.default_rng(0)
    side = PLANTED[0]
    for turn, i in enumerate(generator.permutation(len(digits.images)).tolist()):
        digit = Image.fromarray((digits.images[i] * 15.9).astype("uint8"))
        small = Image.new("L", (side, side))
        small.paste(digit, tuple(generator.integers(0, side - digit.width, 2).tolist()))
        part = "test" if turn < len(digits.images) // 3 else "train"
        place = folder / part / str(digits.target[i])
        place.mkdir(parents=True, exist_ok=True)
        for name, image in {"small": small, "large": digit.resize((side, side))}.items():
            image.convert("RGB").save(place / f"{i}-{name}.png")
    return folder
