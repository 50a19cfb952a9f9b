"""The interface between a kind of network and the server, and the server's reader of images."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from stepwell.data.preprocess import UNREADABLE, squared
from stepwell.nets.predictions import Answers, Prediction, Predicts, check_card, labelled, normalised
from stepwell.train_mode import check_eval_mode
from stepwell.types import Images

T = TypeVar("T")
#: Formats that a server decodes; Pillow would run another program for some others.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@dataclass(frozen=True)
class Served:
    """A network to serve.

    rows: all that can answer, by name. default: the row that `predict` uses by default.
    read: gives the network's input for the bytes of a file, or for a text or a pair of texts;
        ValueError says why it cannot.
    run: predictions for inputs at a row, with a number of classes for each.
    example: an input to measure times with.
    about: by row, known numbers: "macs", "params", "accuracy", "accuracy_on".
    row, noun: a row and an input in a word.
    takes: "files" or "texts".
    """

    rows: tuple[str, ...]
    default: str
    read: Callable[[Any], Any]
    run: Callable[[Sequence[Any], str, int], list[Prediction]]
    example: Any
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    row: str = "depth"
    noun: str = "image"
    takes: str = "files"


def serve_images(
    net: Predicts, answers: Callable[[Images, str], Answers], rows: Sequence[str], default: str,
    about: Mapping[str, Mapping[str, Any]], row: str = "depth",
) -> Served:  # fmt: skip
    """A classifier of images to serve.

    Args:
        answers: logits of prepared images at a row, and for each image the depth that answered.

    Raises:
        ValueError: the network is in train mode, or its card names no classes or no input size.
    """
    card = net.card
    check_card(card)
    check_eval_mode(net)

    def read(content: bytes) -> np.ndarray:
        return read_image(content, partial(squared, size=card.size))

    def run(pixels: Sequence[np.ndarray], row: str, top: int) -> list[Prediction]:
        with torch.inference_mode():
            logits, depths = answers(normalised(pixels, card), row)
        return labelled(logits, depths, card, top)

    noise = np.random.default_rng(0).integers(0, 256, (card.size, card.size, 3), dtype=np.uint8)
    return Served(tuple(rows), default, read, run, noise, about, row)


def read_image(content: bytes, form: Callable[[Image.Image], T]) -> T:
    """Decode an image, and give its `form`, such as the pixels of its middle square.

    ValueError if the bytes are no image of `FORMATS`, or of more than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `check_pixels` refuses
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        with image:
            check_pixels(image)
            return form(image)
    except UNREADABLE as error:
        if isinstance(error, ValueError):
            raise
        too_large = isinstance(error, Image.DecompressionBombError)
        reason = "too many pixels" if too_large else f"damaged, or none of {', '.join(FORMATS)}"
        raise ValueError(f"cannot read the image ({reason})") from error


def check_pixels(image: Image.Image) -> None:
    """Raise ValueError for an image of too many pixels, by its header."""
    most = Image.MAX_IMAGE_PIXELS
    width, height = image.size
    if most is not None and width * height > most:
        raise ValueError(
            f"the image has {width} × {height} pixels, and the server takes {most:,}: make it smaller"
        )
