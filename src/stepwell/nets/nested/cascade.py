"""A cascade: the shallowest depth runs on every image, each deeper depth on those still unanswered.

A deeper depth continues where its path leaves the paths already run.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from numbers import Real
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepwell.nets.decisions.executor import not_empty_for_export
from stepwell.nets.nested.criteria import (
    LEARNED,
    Criterion,
    Weights,
    agreement,
    criterion_of,
)
from stepwell.nets.nested.net import Inputs, NestedNet
from stepwell.nets.nested.steps import Request, Value, each, overwrites, tensors_of
from stepwell.ranges import LARGEST, POSITIVE, check_number
from stepwell.types import Logits

#: Maps logits (batch, classes) to confidence (batch,).
Confidence = Callable[[Tensor], Tensor]


class Answer(NamedTuple):
    """Logits of a batch, and for each row the index in `Cascade.depths` of the depth that answered."""

    logits: Float[Tensor, "batch classes"]
    depth: Int[Tensor, " batch"]


class Cascade:
    """Several depths of `net`, shallow to deep; the last one answers the remaining images.

    Args:
        thresholds: by depth, without the last. A depth answers the images whose score reaches its
            threshold: from 0 to 1, or the number of depths that agree with `criterion="patience"`.
        last: the depth that answers the remaining images; the full net by default.
        criterion: a key of `nets.nested.criteria.CRITERIA`, or a function of logits.
        temperatures: by depth; the criterion sees logits divided by it. 1 for the depths not named.
        weights: by depth, of `criterion="learned"`.

    Raises:
        ValueError: no such depth, a depth that is neither trained nor calibrated, or one deeper than
            `last`; a threshold for `last` itself, or one that is nan or out of range; no such
            criterion, a temperature that is not positive, or weights that are missing.
    """

    def __init__(
        self,
        net: NestedNet,
        thresholds: Mapping[str, float],
        last: str | None = None,
        criterion: str | Confidence = "confidence",
        *,
        temperatures: Mapping[str, float] | None = None,
        weights: Mapping[str, Weights] | None = None,
    ) -> None:
        if not isinstance(net, NestedNet):
            raise ValueError(f"a cascade takes a nested network, not a {type(net).__name__}")
        given = {"thresholds": thresholds, "temperatures": temperatures or {}, "weights": weights or {}}
        for name, by_depth in given.items():
            if not isinstance(by_depth, Mapping):
                raise ValueError(f"{name}={by_depth!r}: give one for each depth, such as {{'8': 0.9}}")
        last = net.full if last is None else last
        net.require_ready(*thresholds, last)
        if not (isinstance(criterion, str) or callable(criterion)):
            raise ValueError(f"criterion={criterion!r}: name one, or give a function of logits")
        named = criterion_of(criterion) if isinstance(criterion, str) else None
        _check_thresholds(thresholds, last, named)
        self.temperatures, self.weights = dict(temperatures or {}), dict(weights or {})
        if unknown := [d for d in self.temperatures if d not in (*thresholds, last)]:
            raise ValueError(f"a temperature for {unknown[0]!r}, which is no depth of this cascade")
        for depth, temperature in self.temperatures.items():
            check_number(f"the temperature of depth {depth!r} is", temperature, POSITIVE)
        if lacking := [d for d in thresholds if criterion == "learned" and d not in self.weights]:
            raise ValueError(
                f"a learned criterion has weights for every depth with a threshold, and {lacking[0]!r} "
                "has none: `stepwell eval RUN --cascade --criterion learned --save` fits them"
            )
        for depth, own_weights in self.weights.items():
            numbers = [*own_weights] if isinstance(own_weights, Iterable) else []
            finite = all(isinstance(w, Real) and math.isfinite(w) for w in numbers)
            if len(numbers) != LEARNED or not finite:
                raise ValueError(
                    f"the weights of depth {depth!r} are {numbers or own_weights!r}: a learned "
                    f"criterion has {LEARNED} finite numbers, a bias and one a feature"
                )
        self.net = net
        self.depths = (*(d for d in net.depths if d in thresholds), last)
        if list(self.depths) != [d for d in net.depths if d in (*thresholds, last)]:
            raise ValueError(
                f"a cascade ends with its deepest depth: {last!r} has no place behind "
                f"{', '.join(thresholds)}"
            )
        self.thresholds = {d: float(thresholds[d]) for d in self.depths[:-1]}
        asked = [*self.thresholds.values()] if criterion == "patience" else []
        if asked and all(patience > earlier for earlier, patience in enumerate(asked)):
            raise ValueError(
                f"no depth before {last!r} can answer: a patience of {min(asked):g} needs as many "
                f"earlier depths that agree, and there are {len(asked) - 1}; lower it, or name more "
                "depths"
            )
        self.criterion = criterion
        self._score = named.score if named else lambda logits, agreed, weights: criterion(logits)  # type: ignore[operator]
        self._branches = branches_of([net.path(d) for d in self.depths])

    @classmethod
    def of(cls, net: NestedNet, record: Mapping[str, Any] | None = None) -> "Cascade":
        """The cascade of a record of `calibrate_cascade`, by default the one saved with `net`.

        ValueError if there is none.
        """
        saved = net.card.cascade if record is None else record
        if not saved:
            raise ValueError(
                "this network has no cascade yet: `stepwell eval RUN --cascade --save` calibrates one"
            )
        *shallow, last = saved["depths"]
        thresholds, *fitted = (
            dict(zip(shallow, saved[name], strict=True)) if name in saved else {}
            for name in ("thresholds", "temperatures", "weights")
        )
        criterion = saved.get("criterion", "confidence")  # older files had no other
        return cls(net, thresholds, last, criterion, temperatures=fitted[0], weights=fitted[1])

    @torch.inference_mode()
    def __call__(self, x: Inputs, *, given: Mapping[str, Any] | None = None) -> Answer:
        """Logits of each image and the depth that gave them; ValueError in training mode.

        Args:
            given: constants of the batch, as for `NestedNet.forward`. A tensor of one row per image is
                cut to the images still unanswered.
        """
        return self.answer(x, self.net.request(given) or Request({}, ()))

    def answer(self, x: Inputs, asked: Request) -> Answer:
        """As a call, but also for tracing: a graph goes on with as many images as the values say."""
        if self.net.training:
            raise ValueError("a cascade runs a network in eval mode: call net.eval() first")
        traced = torch.compiler.is_compiling()
        batch, whole = x.shape[0], asked
        rows = torch.arange(batch, device=x.device)  # of the batch: the images still unanswered
        values: dict[tuple[int, int], Value] = {(0, 0): x}
        logits, answered = None, torch.zeros_like(rows)
        classes, agreed = torch.full_like(rows, -1), torch.zeros_like(rows)
        for i, depth in enumerate(self.depths):
            y = self._run(i, values, asked)
            before, classes = classes, y.argmax(1)
            agreed = agreement(classes, before, agreed)
            logits = torch.empty_like(y) if logits is None else logits
            logits[rows] = y
            answered[rows] = i
            if depth not in self.thresholds:
                break
            unsure = (~(self._scores(depth, y, agreed) >= self.thresholds[depth])).nonzero().flatten()
            if traced:
                not_empty_for_export(unsure)
            elif not len(unsure):
                break
            needed = self._branches[i + 1 :]
            values = {at: y for at, y in values.items() if at in needed}
            if traced or len(unsure) < len(rows):
                count = rows.shape[0]
                values = {at: _rows(y, unsure, count) for at, y in values.items()}
                rows, classes, agreed = rows[unsure], classes[unsure], agreed[unsure]
                asked = whole.of_rows(rows, batch)
        assert logits is not None
        return Answer(logits, answered)

    def decide(self, logits: Mapping[str, Logits]) -> Answer:
        """The cascade's answers to images, from their logits at all of its depths."""
        first = logits[self.depths[0]]
        answered = torch.full((len(first),), len(self.depths) - 1, device=first.device)
        unsure = torch.ones_like(answered, dtype=torch.bool)
        classes, agreed = torch.full_like(answered, -1), torch.zeros_like(answered)
        for i, depth in enumerate(self.depths[:-1]):
            before, classes = classes, logits[depth].argmax(1)
            agreed = agreement(classes, before, agreed)
            sure = unsure & (self._scores(depth, logits[depth], agreed) >= self.thresholds[depth])
            answered[sure] = i
            unsure &= ~sure
        known = torch.stack([logits[depth] for depth in self.depths])
        return Answer(known[answered, torch.arange(len(first), device=first.device)], answered)

    def _scores(self, depth: str, logits: Tensor, agreed: Tensor) -> Tensor:
        """The criterion's score of each image at a depth."""
        tempered = logits / self.temperatures.get(depth, 1.0)
        scores = self._score(tempered, agreed, self.weights.get(depth, ()))
        if not isinstance(scores, Tensor) or scores.shape != agreed.shape:
            given = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(scores)
            raise ValueError(f"a criterion gives one score an image ({len(agreed)}), not {given}")
        return scores

    def _run(self, i: int, values: dict[tuple[int, int], Value], asked: Request) -> Tensor:
        """Logits of the i-th depth; `values` gains those from which deeper depths continue."""
        y = values[self._branches[i]]
        path = self.net.path(self.depths[i])
        first = self._branches[i][1]
        for position in range(first, len(path)):
            if position == first or (i, position) in values:  # other depths continue from it, too
                y = each(Tensor.clone, y) if overwrites(path[position:]) else y
            y, _ = asked.call(path[position], y, self.net.keywords(self.depths[i])[position])
            if (i, position + 1) in self._branches:
                values[i, position + 1] = y
        assert isinstance(y, Tensor)
        return y


def _rows(value: Value, chosen: Tensor, images: int | torch.SymInt) -> Value:
    """The `chosen` images of a batch; ValueError for a tensor that does not have one row per image."""
    for tensor in tensors_of(value):
        if tensor.shape[0] != images:
            raise ValueError(
                f"a cascade goes on with some images of a batch, but a step hands on a tensor of shape "
                f"{tuple(tensor.shape)} for {images} images: make it in the step that uses it"
            )
    return each(lambda tensor: tensor[chosen], value)


def _check_thresholds(thresholds: Mapping[str, float], last: str, criterion: Criterion | None) -> None:
    if last in thresholds:
        raise ValueError(
            f"the last depth of a cascade, {last!r}, answers all remaining images and takes no "
            "threshold: leave its own out, or name a deeper depth as last"
        )
    for depth, value in thresholds.items():
        wrong = isinstance(value, bool) or not isinstance(value, Real)
        if wrong or (isinstance(value, int) and abs(value) > LARGEST):
            raise ValueError(f"the threshold of depth {depth!r} is {value!r}: it must be a number")
        if criterion and not (math.isfinite(value) and criterion.within.holds(value)):
            raise ValueError(
                f"the threshold of depth {depth!r} is {value}: it must be {criterion.within.words}; "
                "leave out a depth that is to answer nothing"
            )
        if math.isnan(value):  # other measures, such as minus the entropy, may be negative
            raise ValueError(f"the threshold of depth {depth!r} is {value}: it must be a number")


def branches_of(paths: Sequence[Sequence[object]]) -> list[tuple[int, int]]:
    """For each path, the first earlier path with the longest common prefix, and its length."""
    branches = [(0, 0)]
    for i, path in enumerate(paths[1:], start=1):
        pairs = [zip(path, earlier, strict=False) for earlier in paths[:i]]
        common = [len([*takewhile(lambda pair: pair[0] is pair[1], each)]) for each in pairs]
        branches.append((common.index(max(common)), max(common)))
    return branches
