"""Arms of the study of dynamic resolution: networks that choose, others, and controls of a choice."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from stepwell.data import load_images
from stepwell.evaluation.cascade import Goal, find_thresholds, outcome_of
from stepwell.files import config_of, write_whole
from stepwell.nets.cascade import top_probability
from stepwell.nets.dynamic import DynamicNet
from stepwell.nets.dynamic_file import load_dynamic
from stepwell.recipes.drnet import SHARES, drnet
from stepwell.recipes.dynamic import DYNAMIC, Observed, macs_of_choices, observe_choices
from stepwell.recipes.parts import parts_for
from stepwell.recipes.supervised import supervised
from stepwell.training import Loop


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
        and, of one depth, the accuracy "at 1", "at 0.75" and "at 0.5" of the full size for all images.
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


def controls(*, out: Path, fixed: Path, dynamic: Path, data: str, seed: int = 0) -> dict[str, Any]:
    """What else could choose, at the mean cost of a dynamic network.

    Args:
        out: a folder, for controls.json.
        fixed: file of a network trained at all resolutions, of one depth, whose chooser is not asked.
        dynamic: file of the dynamic network.

    Returns:
        Under "test", accuracies on the test part:
        "random": expected of a random choice with the dynamic network's histogram, by `fixed`;
        "random, own": the same, by the dynamic network itself;
        "line": of `fixed` at this cost, between its resolutions for all images;
        "oracle": of the cheapest resolution at which `fixed` is right, and "oracle cost";
        "cascade": smallest resolution first, larger where unsure, by `fixed`; its thresholds are best
        at this cost on validation images; and "cascade cost", those of all resolutions that were run;
        "auc": how well the chooser's preference for more than the cheapest choice tells the images that
        `fixed` has wrong there and right at full size from the others.

    Raises:
        ValueError: the runs have no validation part.
    """
    clocks = time.perf_counter(), time.process_time()
    nets = {"fixed": load_dynamic(fixed), "dynamic": load_dynamic(dynamic)}
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
    found = _choices(seen["fixed"], seen["dynamic"], order, costs)
    found |= _cascade(seen["fixed"], validation, order, costs, found["cost"])
    found["auc"] = _auc(nets["dynamic"], parts.test, seen["fixed"], order)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "controls.json", json.dumps(found, indent=1).encode())
    return {
        "test": found,
        "seconds": time.perf_counter() - clocks[0],
        "cpu_seconds": time.process_time() - clocks[1],
    }


def _right(seen: Observed, order: Sequence[str]) -> Tensor:
    """Whether each choice is right, (choices, images), cheap to dear."""
    return torch.stack([seen.logits[name].argmax(1) == seen.labels for name in order])


def _choices(
    fixed: Observed, dynamic: Observed, order: Sequence[str], costs: Tensor
) -> dict[str, float]:
    """Random choices, the line between the fixed resolutions, and the oracle."""
    last = len(order) - 1
    who = last - dynamic.who  # choices are dear to cheap
    shares = torch.bincount(who, minlength=len(order)).double() / len(who)
    cost = float(shares @ costs)
    right = {"random": _right(fixed, order), "random, own": _right(dynamic, order)}
    found = {name: float(shares @ each.double().mean(1)) for name, each in right.items()}
    mine = right["random"]
    upper = min(max(int(torch.searchsorted(costs, cost)), 1), last)
    at = (cost - costs[upper - 1]) / (costs[upper] - costs[upper - 1])
    low, high = mine[upper - 1].double().mean(), mine[upper].double().mean()
    first = mine.double().argmax(0)  # the cheapest that is right; the cheapest, if none is
    return found | {
        "cost": cost,
        "line": float(low + at * (high - low)),
        "oracle": mine.any(0).double().mean().item(),
        "oracle cost": costs[first].mean().item(),
    }


def _cascade(
    test: Observed, validation: Observed, order: Sequence[str], costs: Tensor, target: float
) -> dict[str, float]:
    """The best cascade of the fixed resolutions at a mean cost, found on validation images."""

    def sure(seen: Observed) -> Tensor:
        return torch.stack([top_probability(seen.logits[name]) for name in order])

    paid = costs.cumsum(0).tolist()
    goal = Goal(cost=target)
    values = find_thresholds(sure(validation), _right(validation, order), paid, goal).values
    outcome = outcome_of(values, sure(test), _right(test, order), paid)
    return {"cascade": outcome.accuracy, "cascade cost": outcome.cost}


@torch.inference_mode()
def _auc(net: DynamicNet, test: Any, fixed: Observed, order: Sequence[str]) -> float:
    scores = torch.cat([net.chooser(images) for images, _ in test])
    right = _right(fixed, order)
    needs = right[-1] & ~right[0]
    if not needs.any() or needs.all():
        return 0.5
    return float(roc_auc_score(needs.numpy(), 1 - scores.softmax(1)[:, -1].numpy()))
