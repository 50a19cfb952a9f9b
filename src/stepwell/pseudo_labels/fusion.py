"""Boxes of several teachers of the same images as one set of boxes.

Weighted boxes fusion (Solovyev et al. 2019) divides by the number of models, so that a class which one
of two teachers knows loses half of its score. Here it divides by the number of teachers that cover the
class in the image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from stepwell.types import Boxes

#: Most places for fused boxes that are held at a time; bounds the memory.
PLACES = 1 << 20


def fuse(
    predictions: Sequence[Sequence[Boxes]], covers: Bool[Tensor, "teachers images classes"], *,
    overlap: float = 0.55,
) -> list[Boxes]:  # fmt: skip
    """Fuse the boxes of several teachers in each image, best first.

    Boxes of one class in one image join, best first, the fused box that overlaps them most, if by more
    than `overlap`. A fused box is the mean of its boxes, weighted by their scores; its score is their
    mean score times min(boxes, n) / n, where n teachers cover the class in the image. Boxes of a class
    with one such teacher stay as they are. Boxes with a score of 0 are left out.

    Args:
        predictions: of each teacher, the boxes of each image, with labels of the common classes.
        covers: True where a teacher tells of a class in an image.

    Raises:
        ValueError: a teacher has a box of a class that it does not cover.
    """
    teachers, images, classes = covers.shape
    counts = [boxes.total for row in predictions for boxes in row]
    image = np.repeat(np.tile(np.arange(images), teachers), counts)
    teacher = np.repeat(np.repeat(np.arange(teachers), images), counts)
    every = [boxes for row in predictions for boxes in row]
    corners = torch.cat([boxes.boxes for boxes in every]).double().numpy()
    labels = torch.cat([boxes.labels for boxes in every]).numpy()
    scores = torch.cat([boxes.scores for boxes in every]).double().numpy()
    known = covers.numpy()
    scored = scores > 0  # a mean weighted by scores of 0 would be no number
    if not known[teacher, image, labels][scored].all():
        raise ValueError("a teacher has boxes of a class that it does not cover: correct `covers`")
    group = image * classes + labels
    number = known.sum(0)[image, labels]
    alone, together = (np.flatnonzero(scored & which) for which in (number == 1, number > 1))
    mean, score, whose = _weighted(
        corners[together], scores[together], group[together], number[together], overlap
    )
    corners = np.concatenate([corners[alone], mean])
    scores = np.concatenate([scores[alone], score])
    group = np.concatenate([group[alone], whose])
    return _by_image(corners, scores, group // classes, group % classes, images)


def _weighted(
    corners: NDArray[np.float64], scores: NDArray[np.float64], group: NDArray[np.int64],
    number: NDArray[np.int64], overlap: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:  # fmt: skip
    """Fuse the boxes within each group; the boxes, scores and groups of the result.

    The k-th best boxes of all groups are taken at once, so that a step is one operation on arrays.
    """
    order = np.lexsort((-scores, group))
    corners, scores, group, number = corners[order], scores[order], group[order], number[order]
    _, first, sizes = np.unique(group, return_index=True, return_counts=True)
    largest = np.argsort(-sizes, kind="stable")
    parts = []
    while len(largest):
        rows = max(1, PLACES // int(sizes[largest[0]]))
        now, largest = largest[:rows], largest[rows:]
        parts.append(_fused_groups(corners, scores, first[now], sizes[now], overlap))
    if not parts:
        return corners, scores, group
    means, sums, counts, whose = (np.concatenate(p) for p in zip(*parts, strict=True))
    n = number[whose]
    return means, sums / counts * np.minimum(counts, n) / n, group[whose]


def _fused_groups(
    corners: NDArray[np.float64], scores: NDArray[np.float64], first: NDArray[np.int64],
    sizes: NDArray[np.int64], overlap: float,
) -> tuple[NDArray[Any], ...]:  # fmt: skip
    """Fused boxes of groups, largest group first: means, sums of scores, counts, and a row of each."""
    groups, most = len(first), int(sizes[0])
    sums, means = np.zeros((4, groups, most)), np.zeros((4, groups, most))
    weights, counts = np.zeros((groups, most)), np.zeros((groups, most), np.int64)
    used = np.zeros(groups, np.int64)
    for k in range(most):
        active = int(np.searchsorted(-sizes, -k))  # groups of more than k boxes
        rows = first[:active] + k
        box, score = corners[rows].T, scores[rows]
        # a free place holds a box without area, which overlaps with none
        width = max(1, int(used[:active].max()))
        near = _overlaps(box[..., None], means[:, :active, :width])
        best = near.argmax(1)
        at = np.arange(active)
        joins = near[at, best] > overlap
        place = np.where(joins, best, used[:active])
        used[:active] += ~joins
        sums[:, at, place] += score * box
        weights[at, place] += score
        counts[at, place] += 1
        means[:, at, place] = sums[:, at, place] / weights[at, place]
    taken = counts > 0
    whose = np.broadcast_to(first[:, None], taken.shape)[taken]
    return means[:, taken].T, weights[taken], counts[taken], whose


def _overlaps(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes, (4, ...) each."""
    x1, y1, x2, y2 = box
    own_x1, own_y1, own_x2, own_y2 = others
    wide = np.minimum(x2, own_x2) - np.maximum(x1, own_x1)
    high = np.minimum(y2, own_y2) - np.maximum(y1, own_y1)
    inside = np.maximum(wide, 0) * np.maximum(high, 0)
    union = (x2 - x1) * (y2 - y1) + (own_x2 - own_x1) * (own_y2 - own_y1) - inside
    overlaps: NDArray[np.float64] = inside / np.maximum(union, 1e-12)
    return overlaps


def _by_image(
    corners: NDArray[np.float64], scores: NDArray[np.float64], image: NDArray[np.int64],
    labels: NDArray[np.int64], images: int,
) -> list[Boxes]:  # fmt: skip
    """Boxes of each image, best first."""
    order = np.lexsort((-scores, image))
    ends = np.searchsorted(image[order], np.arange(1, images)).tolist()
    every = Boxes.of(*(torch.from_numpy(values[order]) for values in (corners, labels, scores)))
    return [Boxes(*columns) for columns in zip(*(v.tensor_split(ends) for v in every), strict=True)]


def without_doubles(
    fused: Sequence[Boxes], covers: Bool[Tensor, "teachers images classes"], *, overlap: float = 0.75
) -> list[Boxes]:
    """Drop a box that overlaps a better one of another class by more than `overlap`.

    Only classes that the same teachers cover in the image count as rivals: boxes of teachers with
    different categories may name one object twice.
    """
    remaining = []
    for boxes, cover in zip(fused, covers.unbind(1), strict=True):
        # one number for each set of teachers; far apart, so that no boxes of two sets overlap
        _, kin = cover.T.unique(dim=0, return_inverse=True)
        reach = boxes.boxes.max() + 1 if boxes.total else 0.0
        apart = boxes.boxes + (kin[boxes.labels] * reach)[:, None]
        remaining.append(boxes.chosen(nms(apart, boxes.scores, overlap)))
    return remaining
