"""Arms of the study of dynamic resolution: networks that choose, others, and controls of a choice."""

import json
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

from stepwell.data import Batches, load_images
from stepwell.evaluation.cascade import Goal, Outcome, better, find_thresholds, outcome_of
from stepwell.files import config_of, write_whole
from stepwell.methods.drnet import Mixing
from stepwell.nets.cascade import top_probability
from stepwell.nets.dynamic import DynamicNet
from stepwell.nets.dynamic_file import load_dynamic
from stepwell.recipes.drnet import SHARES, Schedule, drnet
from stepwell.recipes.dynamic import DYNAMIC, Observed, macs_of_choices, observe_choices
from stepwell.recipes.parts import parts_for
from stepwell.recipes.supervised import supervised
from stepwell.training import Loop

#: Resolutions of the planted task, and the mean cost at which half of its images have full size, and
#: half the smallest.
PLANTED, PLANTED_TARGET = (32, 16, 8), 0.53


def learned(
    *,
    out: Path,
    data: str,
    size: int | None,
    net: str,
    subnets: tuple[str, ...] = (),
    nested: bool = False,
    resized: bool = True,
    epochs: int = 10,
    choose_epochs: int = 10,
    init: Path | None = None,
    val_fraction: float = 0.1,
    part: str | None = None,
    seed: int = 0,
    loop: Loop = Loop(),
    **options: Any,
) -> dict[str, Any]:
    """Train by the recipe `drnet`.

    Args:
        subnets: depths below the full one, of an arm that is `nested`.
        resized: at several resolutions; else at full size alone.
        options: further ones of the recipe.

    Returns:
        Under "test": "accuracy" and "cost" of the network as it runs, with the price and "unpriced";
        "sampled cost", of choices drawn as in training; and, of one depth, the accuracy "at 1",
        "at 0.75" and "at 0.5" of the full size for all images.
    """
    full = size or load_images(data, None).train.size
    result = drnet(
        out=out, data=data, size=full, net=net, depths=subnets if nested else (),
        sizes=() if resized else (full,), epochs=epochs, choose_epochs=choose_epochs, init=init,
        val_fraction=val_fraction, part=part, seed=seed, loop=loop, **options,
    )  # fmt: skip
    test, found = result["test"], result["drnet"]
    numbers = {
        "accuracy": test[f"{DYNAMIC}/accuracy"],
        "nll": test[f"{DYNAMIC}/nll"],
        "cost": found["cost"],
        "unpriced accuracy": found["unpriced"]["accuracy"],
        "unpriced cost": found["unpriced"]["cost"],
        "sampled cost": found["sampled_cost"],
    }
    if resized and not nested:
        rows = reversed(list(result["costs"]))  # dear to cheap; the last is the dynamic one
        named = zip(SHARES, rows, strict=False)
        numbers |= {f"at {share:g}": test[f"{row}/accuracy"] for share, row in named}
    return {"test": numbers} | {k: result[k] for k in ("seconds", "cpu_seconds")}


def alone(
    *,
    out: Path,
    data: str,
    size: int | None,
    net: str,
    share: float = 1.0,
    epochs: int,
    val_fraction: float = 0.1,
    part: str | None = None,
    seed: int = 0,
    loop: Loop = Loop(),
) -> dict[str, Any]:
    """Train one network on labels, at a `share` of the full size.

    Returns:
        Under "test": "accuracy", and "cost" as a share of the MACs at full size.
    """
    full = size or load_images(data, None).train.size
    own = round(share * full)
    result = supervised(
        out=out, data=data, size=own, net=net, epochs=epochs, val_fraction=val_fraction, part=part,
        seed=seed, loop=loop,
    )  # fmt: skip
    ((depth, _),) = result["costs"].items()
    test = {"accuracy": result["test"][f"{depth}/accuracy"], "nll": result["test"][f"{depth}/nll"]}
    # of convolutions and one small classifier; those of the choices are counted
    test["cost"] = (own / full) ** 2
    return {"test": test} | {k: result[k] for k in ("seconds", "cpu_seconds")}


def planted(
    *,
    out: Path,
    mixing: Mixing = "expected",
    schedule: Schedule = "joint",
    epochs: int = 10,
    choose_epochs: int = 10,
    seed: int = 0,
    loop: Loop = Loop(),
) -> dict[str, Any]:
    """Train by the recipe `drnet` where what an image needs is there to be seen.

    Half of the images are small digits in large pictures, which only full size shows; in the others
    the digit fills the picture, and a quarter of the size shows it as well.

    Returns:
        Under "test": "accuracy" and "cost"; "line, own", as `controls` has it; and "auc": how well the
        chooser's preference for full size over the cheapest choice tells the images that the network
        itself has right at full size alone from the others.
    """
    data = two_scales(out.with_name("data"))
    result = drnet(
        out=out, data=str(data), net="resnet8", sizes=PLANTED, target=PLANTED_TARGET, mixing=mixing,
        schedule=schedule, epochs=epochs, choose_epochs=choose_epochs, flip=False, seed=seed, loop=loop,
    )  # fmt: skip
    net = load_dynamic(out / "net.safetensors")
    fingerprint = config_of(out / "net.safetensors", "train it again")["data"]["fingerprint"]
    parts = parts_for(net.net.net, str(data), fingerprint)
    order = list(reversed(net.names))
    seen = observe_choices(net, parts.test, order)
    found = at_its_cost(seen, seen, seen, order, net.costs.double().flip(0))
    numbers = {
        "accuracy": result["test"][f"{DYNAMIC}/accuracy"],
        "unpriced cost": result["drnet"]["unpriced"]["cost"],
        "auc": auc_of_need(preference(net, parts.test), seen, order),
    } | {name: found[name] for name in ("cost", "line, own")}
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


def controls(
    *, out: Path, fixed: Path, dynamic: Path, random: Path, data: str, seed: int = 0
) -> dict[str, Any]:
    """What else could choose, at the mean cost of a dynamic network.

    Args:
        out: a folder, for controls.json.
        fixed: file of a network trained at all resolutions, of one depth, whose chooser is not asked.
        dynamic: file of the dynamic network.
        random: file of a network trained like it, but for its choices, which were drawn by chance.

    Returns:
        Under "test", accuracies on the test part:
        "random" and "random, own": expected of random choices with the dynamic network's histogram, by
        `random` and by the dynamic network itself;
        "line" and "line, own": the best that mixing resolutions by chance gives at the dynamic
        network's cost, by `fixed` and by the dynamic network itself;
        "oracle": of the cheapest resolution at which `fixed` is right, and "oracle cost", its own;
        "cascade": a small resolution first, larger where unsure, by `fixed`; which resolutions and
        thresholds is what is best at this cost on validation images; and "cascade cost", those of all
        resolutions that were run;
        "auc": how well the chooser's preference for full size over the cheapest choice tells the images
        that `fixed` has right at full size alone from the others; "auc of doubt", the same of the doubt
        of `fixed` itself at the cheapest choice, a whole run of which it takes.

    Raises:
        ValueError: the runs have no validation part.
    """
    clocks = time.perf_counter(), time.process_time()
    files = {"fixed": fixed, "dynamic": dynamic, "random": random}
    nets = {name: load_dynamic(file) for name, file in files.items()}
    config = config_of(dynamic, "train it again")
    arguments = config["arguments"]
    parts = parts_for(
        nets["dynamic"].net.net, data, config["data"]["fingerprint"], arguments["val_fraction"],
        arguments["part"],
    )  # fmt: skip
    if parts.validation is None:
        raise ValueError(f"{dynamic} has no validation part, which thresholds are found on")
    order = list(reversed(nets["fixed"].names))
    seen = {name: observe_choices(net, parts.test, order) for name, net in nets.items()}
    validation = observe_choices(nets["fixed"], parts.validation, order)
    macs = torch.tensor(macs_of_choices(nets["fixed"], nets["fixed"].net.sizes[0])).double()
    costs = (macs / macs.max()).flip(0)  # cheap to dear, as the rows of `order`
    found = at_its_cost(seen["fixed"], seen["dynamic"], seen["random"], order, costs)
    found |= best_cascade(seen["fixed"], validation, order, costs, found["cost"])
    found["auc"] = auc_of_need(preference(nets["dynamic"], parts.test), seen["fixed"], order)
    doubt = -top_probability(seen["fixed"].logits[order[0]])
    found["auc of doubt"] = auc_of_need(doubt, seen["fixed"], order)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "controls.json", json.dumps(found, indent=1).encode())
    return {
        "test": found,
        "seconds": time.perf_counter() - clocks[0],
        "cpu_seconds": time.process_time() - clocks[1],
    }


def at_its_cost(
    fixed: Observed, dynamic: Observed, random: Observed, order: Sequence[str], costs: Tensor
) -> dict[str, float]:
    """Random choices and mixtures of fixed ones at the dynamic network's cost, and the oracle.

    Args:
        order: the choices, cheap to dear.
        costs: of each, as a share of the costliest.
    """
    who = len(order) - 1 - dynamic.who  # choices are dear to cheap
    shares = torch.bincount(who, minlength=len(order)).double() / len(who)
    cost = float(shares @ costs)
    right = _right(fixed, order)
    everywhere = {
        name: _right(each, order).double().mean(1)
        for name, each in {"random": random, "random, own": dynamic}.items()
    }
    first = right.double().argmax(0)  # the cheapest that is right; the cheapest, if none is
    return {name: float(shares @ accuracy) for name, accuracy in everywhere.items()} | {
        "cost": cost,
        "line": best_mixture(right.double().mean(1), costs, cost),
        "line, own": best_mixture(everywhere["random, own"], costs, cost),
        "oracle": right.any(0).double().mean().item(),
        "oracle cost": costs[first].mean().item(),
    }


def best_mixture(accuracy: Tensor, costs: Tensor, cost: float) -> float:
    """The best accuracy of choices made by chance whose mean cost is at most `cost`.

    Args:
        accuracy: of each choice for all images; `costs` likewise, the least of them at most `cost`.
    """
    best = float(accuracy[costs <= cost].max())
    for low in range(len(costs)):
        for high in range(len(costs)):
            if costs[low] < cost < costs[high]:
                share = (cost - costs[low]) / (costs[high] - costs[low])
                best = max(best, float(accuracy[low] + share * (accuracy[high] - accuracy[low])))
    return best


def _right(seen: Observed, order: Sequence[str]) -> Tensor:
    """Whether each choice is right, (choices, images), cheap to dear."""
    return torch.stack([seen.logits[name].argmax(1) == seen.labels for name in order])


def best_cascade(
    test: Observed, validation: Observed, order: Sequence[str], costs: Tensor, target: float
) -> dict[str, float]:
    """The cascade of some of the resolutions that is best at a mean cost on validation images.

    Args:
        order: the choices, cheap to dear.
        costs: of each, as a share of the costliest.
    """
    goal = Goal(cost=target)

    def sure(seen: Observed, names: Sequence[str]) -> Tensor:
        return torch.stack([top_probability(seen.logits[name]) for name in names])

    best: tuple[Outcome, Outcome] | None = None
    for count in range(1, len(order) + 1):
        for taken in combinations(range(len(order)), count):
            names, paid = [order[i] for i in taken], costs[list(taken)].cumsum(0).tolist()
            known = sure(validation, names), _right(validation, names)
            values, outcome = find_thresholds(*known, paid, goal)
            if best is None or better(outcome, best[0], goal):
                best = outcome, outcome_of(values, sure(test, names), _right(test, names), paid)
    assert best is not None
    return {"cascade": best[1].accuracy, "cascade cost": best[1].cost}


@torch.inference_mode()
def preference(net: DynamicNet, test: Batches) -> Tensor:
    """How much more the chooser scores full size than the cheapest choice, of each image."""
    scores = torch.cat([net.chooser(images) for images, _ in test])
    return scores[:, 0] - scores[:, -1]


def auc_of_need(score: Tensor, seen: Observed, order: Sequence[str]) -> float:
    """How well a score tells the images that are right at full size alone: the area under its ROC.

    Args:
        score: of each image.
        order: the choices, cheap to dear; an image that is right at the cheapest needs no other.
    """
    right = _right(seen, order)
    needs = right[-1] & ~right[0]
    if not needs.any() or needs.all():
        return 0.5
    return float(roc_auc_score(needs.numpy(), score.numpy()))
