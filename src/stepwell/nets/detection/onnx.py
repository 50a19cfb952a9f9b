"""Detectors in ONNX files: exports of Stepwell, and graphs whose outputs a json file names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from stepwell.data.detect import Detector, suppressed
from stepwell.files import read_json
from stepwell.types import Boxes

#: What the json file beside a graph says: outputs by name, in one of three forms.
_FORMS = (
    {"boxes", "scores"},  # and "labels", unless scores are (boxes, classes)
    {"rows"},  # (boxes, 6): the box, its score, its label
    {"columns"},  # (4 + classes, places): the box and the scores of its classes
)
#: Forms of a box's four numbers.
_CORNERS = ("xyxy", "xywh", "cxcywh")
#: Overlap above which the less sure of two boxes of a class is dropped.
_OVERLAP = 0.6
#: Boxes below this score are dropped.
_SCORE = 0.05


class OnnxDetector:
    """A graph that finds boxes in one image.

    A graph of another program has a json file of its name beside it, such as detector.json:

        {"classes": ["cat", "dog"], "size": 640,
         "outputs": {"boxes": "dets", "scores": "conf", "labels": "cls"}}

    "outputs" names tensors of the graph in one of three forms: "boxes", "scores" and "labels" (labels
    are left out if scores are (boxes, classes)); "rows" of box, score and label; or "columns" (4 +
    classes, places), as YOLO's exports have them. Optional are "form" (xyxy, xywh or cxcywh),
    "relative" (true for boxes in shares of the input), "first" (the label of the first class), "mean"
    and "std" of pixels in [0, 1], and "square" (false if the graph takes images of any shape).

    Args:
        session: of onnxruntime.
        about: the content of the json file; None of an export of Stepwell.
    """

    def __init__(self, session: Any, about: Mapping[str, Any] | None = None) -> None:
        self.session, self.about = session, about
        self._own = Detector("", session) if about is None else None
        names = self._own.classes if self._own is not None else about["classes"]  # type: ignore[index]
        self.classes = tuple(names)
        self.mark = "" if about is None else json.dumps(about, sort_keys=True)

    @classmethod
    def open(cls, path: Path, session: Any) -> "OnnxDetector":
        """Open a graph; ValueError if neither it nor a json file beside it describes its outputs."""
        if "detector" in session.get_modelmeta().custom_metadata_map:
            return cls(session)
        beside = path.with_suffix(".json")
        outputs = [f"{o.name} {o.shape}" for o in session.get_outputs()]
        form = (
            f'write {{"classes": [...], "size": N, "outputs": {{"boxes": NAME, "scores": NAME, '
            f'"labels": NAME}}}} to {beside}; its outputs are {", ".join(outputs)}'
        )
        if not beside.is_file():
            raise ValueError(f"{path} does not say what its outputs are: {form}")
        about = read_json(beside, form)
        if problem := _problem(about, [o.name for o in session.get_outputs()]):
            raise ValueError(f"{beside}: {problem}: {form}")
        return cls(session, about)

    def longest(self, size: int | None) -> int:
        """The longer side of the images for it, if the user names `size`."""
        if self._own is not None:
            return size or int(self._own.about["size"])
        assert self.about is not None
        return int(self.about["size"])

    def find(self, pixels: UInt8[Tensor, "3 h w"]) -> Boxes:
        """The boxes of one image, in its pixels."""
        image = pixels.permute(1, 2, 0).numpy()
        if self._own is not None:
            boxes, scores, labels = self._own.find(image)
        else:
            boxes, scores, labels = self._run_foreign(image)
        label_tensor = torch.as_tensor(labels, dtype=torch.long)
        return Boxes.of(
            torch.from_numpy(boxes.astype(np.float32)), label_tensor, torch.from_numpy(scores)
        )

    def _run_foreign(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, scores and labels of another program's graph."""
        about = self.about
        assert about is not None
        high, wide = image.shape[:2]
        side = int(about["size"])
        rows, columns = (side, side) if about.get("square", True) else (high, wide)
        x = np.zeros((1, 3, rows, columns), np.float32)
        mean, std = (np.array(about.get(k, v), np.float32) for k, v in (("mean", 0), ("std", 1)))
        x[0, :, :high, :wide] = ((image / np.float32(255) - mean) / std).transpose(2, 0, 1)
        named = dict(about["outputs"])
        try:
            values = self.session.run([*named.values()], {self.session.get_inputs()[0].name: x})
        except Exception as error:  # onnxruntime has its own kinds
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"the graph does not run on an image of {columns} × {rows} pixels ({reason}): correct "
                '"size" or "square" in its json file'
            ) from error
        outputs = {k: np.asarray(v) for k, v in zip(named, values, strict=True)}
        try:
            boxes, scores, labels = _unpacked(outputs)
        except (ValueError, IndexError) as error:
            shapes = ", ".join(f"{k} {v.shape}" for k, v in outputs.items())
            raise ValueError(
                f"the graph's outputs have shapes that do not fit their names ({shapes}): correct "
                '"outputs" in its json file'
            ) from error
        boxes = _corners(boxes.astype(np.float64), about.get("form", _usual_form(outputs)))
        if about.get("relative", False):
            boxes = boxes * np.array([columns, rows] * 2)
        labels = labels.astype(np.int64) - int(about.get("first", 0))
        good = (scores >= _SCORE) & (labels >= 0) & (labels < len(self.classes))
        good &= np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = np.clip(boxes[good], 0, np.array([wide, high] * 2))
        scores, labels = scores[good].astype(np.float32), labels[good]
        keep = suppressed(boxes, scores, labels, _OVERLAP)
        return boxes[keep], scores[keep], labels[keep]


def _problem(about: Mapping[str, Any], outputs: list[str]) -> str | None:
    """A sentence about the fault of the json file beside a graph; None if it has none."""
    classes, named, size = (about.get(name) for name in ("classes", "outputs", "size"))
    if not isinstance(classes, list) or not classes or not all(isinstance(c, str) for c in classes):
        return '"classes" is no list of names'
    if type(size) is not int or not 32 <= size <= 4096:
        return '"size" is no number of pixels from 32 to 4096'
    if not isinstance(named, dict) or not any(f <= named.keys() <= f | {"labels"} for f in _FORMS):
        return '"outputs" names none of boxes and scores, rows, or columns'
    if missing := [name for name in named.values() if name not in outputs]:
        return f"the graph has no output {missing[0]!r}"
    if about.get("form", _CORNERS[0]) not in _CORNERS:
        return f'"form" is none of {", ".join(_CORNERS)}'
    for name in ("mean", "std"):
        values = about.get(name, 1)
        each = values if isinstance(values, list) and len(values) == 3 else [values]
        least = -1e6 if name == "mean" else 0
        if not all(type(v) in (int, float) and least < v < 1e6 for v in each):
            above = "" if name == "mean" else " above 0"
            return f'"{name}" is neither a number{above} nor a list of three, red, green and blue'
    if type(about.get("first", 0)) is not int:
        return '"first" is no whole number, the label of the first class'
    if wrong := [n for n in ("relative", "square") if type(about.get(n, True)) is not bool]:
        return f'"{wrong[0]}" is neither true nor false'
    return None


def _unpacked(outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4), scores (n,) and labels (n,) from a graph's outputs, with or without a batch."""
    if "rows" in outputs:
        rows = outputs["rows"].reshape(-1, outputs["rows"].shape[-1])
        return rows[:, :4], rows[:, 4], rows[:, 5]
    if "columns" in outputs:
        columns = outputs["columns"].reshape(outputs["columns"].shape[-2:]).T
        boxes, scores = columns[:, :4], columns[:, 4:]
    else:
        boxes = outputs["boxes"].reshape(-1, 4)
        scores = outputs["scores"]
        if "labels" in outputs:
            return boxes, scores.reshape(-1), outputs["labels"].reshape(-1)
        scores = scores.reshape(len(boxes), -1)
    places, labels = np.nonzero(scores >= _SCORE)
    return boxes[places], scores[places, labels], labels


def _usual_form(outputs: Mapping[str, np.ndarray]) -> str:
    return "cxcywh" if "columns" in outputs else "xyxy"


def _corners(boxes: np.ndarray, form: str) -> np.ndarray:
    """Boxes as x1, y1, x2, y2."""
    if form == "xyxy":
        return boxes
    low, size = boxes[:, :2], boxes[:, 2:]
    if form == "cxcywh":
        low = low - size / 2
    return np.concatenate([low, low + size], 1)
