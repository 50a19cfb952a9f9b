"""The interface between a kind of network and the server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stepwell.data.formats import format_of
from stepwell.nets.predictions import Answers, Prediction, Predicts, check_card, labelled, normalised
from stepwell.train_mode import check_eval_mode
from stepwell.types import Images


@dataclass(frozen=True)
class Served:
    """A network to serve.

    rows: all that can answer, by name. default: the row that `predict` uses by default.
    read: gives the network's input for the bytes of a file and its name, empty if it has none, or for
        a text or a pair of texts; ValueError says why it cannot.
    run: predictions for inputs at a row, with a number of classes for each.
    example: an input to measure times with.
    about: by row, known numbers: "macs", "params", "accuracy", "accuracy_on".
    row, noun: a row and an input in a word.
    takes: "files" or "texts".
    quick: says of an input that `read` takes about a millisecond at most.
    """

    rows: tuple[str, ...]
    default: str
    read: Callable[..., Any]
    run: Callable[[Sequence[Any], str, int], list[Prediction]]
    example: Any
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    row: str = "depth"
    noun: str = "image"
    takes: str = "files"
    quick: Callable[[Any], bool] = lambda _: False


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
    form = format_of(card.drawing)

    def read(content: bytes, name: str = "") -> np.ndarray:
        return form.decoded(content, card.size, name)

    def run(pixels: Sequence[np.ndarray], row: str, top: int) -> list[Prediction]:
        with torch.inference_mode():
            logits, depths = answers(normalised(pixels, card), row)
        return labelled(logits, depths, card, top)

    noise = np.random.default_rng(0).integers(0, 256, (card.size, card.size, 3), dtype=np.uint8)
    return Served(
        tuple(rows), default, read, run, noise, about, row, form.NOUN,
        quick=lambda content: form.quick(content, card.size),
    )  # fmt: skip
