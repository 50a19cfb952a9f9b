"""Predictions for image files, by one depth of a trained network or by a cascade of them."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stepwell.data.formats import PHOTOGRAPHS, Format
from stepwell.files import write_whole
from stepwell.nets import NestedNet
from stepwell.nets.decisions.choosing import ChoosingNet
from stepwell.nets.nested.cascade import Cascade
from stepwell.nets.predictions import BATCH, Answers, Prediction, predictions
from stepwell.types import Images


def expand(paths: Sequence[Path], form: Format = PHOTOGRAPHS) -> list[Path]:
    """List files, and every file of a format in folders; ValueError if there is none."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            if not (images := form.files(path)):
                raise ValueError(f"folder {path} holds no {form.NOUN}")
            files += images
        elif path.exists():
            files.append(path)
        else:
            raise ValueError(f"no file or folder {path}")
    if not files:
        raise ValueError(f"name {form.NOUN}s, or folders of {form.NOUN}s, to predict")
    return files


def predict_files(
    net: NestedNet, by: str | Cascade | ChoosingNet, files: Sequence[Path], batch_size: int = BATCH,
    *, top: int = 1,
) -> Iterator[Prediction]:  # fmt: skip
    """Classify image files in order, by `by`; an unreadable file gives its error.

    Errors as for `NestedNet.predict`.
    """

    def answers(x: Images) -> Answers:
        if isinstance(by, str):
            return net.answers(x, by)
        if isinstance(by, ChoosingNet):
            return by.answers(x)
        answer = by(x)
        return answer.logits, [by.depths[i] for i in answer.depth.tolist()]

    if isinstance(by, str):
        net.require_ready(by)
    model = by if isinstance(by, ChoosingNet) else net
    yield from predictions(model, answers, files, top=top, batch_size=batch_size, skip_unreadable=True)


def to_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a CSV file of file, class, probability, depth or choice, and error.

    Columns class_2, probability_2, ... hold the next classes of predictions that have some. Numbers
    have the columns file, number and depth; boxes have x1, y1, x2 and y2 behind the error.
    """
    text = io.StringIO()
    numeric = any(p.value is not None for p in predictions)
    boxes = any(p.box is not None for p in predictions)
    form = _numbers if numeric else _boxes if boxes else _classes
    rows = form(predictions)
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, text.getvalue().encode(errors="surrogateescape"))  # the bytes of odd names


def _numbers(predictions: Sequence[Prediction]) -> Iterator[list[Any]]:
    yield ["file", "number", "depth"]
    for p in predictions:
        yield [p.file, p.value, p.depth]


def _boxes(predictions: Sequence[Prediction]) -> Iterator[list[Any]]:
    yield ["file", "class", "probability", "depth", "error", "x1", "y1", "x2", "y2"]
    for p in predictions:
        corners = [""] * 4 if not p.box else [f"{value:.2f}" for value in p.box]
        probability = f"{p.probability:.6f}" if p.box else ""
        yield [p.file, p.label, probability, p.depth, p.error, *corners]


def _classes(predictions: Sequence[Prediction]) -> Iterator[list[Any]]:
    more = range(1, max((len(p.top) for p in predictions), default=1))
    further = [name for i in more for name in (f"class_{i + 1}", f"probability_{i + 1}")]
    yield ["file", "class", "probability", "depth", "error", *further]
    for p in predictions:
        probability = "" if p.error else f"{p.probability:.6f}"
        next_best = [cell for name, share in p.top[1:] for cell in (name, f"{share:.6f}")]
        yield [p.file, p.label, probability, p.depth, p.error, *next_best]
