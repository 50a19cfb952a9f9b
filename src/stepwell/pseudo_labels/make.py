"""Labels from what teachers predict: merged classes, calibrated scores, fusion, thresholds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from stepwell.data.boxes import BoxSet
from stepwell.measures import some
from stepwell.pseudo_labels.categories import Categories
from stepwell.pseudo_labels.fusion import fuse, without_doubles
from stepwell.pseudo_labels.thresholds import (
    Calibration,
    Matches,
    as_many,
    best_f1,
    calibration,
    matched,
)
from stepwell.types import Boxes

Thresholds = Literal["f1", "count", "fixed"]
#: Overlap above which the less sure of two boxes of one teacher and class is dropped.
SAME = 0.6
#: Images that are searched for classes that lie on each other; boxes of a class, at least.
LOOKED_AT, FEW = 1000, 5


@dataclass(frozen=True, kw_only=True)
class Making:
    """Settings that turn predictions into labels.

    thresholds: of each class: the best F1 on labelled images, as many boxes an image as these have, or
        `min_score`.
    ignore_from: boxes from this score up to their threshold count neither as objects nor as background;
        None: they are background.
    calibrate: map each teacher's scores to the share of right boxes on labelled images.
    plain_fusion: divide by all teachers, also where some do not cover the class; for studies.
    """

    thresholds: Thresholds
    min_score: float = 0.5
    ignore_from: float | None = None
    calibrate: bool = False
    plain_fusion: bool = False


class Made(NamedTuple):
    """Images with labels that teachers made.

    images: with boxes, and what they tell of.
    record: what thresholds and fusion did, for the report.
    notes: a line each.
    """

    images: BoxSet
    record: dict[str, Any]
    notes: tuple[str, ...]


class Fused(NamedTuple):
    """Boxes of several teachers as one set: of each image, and the classes that they tell of."""

    boxes: list[Boxes]
    known: Bool[Tensor, "images classes"]


class Judge:
    """Teachers' predictions made into one set of boxes, with thresholds from labelled images.

    Args:
        names: of the teachers.
        reference: labelled images, and what each teacher found in them; None without labels.

    Raises:
        ValueError: thresholds or calibrations need labelled images, and there are none.
    """

    def __init__(
        self, names: Sequence[str], categories: Categories, making: Making,
        reference: tuple[BoxSet, Sequence[Sequence[Boxes | None]]] | None = None,
    ) -> None:  # fmt: skip
        self.names, self.categories, self.making = tuple(names), categories, making
        self.calibrations: list[Calibration | None] = [None] * len(names)
        self.notes: list[str] = []
        self.matches: Matches | None = None
        if reference is None:
            if making.thresholds != "fixed" or making.calibrate:
                raise ValueError(
                    f"--thresholds {making.thresholds} and --calibrate need labelled images: name "
                    "--labels, or use --thresholds fixed"
                )
            return
        images, predictions = reference
        if making.calibrate:
            self._calibrate(images, predictions)
        fused = self.fused(predictions)
        # leave out true boxes of images that no teacher tells of
        judged = fused.known | ~categories.covers.any(0)
        truth = [
            boxes.chosen(row[boxes.labels]) for boxes, row in zip(images.truth, judged, strict=True)
        ]
        self.matches = matched(self._judgeable(images, fused.boxes), truth, len(categories.names))
        self.judged = judged.sum(0)  # images of each class

    def fused(self, predictions: Sequence[Sequence[Boxes | None]]) -> Fused:
        """The boxes of all teachers in each image as one set.

        Args:
            predictions: of each teacher, its boxes in each image; None where it says nothing.
        """
        covers = self.categories.covers[:, None].repeat(1, len(predictions[0]), 1)
        mapped = []
        for k, row in enumerate(predictions):
            covers[k, [boxes is None for boxes in row]] = False
            mapped.append([self._mapped(k, boxes) for boxes in row])
        known = covers.any(0)
        if self.making.plain_fusion:
            covers = torch.ones_like(covers)
        fused = mapped[0] if len(predictions) == 1 else fuse(mapped, covers)
        return Fused(without_doubles(fused, covers), known)

    def settle(self, images: BoxSet, predictions: Sequence[Sequence[Boxes | None]]) -> None:
        """Set the thresholds, on the training images; ValueError if no box reaches them."""
        fused = self.fused(predictions)
        filled = [boxes for boxes in fused.boxes if boxes.total]
        labels, scores = (
            torch.cat([getattr(boxes, name) for boxes in filled]) if filled else torch.zeros(0)
            for name in ("labels", "scores")
        )
        self.limits = self._limits(labels.long(), scores, fused.known.sum(0))
        if not (scores >= self.limits[labels.long()]).any():
            self._refuse(scores, len(images))
        low = self.making.ignore_from
        if low is not None and low >= float(self.limits.max()):
            self.notes.append(
                f"--ignore-from {low:g} lies above the threshold of every class (the highest is "
                f"{float(self.limits.max()):.2f}), so it changes nothing"
            )

    def made(self, images: BoxSet, predictions: Sequence[Sequence[Boxes | None]]) -> Made:
        """The images with labels: boxes at or above their class's threshold, once these are set."""
        fused, limits = self.fused(predictions), self.limits
        truth = tuple(self._cut(boxes, limits) for boxes in fused.boxes)
        whole = None if bool(fused.known.all()) else fused.known
        labelled = replace(images, truth=truth, labelled=True, known=whole, notes=())
        record = self._record(predictions, fused, labelled, limits)
        return Made(labelled, record, tuple(self.notes + self._doubts(labelled, fused)))

    def _judgeable(self, images: BoxSet, predictions: Sequence[Boxes]) -> list[Boxes]:
        """The boxes of the classes that the labels tell of: of others nobody knows which are right."""
        known = images.known
        if known is None:
            labelled = self.categories.labelled
            known = (labelled if labelled.any() else ~labelled).expand(len(images), -1)
        return [boxes.chosen(row[boxes.labels]) for boxes, row in zip(predictions, known, strict=True)]

    def _mapped(self, teacher: int, boxes: Boxes | None) -> Boxes:
        """A teacher's boxes with the common classes and calibrated scores."""
        if boxes is None:
            return Boxes.of([], [])
        labels = self.categories.maps[teacher][boxes.labels]
        mapped = boxes._replace(labels=labels).chosen(labels >= 0)
        mapped = mapped.chosen(batched_nms(mapped.boxes, mapped.scores, mapped.labels, SAME))
        adjust = self.calibrations[teacher]
        return mapped if adjust is None else mapped._replace(scores=adjust(mapped.scores))

    def _calibrate(self, images: BoxSet, predictions: Sequence[Sequence[Boxes | None]]) -> None:
        classes = len(self.categories.names)
        for k, row in enumerate(predictions):
            covered = self.categories.covers[k]
            truth = [boxes.chosen(covered[boxes.labels]) for boxes in images.truth]
            mapped = [self._mapped(k, boxes) for boxes in row]
            seen = matched(self._judgeable(images, mapped), truth, classes)
            self.calibrations[k] = calibration(seen)
            if self.calibrations[k] is None and 0 < int(seen.right.sum()) < len(seen.right):
                self.notes.append(
                    f"{self.names[k]}: its surer boxes are not more often right on {len(images)} "
                    "labelled images, so its scores stay as they are"
                )

    def _limits(self, labels: Tensor, scores: Tensor, images: Tensor) -> Float[Tensor, " classes"]:
        """The threshold of each class; `images`: of how many the boxes tell (classes,)."""
        making, classes = self.making, len(self.categories.names)
        if making.thresholds == "fixed":
            return torch.full((classes,), making.min_score)
        assert self.matches is not None, "labels decide these thresholds"
        if making.thresholds == "f1":
            return best_f1(self.matches, making.min_score)
        wanted = self.matches.true.double() / self.judged.clamp(min=1) * images
        return as_many(labels, scores, wanted.tolist(), making.min_score)

    def _cut(self, boxes: Boxes, limits: Tensor) -> Boxes:
        """The boxes from their thresholds on; those in the band below are crowds: no loss sees them."""
        limit = limits[boxes.labels]
        low = limit if self.making.ignore_from is None else limit.clamp(max=self.making.ignore_from)
        marked = boxes._replace(crowd=boxes.scores < limit)
        return marked.chosen(boxes.scores >= low)

    def _refuse(self, scores: Tensor, images: int) -> None:
        """Say that there is no label, and which threshold would give some."""
        who = " and ".join(self.names)
        if not len(scores):
            raise ValueError(
                f"{who}: no box in {images} images, of any score: name another teacher, or other images"
            )
        best = float(scores.max())
        if not best:
            raise ValueError(
                f"{who}: all boxes in {images} images have a score of 0: name another teacher"
            )
        digit = 10.0 ** math.floor(math.log10(0.9 * best))
        lower = round(math.floor(0.9 * best / digit) * digit, 10)  # rounded down: the best reaches it
        count = int((scores >= lower).sum())
        limit = f"--min-score {self.making.min_score:g}"
        if self.making.thresholds != "fixed":
            limit = f"the threshold of its class, {float(self.limits.min()):.3g} or more,"
        raise ValueError(
            f"{who}: no box reaches {limit} in {images} images; the best has {best:.3g}, and from "
            f"{lower:g} on there would be {count}: set --thresholds fixed --min-score {lower:g}"
        )

    def _record(
        self, predictions: Sequence[Sequence[Boxes | None]], fused: Fused, made: BoxSet, limits: Tensor
    ) -> dict[str, Any]:
        """Numbers by class and by teacher."""
        names, seen = self.categories.names, self.categories.covers
        counts = made.counts
        ignored = [int(boxes.crowd.sum()) for boxes in made.truth]
        classes: dict[str, Any] = {
            name: {"threshold": round(float(limits[i]), 4), "boxes": counts[name],
                   "teachers": int(seen[:, i].sum())}
            for i, name in enumerate(names)
        }  # fmt: skip
        record: dict[str, Any] = {
            "images": len(made), "boxes": sum(counts.values()), "ignored": sum(ignored),
            "empty": sum(boxes.total == 0 for boxes in made.truth),
            "fused": sum(boxes.total for boxes in fused.boxes), "thresholds": self.making.thresholds,
            "teachers": {
                name: {"boxes": sum(boxes.total for boxes in row if boxes is not None)}
                for name, row in zip(self.names, predictions, strict=True)
            },
            "classes": classes,
        }  # fmt: skip
        for name, adjust in zip(self.names, self.calibrations, strict=True):
            if adjust is not None:
                record["teachers"][name]["calibration"] = [*adjust]
        if self.matches is not None:
            for i, name in enumerate(names):
                of_class = self.matches.labels == i
                if not (of_class.any() or self.matches.true[i]):
                    continue  # nothing is known of it
                above = of_class & (self.matches.scores >= limits[i])
                right, true = int((above & self.matches.right).sum()), int(self.matches.true[i])
                shares = {"precision": (right, int(above.sum())), "recall": (right, true),
                          "prior": (true, int(self.judged[i]))}  # fmt: skip
                known_shares = {key: part / all for key, (part, all) in shares.items() if all}
                classes[name] |= {"labelled": true} | known_shares
        return record

    def _doubts(self, made: BoxSet, fused: Fused) -> list[str]:
        """Lines about classes without boxes, and pairs of classes that lie on each other."""
        empty = [name for name, count in made.counts.items() if not count]
        covered = self.categories.covers.any(0)
        none = [n for n in empty if covered[self.categories.names.index(n)]]
        notes = []
        if none:
            best = [f"{name} ({self._best_of(name, fused)})" for name in none]
            notes.append(f"the teachers' boxes above the thresholds have none of {some(best)}")
        if len(self.names) > 1 and (pairs := _twins(made, self.categories)):
            notes.append(
                f"boxes of two classes often lie on each other: {some(pairs)}; map one to the other "
                "with --rename OLD=NEW if they are one"
            )
        return notes

    def _best_of(self, name: str, fused: Fused) -> str:
        """Say which score the best box of a class has, and its threshold."""
        index = self.categories.names.index(name)
        best = max((float(s) for b in fused.boxes for s in b.scores[b.labels == index]), default=None)
        if best is None:
            return "no box of any score"
        return f"the best has {best:.3g}, the threshold is {float(self.limits[index]):.3g}"


def _twins(made: BoxSet, categories: Categories) -> list[str]:
    """Pairs of classes of different teachers, most boxes of one of which lie on boxes of the other."""
    classes = len(categories.names)
    both = torch.zeros(classes, classes)
    for boxes in made.truth[:LOOKED_AT]:
        near = (box_iou(boxes.boxes, boxes.boxes) > SAME).nonzero()
        a, b = boxes.labels[near[:, 0]], boxes.labels[near[:, 1]]
        both.index_put_((a, b), torch.ones(len(a)), accumulate=True)
    number = both.diagonal().clone()
    apart = (categories.covers.T[:, None] != categories.covers.T[None]).any(2)
    share = both / number[:, None].clamp(min=1)
    often = (apart & (share > 0.5) & (number >= FEW)[:, None]).nonzero().tolist()
    return [
        f"{100 * float(share[a, b]):.0f} % of {categories.names[a]} on {categories.names[b]}"
        for a, b in often
    ]


def without_empty(made: BoxSet, *, keep: bool = False) -> tuple[BoxSet, int]:
    """The images with a box, and the number of the others; with `keep`, all images."""
    full = [i for i, boxes in enumerate(made.truth) if boxes.total or keep]
    return (made, 0) if len(full) == len(made) else (made.subset(full), len(made) - len(full))


def described(categories: Categories, names: Sequence[str]) -> Mapping[str, Any]:
    """The merged classes, for a run's record."""
    return {
        "classes": [*categories.names],
        "covers": {
            name: [c for c, known in zip(categories.names, row.tolist(), strict=True) if known]
            for name, row in zip(names, categories.covers, strict=True)
        },
    }
