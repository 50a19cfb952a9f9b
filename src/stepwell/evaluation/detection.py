"""Average precision of boxes, as COCO defines it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepwell.evaluation.intervals import LEVEL, ends
from stepwell.extras import extra

#: By name, where a number stands in COCO's table of precisions: threshold of overlap, and area.
_SUMMARY: Mapping[str, tuple[float | None, int]] = {
    "ap": (None, 0), "ap50": (0.5, 0), "ap75": (0.75, 0), "ap_small": (None, 1),
    "ap_medium": (None, 2), "ap_large": (None, 3),
}  # fmt: skip


def average_precision(
    truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], *, classes: bool = True
) -> dict[str, float]:
    """Average precision of predicted boxes, a share from 0 to 1.

    Args:
        truth: true boxes as COCO's json; crowd regions count neither as missed nor as found.
        predictions: boxes as COCO's list of results.
        classes: measure each class, too.

    Returns:
        "ap", the mean over overlaps (IoU) of 0.5, 0.55, ..., 0.95 and over classes; "ap50" and "ap75"
        at one overlap; "ap_small", "ap_medium", "ap_large" of objects below 32², below 96² and from 96²
        square pixels; "ap/CLASS" and "ap50/CLASS". Without true boxes there is no such number.

    Raises:
        ImportError: the extra is not installed.
    """
    precision = _precision(truth, predictions)
    overlaps = np.linspace(0.5, 0.95, 10)
    numbers: dict[str, float] = {}

    def note(name: str, values: np.ndarray) -> None:
        if (known := values[values > -1]).size:
            numbers[name] = float(known.mean())

    for name, (overlap, area) in _SUMMARY.items():
        index = slice(None) if overlap is None else np.isclose(overlaps, overlap)
        note(name, precision[index, :, :, area])
    names = [row["name"] for row in sorted(truth["categories"], key=lambda row: row["id"])]
    for i, name in enumerate(names if classes else ()):
        note(f"ap/{name}", precision[:, :, i, 0])
        note(f"ap50/{name}", precision[0, :, i, 0])
    return numbers


def precision_recall(
    truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Precision of each class at recalls of 0, 0.01, ..., 1 and an overlap (IoU) of 0.5.

    Args as for `average_precision`. A class without true boxes is left out; recalls that no box reaches
    have precision 0.
    """
    table = _precision(truth, predictions)[0, :, :, 0]
    names = [row["name"] for row in sorted(truth["categories"], key=lambda row: row["id"])]
    columns = zip(names, table.T, strict=True)
    return {
        name: [round(float(p), 4) for p in precisions]
        for name, precisions in columns
        if precisions[0] > -1
    }


def precision_interval(
    truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], *, resamples: int = 100,
    level: float = LEVEL, seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """The ends of a percentile bootstrap interval of "ap" over images (Efron 1979).

    A resample draws as many images as there are, with replacement, with all their boxes; the same seed
    gives the same draws. Args as for `average_precision`. NaN without true boxes.
    """
    images = [row["id"] for row in truth["images"]]
    true, boxes = (_by_image(rows) for rows in (truth["annotations"], predictions))
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = [images[i] for i in generator.integers(len(images), size=len(images))]
        sample = {
            "images": [{"id": i} for i in range(1, len(drawn) + 1)],
            "annotations": _renumbered(true, drawn), "categories": truth["categories"],
        }  # fmt: skip
        resampled = average_precision(sample, _renumbered(boxes, drawn), classes=False)
        values += [resampled["ap"]] if "ap" in resampled else []
    if not values:
        return float("nan"), float("nan")
    low, high = np.quantile(values, ends(level).numpy())
    return float(low), float(high)


def _by_image(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["image_id"], []).append(row)
    return groups


def _renumbered(
    rows: Mapping[int, Sequence[Mapping[str, Any]]], images: Sequence[int]
) -> list[dict[str, Any]]:
    """The rows of images that may stand several times, each time as an image of its own."""
    drawn = [{**row, "image_id": i} for i, id in enumerate(images, 1) for row in rows.get(id, ())]
    return [{**row, "id": i} for i, row in enumerate(drawn, 1)]


def _precision(truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Precision by overlap, recall, class and area, of 100 boxes an image; -1 without a true box."""
    with extra("detection"):
        from faster_coco_eval import COCO, COCOeval_faster

    true = COCO({"info": {}, **truth})
    if not predictions:  # the evaluator refuses an empty list
        first = truth["images"][0]["id"]
        nothing = {"image_id": first, "category_id": truth["categories"][0]["id"]}
        predictions = [{**nothing, "bbox": [-2.0, -2.0, 1.0, 1.0], "score": 0.0}]
    measured = COCOeval_faster(true, true.loadRes([dict(row) for row in predictions]), iouType="bbox")
    measured.evaluate()
    measured.accumulate()
    table: np.ndarray = measured.eval["precision"]
    return table[:, :, :, :, -1]
