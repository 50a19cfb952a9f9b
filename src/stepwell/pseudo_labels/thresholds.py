"""Thresholds of scores by class, and the calibration of a teacher's scores, from labelled images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import box_iou

from stepwell.evaluation.logistic import logistic_fit
from stepwell.types import Boxes

#: Overlap (IoU) from which a predicted box finds a true one.
OVERLAP = 0.5
#: Scores are kept this far from 0 and 1, where their logits are infinite.
_EDGE = 1e-4


class Matches(NamedTuple):
    """Predicted boxes beside true ones.

    labels, scores, right: of each predicted box; one that lies by half in a crowd region is left out.
    true: number of true boxes of each class.
    """

    labels: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]
    right: Bool[Tensor, " n"]
    true: Int64[Tensor, " classes"]


def matched(predictions: Sequence[Boxes], truth: Sequence[Boxes], classes: int) -> Matches:
    """Match predicted boxes with true boxes of their class, best first; each true box once."""
    rows = []
    for boxes, true in zip(predictions, truth, strict=True):
        boxes = boxes.chosen(boxes.scores.argsort(descending=True, stable=True))
        near = box_iou(boxes.boxes, true.boxes)
        near = torch.where(boxes.labels[:, None] == true.labels, near, 0.0)
        right = torch.zeros(boxes.total, dtype=torch.bool)
        inside = torch.zeros(boxes.total, dtype=torch.bool)
        free = ~true.crowd
        for i in (near >= OVERLAP).any(1).nonzero()[:, 0].tolist() if true.total else ():
            best = torch.where(free, near[i], 0.0).argmax()
            if free[best] and near[i, best] >= OVERLAP:
                right[i], free[best] = True, False
        if true.crowd.any() and boxes.total:
            crowds = true.boxes[true.crowd], true.labels[true.crowd]
            inside = _lies_in(boxes, *crowds) & ~right
        rows.append((boxes.labels[~inside], boxes.scores[~inside], right[~inside]))
    labels, scores, hits = (torch.cat(values) for values in zip(*rows, strict=True))
    counted = torch.cat([true.labels[~true.crowd] for true in truth])
    return Matches(labels, scores, hits, torch.bincount(counted, minlength=classes))


def _lies_in(boxes: Boxes, regions: Tensor, labels: Tensor) -> Bool[Tensor, " n"]:
    """Check which boxes have half of their area or more, as COCO asks, in a region of their class."""
    corners = boxes.boxes[:, None]
    low = torch.maximum(corners[..., :2], regions[:, :2])
    high = torch.minimum(corners[..., 2:], regions[:, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    area = (corners[..., 2:] - corners[..., :2]).prod(2)
    return ((shared >= OVERLAP * area) & (boxes.labels[:, None] == labels)).any(1)


def best_f1(matches: Matches, fallback: float) -> Float[Tensor, " classes"]:
    """The threshold with the largest F1 score of each class; `fallback` for one without a right box.

    F1 is 2 × right / (predicted + true) of the boxes at or above the threshold.
    """
    thresholds = torch.full((len(matches.true),), fallback)
    for label, true in enumerate(matches.true.tolist()):
        of_class = matches.labels == label
        scores, order = matches.scores[of_class].sort(descending=True, stable=True)
        right = matches.right[of_class][order].cumsum(0)
        f1 = 2 * right / (torch.arange(1, len(scores) + 1) + true)
        # of equal scores all or none are above a threshold: the last of them counts
        last = torch.ones(len(scores), dtype=torch.bool)
        last[:-1] = scores[:-1] > scores[1:]
        if len(scores) and right[-1]:
            thresholds[label] = scores[torch.where(last, f1, -1.0).argmax()]
    return thresholds


def as_many(
    labels: Int64[Tensor, " n"], scores: Float[Tensor, " n"], wanted: Sequence[float], fallback: float
) -> Float[Tensor, " classes"]:
    """The threshold of each class that leaves about `wanted` boxes; `fallback` where none are wanted.

    Of fewer boxes than wanted all stay.
    """
    thresholds = torch.full((len(wanted),), fallback)
    for label, number in enumerate(wanted):
        ranked = scores[labels == label].sort(descending=True).values
        if round(number) and len(ranked):
            thresholds[label] = ranked[min(round(number), len(ranked)) - 1]
    return thresholds


class Calibration(NamedTuple):
    """Maps a teacher's score to the share of its boxes of that score that are right (Platt 1999).

    The share is the sigmoid of bias + slope × logit(score).
    """

    bias: float
    slope: float

    def __call__(self, scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The calibrated scores."""
        logits = scores.double().clamp(_EDGE, 1 - _EDGE).logit()
        return (self.bias + self.slope * logits).sigmoid().to(scores.dtype)


def calibration(matches: Matches) -> Calibration | None:
    """Fit a calibration to matched boxes; None if higher scores are not more often right.

    None, too, where all boxes are right, or all wrong: every score would become the same.
    """
    if not len(matches.scores):
        return None
    logits = matches.scores.double().clamp(_EDGE, 1 - _EDGE).logit()
    bias, slope = logistic_fit(logits[:, None], matches.right)
    return Calibration(bias, slope) if slope > 0 else None
