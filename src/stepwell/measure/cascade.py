"""Cascades: depths and thresholds from validation data, and their accuracy and cost on test data."""

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from stepwell.cost import count_macs_of_steps, mean_of_medians, time_each
from stepwell.cost.latency import marked
from stepwell.evaluation import gather_logits
from stepwell.evaluation.calibration import best_temperature
from stepwell.evaluation.cascade import (
    Goal,
    Outcome,
    Thresholds,
    better,
    find_geometric,
    find_patience,
    find_thresholds,
    outcome_of,
)
from stepwell.evaluation.logistic import logistic_fit
from stepwell.measure.depths import logits_where_it_is
from stepwell.measures import in_words
from stepwell.nets import NestedNet
from stepwell.nets.inputs import blank_inputs
from stepwell.nets.nested.budget import check_share
from stepwell.nets.nested.cascade import Cascade, branches_of
from stepwell.nets.nested.criteria import agreement, criterion_of, features_of
from stepwell.train_mode import in_eval_mode
from stepwell.types import Batch, Labels, Logits

#: Depths in one cascade, at most.
LONGEST = 4
SEARCHES = {"best": find_thresholds, "geometric": find_geometric}


def cascade_macs(
    net: NestedNet, depths: Sequence[str], known: dict[str, list[int]] | None = None
) -> list[int]:
    """Count the MACs of an image answered at each of `depths`, including the shallower depths.

    `depths` run shallow to deep; common prefixes count once. `known` caches the counts of each depth.
    """
    known = {} if known is None else known
    x = blank_inputs(net, net.card)
    totals, total = [], 0
    for depth, (_, start) in zip(depths, branches_of([net.path(d) for d in depths]), strict=True):
        if depth not in known:
            known[depth] = [0, *count_macs_of_steps(net.path(depth), x)]
        total += known[depth][-1] - known[depth][start]
        totals.append(total)
    return totals


def check_depths(net: NestedNet) -> list[str]:
    """Give the depths that a cascade can use; ValueError if there are fewer than two."""
    ready = [depth for depth, status in net.status.items() if status != "fresh"]
    if len(ready) < 2:
        more = ", or add depths (`stepwell calibrate`)" if net.card.input == "image" else ""
        raise ValueError(
            f"a cascade needs two depths or more, and this network has {', '.join(ready) or 'none'} "
            f"ready: train a nested one (`stepwell train ekd`){more}"
        )
    return ready


def calibrate_cascade(
    net: NestedNet, validation: Iterable[Batch], *, accuracy: float | None = None,
    macs: float | None = None, criterion: str = "confidence", search: str = "best",
    temper: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Find the best cascade of `net` for a goal, for `net.card.cascade`.

    All sets of up to four depths are tried, each with its best thresholds on the validation images.

    Args:
        accuracy: the least accuracy on the validation images, at the lowest mean MACs; by default the
            full net's own, or the nearest to it that the search finds.
        macs: instead, the highest mean MACs per image, at the best accuracy.
        criterion: measure of how sure a depth is (`nets.nested.criteria`). With "patience", all depths
            run and share one threshold.
        search: "geometric" lets all depths answer shares of a geometric series (MSDNet's baseline).
        temper: divide the logits of each depth by the temperature that fits the validation images.

    Returns:
        "depths"; "thresholds" of all but the last, and their "temperatures" and "weights" where there
        are some; "criterion" and "search"; "goal", in words; and on the validation images: "accuracy",
        mean "macs" per image, "shares" of images answered by each depth, and the number of "images".

    Raises:
        ValueError: both goals are given; no cascade reaches a goal that was given; fewer than two
            depths, or not the full net, are ready; no such criterion or search, or they do not fit.
    """
    if accuracy is not None and macs is not None:
        raise ValueError("a cascade has one goal: a target accuracy or a budget of MACs, not both")
    check_share(accuracy)
    if macs is not None and not macs > 0:
        raise ValueError(f"a budget of MACs must be a positive number, not {macs}")
    known = _Known(net, validation, criterion, search, temper=temper)
    has_goal = accuracy is not None or macs is not None
    if not has_goal:
        accuracy = known.right[net.full].double().mean().item()
        words = "as accurate as the full net"
    else:
        words = (
            f"at most {in_words('macs', macs, net.card.input)}"
            if macs
            else f"at least {in_words('accuracy', accuracy or 0)}"
        )
    goal = Goal(accuracy, macs)
    record = known.best(goal) | {"goal": words}
    if not goal.met(Outcome(record["accuracy"], record["macs"], ())):
        if not has_goal:  # geometric shares always stop some images early
            return record | {"goal": f"{words}, or the nearest to it"}
        raise ValueError(
            f"no cascade reaches the goal on the {record['images']} validation {net.card.input}s "
            f"({words}): the nearest, of {', '.join(record['depths'])}, has "
            f"{in_words('accuracy', record['accuracy'])} at "
            f"{in_words('macs', record['macs'], net.card.input)}"
        )
    return record


def cascade_curve(
    net: NestedNet, validation: Iterable[Batch], logits: Mapping[str, Logits], labels: Labels, *,
    criterion: str = "confidence", search: str = "best", temper: bool = False, points: int = 5,
) -> list[dict[str, float]]:  # fmt: skip
    """Cascades for mean MACs between those of the cheapest depth and those of the full net.

    The thresholds are set on validation images, and all numbers are of test images: "accuracy" and
    mean "macs" an image, and "random_accuracy", expected of as many images at each depth, drawn at
    random.

    Args:
        logits, labels: of the test images, by depth.
        points: number of budgets, evenly spaced. A budget that no cascade keeps is left out.
        criterion, search, temper: as for `calibrate_cascade`.
    """
    known = _Known(net, validation, criterion, search, temper=temper)
    right = {depth: y.argmax(1) == labels for depth, y in logits.items()}
    low, high = (known.costs([depth])[0] for depth in (known.depths[0], net.full))
    curve = []
    for i in range(1, points + 1):
        goal = Goal(cost=low + (high - low) * i / (points + 1))
        record = known.best(goal)
        if record["macs"] > goal.cost:
            continue
        answer = Cascade.of(net, record).decide(logits)
        costs = torch.tensor(known.costs(record["depths"]), dtype=torch.float64)
        curve.append({
            "macs": float(costs[answer.depth].mean()),
            "accuracy": (answer.logits.argmax(1) == labels).double().mean().item(),
            "random_accuracy": _at_random(answer.depth, [right[d] for d in record["depths"]]),
        })  # fmt: skip
    return curve


def _at_random(answered: Tensor, right: Sequence[Tensor]) -> float:
    """The accuracy expected if each depth answers as many images as in `answered`, drawn at random."""
    shares = [(answered == k).double().mean() for k in range(len(right))]
    return float(sum(share * r.double().mean() for share, r in zip(shares, right, strict=True)))


def check_search(criterion: str, search: str) -> None:
    """Refuse an unknown criterion or search, and two that do not go together; ValueError."""
    criterion_of(criterion)
    if search not in SEARCHES:
        raise ValueError(f"no search {search!r} for a cascade; there are {', '.join(SEARCHES)}")
    if criterion == "patience" and search != "best":
        raise ValueError(
            "patience has a few whole numbers as thresholds, so no geometric shares of images: leave "
            "one of them out"
        )


class _Known:
    """The answers of all depths on validation images, and the best cascades there."""

    def __init__(
        self, net: NestedNet, validation: Iterable[Batch], criterion: str, search: str, *, temper: bool
    ) -> None:
        check_search(criterion, search)
        net.require_ready(net.full)
        self.net, self.criterion, self.search = net, criterion, search
        self.depths = check_depths(net)
        with in_eval_mode(net):
            logits, labels = gather_logits(logits_where_it_is(net, self.depths), validation)
        self.temperatures = (
            {d: best_temperature(y, labels) for d, y in logits.items()} if temper else {}
        )
        self.logits = {d: y / self.temperatures.get(d, 1.0) for d, y in logits.items()}
        self.classes = {depth: y.argmax(1) for depth, y in self.logits.items()}
        self.right = {depth: classes == labels for depth, classes in self.classes.items()}
        self._learned: dict[tuple[str, str], tuple[Tensor, list[float]]] = {}
        self._counted: dict[str, list[int]] = {}

    def best(self, goal: Goal) -> dict[str, Any]:
        """The record of the cascade nearest to a goal, without the goal."""
        chosen, thresholds = _best_chain(self, goal)
        extras: dict[str, Any] = {"criterion": self.criterion, "search": self.search}
        if self.temperatures:
            extras["temperatures"] = [self.temperatures[depth] for depth in chosen[:-1]]
        if self.criterion == "learned":
            pairs = zip(("", *chosen), chosen[:-1], strict=False)
            extras["weights"] = [self._learned[pair][1] for pair in pairs]
        return {
            "depths": chosen, "thresholds": list(thresholds.values), **extras,
            "accuracy": thresholds.outcome.accuracy, "macs": thresholds.outcome.cost,
            "shares": list(thresholds.outcome.shares), "images": len(self.right[self.net.full]),
        }  # fmt: skip

    def costs(self, chain: Sequence[str]) -> list[int]:
        """The MACs of an image answered at each depth of a cascade."""
        return cascade_macs(self.net, chain, self._counted)

    def scores_and_right(self, chain: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The scores and the correctness of the depths of a cascade, (depths, images) each."""
        before = torch.full_like(self.classes[chain[0]], -1)
        agreed, scores = torch.zeros_like(before), []
        for previous, depth in zip(("", *chain), chain, strict=False):
            agreed = agreement(self.classes[depth], before, agreed)
            before = self.classes[depth]
            if self.criterion == "learned":
                scores.append(self._fit((previous, depth), agreed)[0])
            else:
                scores.append(criterion_of(self.criterion).score(self.logits[depth], agreed, ()))
        return torch.stack(scores), torch.stack([self.right[depth] for depth in chain])

    def _fit(self, pair: tuple[str, str], agreed: Tensor) -> tuple[Tensor, list[float]]:
        """Scores of images that a fit on the other half has not seen, and the weights by all images.

        pair: the depth before ("" for the first one), and the depth.
        """
        if pair not in self._learned:
            x, right = features_of(self.logits[pair[1]], agreed), self.right[pair[1]]
            scores = torch.empty(len(x), dtype=torch.float64)
            for half in range(2):
                bias, *slopes = logistic_fit(x[1 - half :: 2], right[1 - half :: 2])
                scores[half::2] = (x[half::2].double() @ torch.tensor(slopes).double() + bias).sigmoid()
            self._learned[pair] = scores, logistic_fit(x, right)
        return self._learned[pair]


def _best_chain(known: _Known, goal: Goal) -> tuple[list[str], Thresholds]:
    """Search all sets of depths for the best; of equals, the one with fewer depths."""
    ready, search = known.depths, known.search
    best: tuple[list[str], Thresholds] | None = None
    patient = known.criterion == "patience"
    find = find_patience if patient else SEARCHES[search]
    lengths = range(1, min(LONGEST, len(ready)) + 1)
    if patient or search != "best":  # they take the depths as they are
        lengths = range(len(ready), len(ready) + 1)
    for length in lengths:
        for chain in combinations(ready, length):
            costs = known.costs(chain)
            thresholds = find(*known.scores_and_right(chain), costs, goal)
            # a depth that answers nothing would still be run
            pairs = zip(chain, (*thresholds.values, 0.0), strict=True)
            used = [depth for depth, threshold in pairs if threshold < torch.inf]
            if len(used) < length:
                values = tuple(t for t in thresholds.values if t < torch.inf)
                costs = known.costs(used)
                thresholds = Thresholds(
                    values, outcome_of(values, *known.scores_and_right(used), costs)
                )
            if best is None or better(thresholds.outcome, best[1].outcome, goal):
                best = used, thresholds
    assert best is not None
    return best


def measure_cascade(
    cascade: Cascade, batches: Iterable[Batch], *, seconds: float = 2.0, most: int = 500
) -> dict[str, Any]:
    """Measure a cascade on labelled images; time at most `most` of them, drawn, for about `seconds`.

    Returns:
        "accuracy", mean "macs" per image, "shares" of images answered by each depth, "images"; "ms",
        the mean time of one image; "full_accuracy", "full_macs" and "full_ms" of the full net alone;
        "random_accuracy", expected of as many images at each depth, drawn at random; "oracle_accuracy"
        and "oracle_macs" of the cheapest depth that is right, or the cheapest of all; "unsure" if the
        machine was too busy for certain times.
    """
    net, depths = cascade.net, cascade.depths
    device = next(net.parameters()).device
    answered: list[Tensor] = []
    every = list(dict.fromkeys((*depths, net.full)))
    right: dict[str, list[Tensor]] = {row: [] for row in ("", *every)}
    singles: list[tuple[int, Tensor]] = []
    draw = random.Random(0)
    with in_eval_mode(net), torch.inference_mode():
        for images, labels in batches:
            images = images.to(device)
            answer = cascade(images)
            answered.append(answer.depth.cpu())
            for row, logits in {"": answer.logits, **net.logits_by_depth(images, every)}.items():
                right[row].append(logits.argmax(1).cpu() == labels)
            for i, x in enumerate(images.split(1), sum(map(len, answered[:-1]))):
                # a uniform draw from images whose number is not known (Vitter's algorithm R)
                place = len(singles) if len(singles) < most else draw.randrange(i + 1)
                if place < most:
                    singles[place : place + 1] = [(i, x.contiguous())]
        if not answered:
            raise ValueError("nothing to evaluate: the data gave no batch")
        runs = {"": lambda x: cascade(x).logits, "full_": net.forward}
        draw.shuffle(singles)  # time may be up before the last of them
        times = time_each(runs, [x for _, x in singles], seconds=seconds)
    who = torch.cat(answered)
    timed = who[[i for i, _ in singles]].tolist()
    shares = [(who == i).double().mean().item() for i in range(len(depths))]
    costs = torch.tensor(cascade_macs(net, depths), dtype=torch.float64)
    hits = {row: torch.cat(parts) for row, parts in right.items()}
    depth_hits = torch.stack([hits[depth] for depth in depths])
    return {
        "macs": float(costs[who].mean()),
        "shares": shares, "images": len(who), "full_macs": cascade_macs(net, [net.full])[0],
        "accuracy": hits[""].double().mean().item(),
        "full_accuracy": hits[net.full].double().mean().item(),
        "random_accuracy": _at_random(who, [*depth_hits]),
        "oracle_accuracy": depth_hits.any(0).double().mean().item(),
        "oracle_macs": float(costs[depth_hits.double().argmax(0)].mean()),
        "ms": 1000 * mean_of_medians(times[""].times, timed),
        "full_ms": 1000 * statistics.median(times["full_"].times),
    } | marked(any(watch.busy for watch in times.values()))  # fmt: skip
