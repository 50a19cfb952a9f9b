"""Predict the classes of images on disk or in memory, by any network with a card."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn

from stepwell.data.formats import Source, format_of
from stepwell.data.loader import normalise
from stepwell.nets.card import Card
from stepwell.train_mode import check_eval_mode
from stepwell.types import Images

#: Logits of a batch, and for each row the depth or choice that answered.
Answers = tuple[Tensor, list[str]]
#: Images at once.
BATCH = 64


class Prediction(NamedTuple):
    """The most probable classes of one image, or the reason why it could not be read.

    file: the image's path, or the text; None for an image in memory.
    label, probability: of the most probable class.
    depth: the depth that answered, or the choice of a resolution network.
    top: the most probable classes and their probabilities, best first.
    value: the number, by a network that predicts one; `label` is its name.
    box: corners x1, y1, x2, y2 of one object in pixels of the upright image, by a detector. An image
        has a prediction for each object; without any, one whose box is empty.
    objects: of a detector in Python and in a server, which give one prediction for an image: its
        objects, each with a box.
    note: about the input, such as a text that was cut, or a network whose picture is uncertain.
    """

    file: Path | str | None = None
    label: str = ""
    probability: float = 0.0
    error: str = ""
    depth: str = ""
    top: tuple[tuple[str, float], ...] = ()
    value: float | None = None
    box: tuple[float, ...] | None = None
    objects: tuple["Prediction", ...] | None = None
    note: str = ""


class Predicts(nn.Module):
    """A network with a card: images in, classes out."""

    card: Card

    def answers(self, x: Images, depth: str | None = None) -> Answers:
        """Give the logits of prepared images, and for each row the depth or choice that answered."""
        raise NotImplementedError

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a sequence, too
        self, images: Source, *, depth: str | None = None, top: int = 1
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Sequence[Source], *, depth: str | None = None, top: int = 1
    ) -> list[Prediction]: ...

    def predict(
        self, images: Source | Sequence[Source], *, depth: str | None = None, top: int = 1
    ) -> Prediction | list[Prediction]:
        """Classify an image, or several: paths, PIL images, or numpy arrays (height, width, 3).

        Images are prepared as `stepwell predict` does it, and threads may share the network.

        >>> net.predict("photo.jpg", depth="18", top=2).top  # doctest: +SKIP
        (('cat', 0.93), ('dog', 0.05))

        Args:
            depth: the depth that answers, the full net by default. A network that chooses resolutions
                chooses by default, and takes one of its choices or depths.
            top: number of most probable classes in each prediction.

        Raises:
            ValueError: an image cannot be read; there is no such depth, or it was never trained; the
                network is in train mode; its card names no classes.
        """
        sources, single = several(images)
        predicted = [*predictions(self, lambda x: self.answers(x, depth), sources, top=top)]
        return predicted[0] if single else predicted

    def preprocess(self, images: Source | Sequence[Source]) -> Images:
        """Give images (batch, 3, size, size) as this network takes them, on the CPU.

        Orientation (EXIF), 16 bits a channel, palettes and grey are handled; transparency is ignored.
        The shorter side is scaled and the middle cropped. ValueError names an unreadable image.
        """
        check_card(self.card)
        form, (sources, _) = format_of(self.card.drawing), several(images)
        pixels = []
        for number, source in enumerate(sources, 1):
            with _numbered(source, number, len(sources)):
                pixels.append(form.squared(source, self.card.size))
        return normalised(pixels, self.card)


@contextmanager
def _numbered(source: Source, number: int, count: int) -> Iterator[None]:
    """Name an image by its number in a ValueError; the error of a file names the file already."""
    try:
        yield
    except ValueError as error:
        if isinstance(source, str | Path) or count == 1:
            raise
        raise ValueError(f"number {number} of {count}: {error}") from error


def predictions(
    net: Predicts, answers: Callable[[Images], Answers], sources: Sequence[Source], *, top: int = 1,
    batch_size: int = BATCH, skip_unreadable: bool = False,
) -> Iterator[Prediction]:  # fmt: skip
    """Classify images in order, by `answers`; errors as for `Predicts.predict`.

    Args:
        skip_unreadable: give a prediction with the error for an image that cannot be read.
    """
    check_card(net.card)
    if type(top) is not int or top < 1:
        raise ValueError(f"top is a number of classes, 1 or more, not {top!r}")
    check_eval_mode(net)  # a change of the mode here would reach all threads
    form = format_of(net.card.drawing)
    for start in range(0, len(sources), batch_size):
        batch: list[Prediction] = []
        pixels = []
        for number, source in enumerate(sources[start : start + batch_size], start + 1):
            file = Path(source) if isinstance(source, str | Path) else None
            try:
                with _numbered(source, number, len(sources)):
                    squared, note = form.noted(source, net.card.size)
                pixels.append(squared)
                batch.append(Prediction(file, note=note))
            except ValueError as error:
                if not skip_unreadable:
                    raise
                batch.append(Prediction(file, error=str(error)))
        if pixels:
            with torch.inference_mode():
                logits, depths = answers(normalised(pixels, net.card))
            predicted = iter(labelled(logits, depths, net.card, top))
        for prediction in batch:
            if not prediction.error:
                prediction = next(predicted)._replace(file=prediction.file, note=prediction.note)
            yield prediction


def labelled(logits: Tensor, depths: Sequence[str], card: Card, top: int = 1) -> list[Prediction]:
    """Predictions of a batch from its logits, by the classes of a card.

    ValueError if the logits are not finite, or are not as many as the classes.
    """
    if logits.shape[1] != len(card.classes):
        raise ValueError(
            f"the network has {logits.shape[1]} logits, and its card names {len(card.classes)} "
            "classes: give it a card with its own classes"
        )
    check_finite(logits)
    values, order = probabilities(logits, depths, card).sort(dim=1, descending=True, stable=True)
    rows = zip(values[:, :top].tolist(), order[:, :top].tolist(), depths, strict=True)
    predictions = []
    for shares, indices, depth in rows:
        best = tuple(zip((card.classes[i] for i in indices), shares, strict=True))
        predictions.append(Prediction(None, *best[0], depth=depth, top=best))
    return predictions


def probabilities(logits: Tensor, depths: Sequence[str], card: Card) -> Tensor:
    """Softmax of logits (batch, classes), each over the temperature of the depth that answered."""
    temperatures = [card.temperatures.get(depth, 1.0) for depth in depths]
    return (logits / logits.new_tensor(temperatures)[:, None]).softmax(1)


def check_finite(logits: Tensor) -> None:
    """Raise ValueError for logits that are not finite: a class of them would mean nothing."""
    if not logits.isfinite().all():
        raise ValueError(
            "the network's logits are not finite, so its weights are of no use: train it again, or "
            "take an older copy"
        )


def check_card(card: Card) -> None:
    """Check that a card describes a classifier of images; ValueError if not."""
    if card.input != "image":
        texts = "; stepwell.open_network(RUN).net.predict takes texts" * (card.input == "text")
        raise ValueError(f"this network takes {card.input} inputs, not images{texts}")
    if not card.classes or not card.size:
        raise ValueError(
            "this network names no classes or no input size, so it cannot predict: set net.card = "
            "stepwell.Card(classes, size, mean, std)"
        )


def several(images: Source | Sequence[Source]) -> tuple[Sequence[Any], bool]:
    """Give a sequence of images, and whether it was a single one."""
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return [*images], False
    if isinstance(images, Sequence) and not isinstance(images, str):
        return images, False
    return [images], True


def normalised(pixels: Sequence[Any], card: Card) -> Images:
    """Images (batch, 3, size, size) from bytes (size, size, 3) of each."""
    if not pixels:
        return torch.empty(0, 3, card.size, card.size)
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return normalise(batch, card.mean, card.std)
