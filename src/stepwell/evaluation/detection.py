"""Average precision of boxes, as COCO defines it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

#: By name, where a number stands in COCO's table of precisions: threshold of overlap, and area.
_SUMMARY: Mapping[str, tuple[float | None, int]] = {
    "ap": (None, 0), "ap50": (0.5, 0), "ap75": (0.75, 0), "ap_small": (None, 1),
    "ap_medium": (None, 2), "ap_large": (None, 3),
}  # fmt: skip


@contextmanager
def detection_extra() -> Iterator[None]:
    """Say what to install where an import of the evaluator fails."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] != "faster_coco_eval":
            raise
        raise ImportError(f"detection needs {error.name}: pip install 'stepwell[detection]'") from error


def average_precision(
    truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]], *, classes: bool = True
) -> dict[str, float]:
    """Average precision of predicted boxes, a share from 0 to 1.

    Args:
        truth: true boxes as COCO's json; crowd regions count neither as missed nor as found.
        found: predicted boxes as COCO's list of results.
        classes: measure each class, too.

    Returns:
        "ap", the mean over overlaps (IoU) of 0.5, 0.55, ..., 0.95 and over classes; "ap50" and "ap75"
        at one overlap; "ap_small", "ap_medium", "ap_large" of objects below 32², below 96² and from 96²
        square pixels; "ap/CLASS" and "ap50/CLASS". Without true boxes there is no such number.

    Raises:
        ImportError: the extra is not installed.
    """
    precision = _precision(truth, found)
    overlaps = np.linspace(0.5, 0.95, 10)
    numbers: dict[str, float] = {}

    def note(name: str, values: np.ndarray) -> None:
        if (known := values[values > -1]).size:
            numbers[name] = float(known.mean())

    for name, (overlap, area) in _SUMMARY.items():
        at = slice(None) if overlap is None else np.isclose(overlaps, overlap)
        note(name, precision[at, :, :, area])
    names = [row["name"] for row in sorted(truth["categories"], key=lambda row: row["id"])]
    for i, name in enumerate(names if classes else ()):
        note(f"ap/{name}", precision[:, :, i, 0])
        note(f"ap50/{name}", precision[0, :, i, 0])
    return numbers


def _precision(truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Precision by overlap, recall, class and area, of 100 boxes an image; -1 without a true box."""
    with detection_extra():
        from faster_coco_eval import COCO, COCOeval_faster

    true = COCO({"info": {}, **truth})
    if not found:  # the evaluator refuses an empty list
        first = truth["images"][0]["id"]
        nothing = {"image_id": first, "category_id": truth["categories"][0]["id"]}
        found = [{**nothing, "bbox": [-2.0, -2.0, 1.0, 1.0], "score": 0.0}]
    measured = COCOeval_faster(true, true.loadRes([dict(row) for row in found]), iouType="bbox")
    measured.evaluate()
    measured.accumulate()
    table: np.ndarray = measured.eval["precision"]
    return table[:, :, :, :, -1]
