"""Predictions for image files, by one depth of a trained network."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from stepwell.cost import measure_latency
from stepwell.data import normalise
from stepwell.data.images import image_files, read_image
from stepwell.files import write_whole
from stepwell.nets import NestedNet


class Prediction(NamedTuple):
    """The most probable class of one image, or why the image could not be read."""

    file: Path
    label: str = ""
    probability: float = 0.0
    error: str = ""


def expand(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, and every image in folders.

    Raises:
        ValueError: a path does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = image_files(path)
            if not found:
                raise ValueError(f"folder {path} holds no image")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise ValueError(f"no file or folder {path}")
    if not files:
        raise ValueError("name images, or folders of images, to predict")
    return files


def predict_files(
    net: NestedNet, depth: str, files: Sequence[Path], batch_size: int = 64
) -> Iterator[Prediction]:
    """Classify image files in order. One that cannot be read gives its error and stops nothing."""
    net.require_ready(depth)
    if not net.card.classes:
        raise ValueError("this network names no classes, so it cannot predict: set net.card")
    net.eval()
    for start in range(0, len(files), batch_size):
        batch: list[Prediction] = []
        images = []
        for file in files[start : start + batch_size]:
            try:
                images.append(read_image(file, net.card.size))
                batch.append(Prediction(file))
            except ValueError as error:
                batch.append(Prediction(file, error=str(error)))
        if images:
            x = normalise(torch.stack(images), net.card.mean, net.card.std)
            with torch.inference_mode():
                top = iter(zip(*net(x, depth).softmax(1).max(1), strict=True))
        for prediction in batch:
            if not prediction.error:
                probability, index = next(top)
                label = net.card.classes[int(index)]
                prediction = prediction._replace(label=label, probability=float(probability))
            yield prediction


def to_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write file, class, probability and error, a line each under a head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", "probability", "error"])
    for p in predictions:
        writer.writerow([p.file, p.label, "" if p.error else f"{p.probability:.6f}", p.error])
    write_whole(path, text.getvalue().encode())


def depth_within(net: NestedNet, budget_ms: float) -> str:
    """The deepest depth whose median time for one image, measured here and now, is in the budget.

    Depths that nobody trained or calibrated do not count.

    Raises:
        ValueError: no depth is fast enough.
    """
    x = torch.zeros(1, 3, net.card.size, net.card.size)
    fastest = float("inf")
    for depth in reversed(net.depths):
        if net.status[depth] == "fresh":
            continue
        plain = net.subnet(depth).eval()
        with torch.inference_mode():
            ms = measure_latency(lambda plain=plain: plain(x), seconds=0.3).ms  # type: ignore[misc]
        if ms <= budget_ms:
            return depth
        fastest = min(fastest, ms)
    raise ValueError(
        f"no depth needs at most {budget_ms} ms an image here; the fastest takes {fastest:.2f} ms"
    )
