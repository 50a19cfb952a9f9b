"""Objects in images on disk or in memory, by a detector."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stepwell.data.box_batches import collated, padded, restored
from stepwell.data.preprocess import Source, open_image, upright_size, whole
from stepwell.nets.predictions import Prediction
from stepwell.ranges import SURE
from stepwell.types import Boxes

if TYPE_CHECKING:
    from stepwell.nets.detection.detector import Detector


class Scaled(NamedTuple):
    """An image as a detector takes it: RGB bytes (height, width, 3), and its own height and width."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]

    @classmethod
    def of(cls, source: Source, longest: int) -> "Scaled":
        """An image with its longer side scaled to `longest`; ValueError names an unreadable one."""
        pixels = whole(source, longest)
        if isinstance(source, np.ndarray):
            return cls(pixels, (source.shape[0], source.shape[1]))
        if isinstance(source, Image.Image):
            return cls(pixels, upright_size(source))
        with open_image(source) as image:
            return cls(pixels, upright_size(image))


def objects_in(
    detector: "Detector", images: Sequence[Scaled], depth: str, min_score: float = SURE
) -> list[Prediction]:
    """A prediction for each image with its `objects`, best first, in pixels of the image itself."""
    answers = [Prediction()] * len(images)
    by_shape = defaultdict(list)  # an image's boxes must not depend on the others' padding
    for i, image in enumerate(images):
        by_shape[padded([image.pixels.shape[:2]])].append(i)
    device = next(detector.parameters()).device
    for alike in by_shape.values():
        batch, sizes = collated([torch.from_numpy(images[i].pixels).permute(2, 0, 1) for i in alike])
        with torch.inference_mode():
            detected = detector.by_depth(batch.to(device), sizes, [depth])[depth]
        for i, boxes, scaled in zip(alike, detected, sizes, strict=True):
            boxes = boxes._replace(boxes=restored(boxes.boxes, scaled, images[i].size)).with_area()
            objects = each_object(
                boxes.chosen(boxes.scores >= min_score), detector.net.card.classes, depth
            )
            answers[i] = Prediction(depth=depth, objects=tuple(objects))
    return answers


def each_object(
    boxes: Boxes, classes: Sequence[str], depth: str, file: Path | None = None
) -> list[Prediction]:
    """A prediction for each box, best first."""
    rows = zip(boxes.boxes.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), strict=True)
    return [
        Prediction(file, classes[label], score, depth=depth, box=tuple(box))
        for box, label, score in rows
    ]
