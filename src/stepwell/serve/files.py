"""Predictions for image files, by one depth of a trained network or by a cascade of them."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stepwell.data import normalise
from stepwell.data.decoding import image_files, read_image
from stepwell.files import write_whole
from stepwell.nets import NestedNet
from stepwell.nets.nested.cascade import Cascade
from stepwell.nets.resolution.chooser import ResolutionNet
from stepwell.train_mode import in_eval_mode
from stepwell.types import Images


class Prediction(NamedTuple):
    """The most probable class of one image, or the reason why it could not be read.

    depth: the depth that answered, or the choice of a resolution network.
    """

    file: Path
    label: str = ""
    probability: float = 0.0
    error: str = ""
    depth: str = ""


def expand(paths: Sequence[Path]) -> list[Path]:
    """List files, and every image in folders; ValueError if there is none."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            if not (images := image_files(path)):
                raise ValueError(f"folder {path} holds no image")
            files += images
        elif path.exists():
            files.append(path)
        else:
            raise ValueError(f"no file or folder {path}")
    if not files:
        raise ValueError("name images, or folders of images, to predict")
    return files


def predict_files(
    net: NestedNet, by: str | Cascade | ResolutionNet, files: Sequence[Path], batch_size: int = 64
) -> Iterator[Prediction]:
    """Classify image files in order, by `by`; an unreadable file gives its error."""
    if isinstance(by, str):
        net.require_ready(by)
    if not net.card.classes:
        raise ValueError("this network names no classes, so it cannot predict: set net.card")
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
            logits, depths = _answers(net, by, x)
            top = iter(zip(*logits.softmax(1).max(1), depths, strict=True))
        for prediction in batch:
            if not prediction.error:
                probability, index, depth = next(top)
                prediction = prediction._replace(
                    label=net.card.classes[int(index)], probability=float(probability), depth=depth
                )
            yield prediction


def as_batch(net: NestedNet, files: Sequence[Path]) -> Images:
    """Read images as a batch, sized and normalised for `net`; ValueError if one cannot be read."""
    images = torch.stack([read_image(file, net.card.size) for file in files])
    return normalise(images, net.card.mean, net.card.std)


def _answers(net: NestedNet, by: str | Cascade | ResolutionNet, x: Tensor) -> tuple[Tensor, list[str]]:
    """Give the logits of a batch, and for each row its depth or choice."""
    with in_eval_mode(net), torch.inference_mode():
        if isinstance(by, str):
            return net(x, by), [by] * len(x)
        if isinstance(by, ResolutionNet):
            answer, names = by.answer(x), by.names
        else:
            answer, names = by(x), by.depths
        return answer.logits, [names[i] for i in answer.depth.tolist()]


def to_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a CSV file of file, class, probability, depth or choice, and error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", "probability", "depth", "error"])
    for p in predictions:
        probability = "" if p.error else f"{p.probability:.6f}"
        writer.writerow([p.file, p.label, probability, p.depth, p.error])
    write_whole(path, text.getvalue().encode())
