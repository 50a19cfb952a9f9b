"""A detector of Stepwell in ONNX, from image files to boxes. Needs numpy, Pillow and onnxruntime.

    detector = Detector("14.onnx")
    boxes, scores, labels = detector("photo.jpg")    # x1, y1, x2, y2 in pixels of the photo
    detector.classes[labels[0]]

`stepwell export` copies this file beside the graphs, which end at the heads: anchors, decoding and the
suppression of double boxes are here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from stepwell.data.preprocess import Source, whole
except ImportError:  # in the folder of an export, on a machine without Stepwell
    from preprocess import Source, whole  # type: ignore[no-redef]

#: Sides of a graph's input are multiples of this.
STRIDE = 32
#: Largest logarithm of a box's growth, as torchvision limits it.
_LARGEST = float(np.log(1000.0 / 16))
Array = NDArray[Any]
#: Boxes (n, 4), scores (n,) and labels (n,), best first.
Found = tuple[Array, Array, Array]


class Detector:
    """One depth of a detector; `path` is its graph, or `session` an open one."""

    def __init__(self, path: str | Path, session: Any = None) -> None:
        if session is None:
            import onnxruntime

            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.session = session
        described = session.get_modelmeta().custom_metadata_map
        self.about: dict[str, Any] = {
            name: json.loads(described[name]) for name in ("classes", "size", "mean", "std", "detector")
        }
        self.classes: list[str] = self.about["classes"]

    def __call__(self, source: Source) -> Found:
        """The boxes of an image in its own pixels, with an area; ValueError if it cannot be read."""
        original = whole(source)
        pixels = whole(original, self.about["size"])
        boxes, scores, labels = self.find(pixels)
        scale = np.array([original.shape[1] / pixels.shape[1], original.shape[0] / pixels.shape[0]] * 2)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)  # others lie outside of the image
        return (boxes * scale).astype(np.float32)[inside], scores[inside], labels[inside]

    def find(self, pixels: NDArray[np.uint8]) -> Found:
        """The boxes of RGB bytes (height, width, 3), in their pixels, at the size that they have."""
        images = padded(pixels, self.about)
        names = [output.name for output in self.session.get_outputs()]
        values = self.session.run(names, {"images": images})
        outputs = {name: value[0] for name, value in zip(names, values, strict=True)}
        return boxes_of(outputs, images.shape[2:], pixels.shape[:2], self.about["detector"])


def padded(pixels: NDArray[np.uint8], about: Mapping[str, Any]) -> NDArray[np.float32]:
    """A normalised batch of one image, with zeros at its right and lower edge up to full strides."""
    high, wide = pixels.shape[:2]
    mean, std = (np.array(about[name], np.float32) * np.float32(255) for name in ("mean", "std"))
    batch = np.zeros((1, 3, -(-high // STRIDE) * STRIDE, -(-wide // STRIDE) * STRIDE), np.float32)
    batch[0, :, :high, :wide] = ((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1)
    return batch


def boxes_of(
    outputs: Mapping[str, Array], padded: tuple[int, ...], size: tuple[int, ...],
    about: Mapping[str, Any],
) -> Found:  # fmt: skip
    """The boxes of one image of some height and width from what the heads gave for its padded form.

    Args:
        about: the head: its kind, strides, anchors and thresholds, as `stepwell export` describes them.
    """
    grids = grids_of(padded, about)
    rows = [high * wide * per for (high, wide), per in zip(grids, about["anchors_each"], strict=True)]
    ends = np.cumsum(rows)[:-1]
    anchors = np.split(anchors_of(padded, grids, about), ends)
    logits = np.split(outputs["cls_logits"], ends)
    moves = np.split(outputs["bbox_regression"], ends)
    if about["kind"] == "softmax":
        parts = [_softmax_level(logits, moves, anchors, about)]
    else:
        centres = outputs.get("bbox_ctrness")
        split = [None] * len(logits) if centres is None else np.split(centres, ends)
        levels = zip(logits, moves, anchors, split, strict=True)
        parts = [_sigmoid_level(*level, about) for level in levels]
    boxes, scores, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    boxes = np.clip(boxes, 0, np.array([size[1], size[0]] * 2, np.float32))
    keep = suppressed(boxes, scores, labels, about["nms"])[: about["most"]]
    return boxes[keep], scores[keep], labels[keep]


def grids_of(padded: tuple[int, ...], about: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Height and width of each level's map."""
    high, wide = padded
    grids = [(high // stride, wide // stride) for stride in about["strides"]]
    for _ in range(about["more"]):
        high, wide = grids[-1]
        grids.append((-(-high // 2), -(-wide // 2)))
    return grids


def anchors_of(
    padded: tuple[int, ...], grids: list[tuple[int, int]], about: Mapping[str, Any]
) -> NDArray[np.float32]:
    """The anchors of all places, level by level, row by row; of FCOS, a square at each place."""
    high, wide = padded
    anchors = []
    for (rows, columns), cell in zip(grids, about["anchors"], strict=True):
        x: Array
        y: Array
        own: Array = np.array(cell, np.float32)
        if about["kind"] == "softmax":  # widths and heights as shares of the image
            x, y = ((np.arange(n) + 0.5) / n * side for n, side in ((columns, wide), (rows, high)))
            half = np.clip(own, 0, 1) * np.array([wide, high], np.float32) / 2
            own = np.concatenate([-half, half], 1)
        else:
            x = np.arange(columns) * float(wide // columns)
            y = np.arange(rows) * float(high // rows)
        shift = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), -1).reshape(-1, 1, 2)
        anchors.append((np.concatenate([shift, shift], -1) + own).reshape(-1, 4))
    return np.concatenate(anchors).astype(np.float32)


def _sigmoid_level(
    logits: Array, moves: Array, anchors: Array, centres: Array | None, about: Mapping[str, Any]
) -> Found:
    """Candidates of one level of a head that scores each class by itself."""
    scores = _sigmoid(logits)
    if centres is not None:
        scores = np.sqrt(scores * _sigmoid(centres))
    flat = scores.reshape(-1)
    sure = np.flatnonzero(flat > about["score"])
    best = sure[np.argsort(-flat[sure], kind="stable")[: about["candidates"]]]
    places, labels = np.divmod(best, scores.shape[1])
    return _moved(anchors[places], moves[places], about), flat[best], labels


def _softmax_level(
    logits: list[Array], moves: list[Array], anchors: list[Array], about: Mapping[str, Any]
) -> Found:
    """Candidates of all levels of a head that scores classes against each other, background first."""
    values = np.concatenate(logits)
    scores = np.exp(values - values.max(1, keepdims=True))
    scores = (scores / scores.sum(1, keepdims=True))[:, 1:]
    boxes = _moved(np.concatenate(anchors), np.concatenate(moves), about)
    parts = []
    for label, own in enumerate(scores.T):
        sure = np.flatnonzero(own > about["score"])
        best = sure[np.argsort(-own[sure], kind="stable")[: about["candidates"]]]
        parts.append((boxes[best], own[best], np.full(len(best), label)))
    boxes, flat, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
    return boxes, flat, labels


def _moved(anchors: Array, moves: Array, about: Mapping[str, Any]) -> Array:
    """Boxes from anchors and what the head says about them."""
    low, high = anchors[:, :2], anchors[:, 2:]
    centre, size = (low + high) / 2, high - low
    if about["kind"] == "distances":  # to the four edges, in sides of the square
        return np.concatenate([centre - moves[:, :2] * size, centre + moves[:, 2:] * size], 1)
    by = moves / np.array(about["weights"], np.float32)
    middle = centre + by[:, :2] * size
    half = np.exp(np.minimum(by[:, 2:], _LARGEST)) * size / 2
    return np.concatenate([middle - half, middle + half], 1)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def suppressed(boxes: Array, scores: Array, labels: Array, overlap: float) -> Array:
    """Numbers of the boxes, best first, that no better box of their class overlaps by more."""
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    keep = []
    while len(order):
        i, order = order[0], order[1:]
        keep.append(i)
        low, high = (
            np.maximum(boxes[i, :2], boxes[order, :2]),
            np.minimum(boxes[i, 2:], boxes[order, 2:]),
        )
        inside = np.clip(high - low, 0, None).prod(1)
        share = inside / np.maximum(area[i] + area[order] - inside, 1e-12)
        order = order[(share <= overlap) | (labels[order] != labels[i])]
    return np.array(keep, np.int64)
