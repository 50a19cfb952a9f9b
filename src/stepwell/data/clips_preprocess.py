"""Clips as a network of Stepwell takes them. Needs numpy and Pillow, and the file for photographs.

    about = json.loads(Path("export.json").read_text())
    clips = preprocess(["clip.gif", "clip.webp"], about)  # (2, 3, size, size), float32

A clip is one picture: its frames stand in rows, as the words of a page. Frames are taken evenly from a
file of several frames (GIF, WebP, APNG, TIFF); `stepwell export` copies this file beside the graphs.
"""

import os
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stepwell.data.preprocess import UNREADABLE, normalised, open_image, squared

#: A clip: its file, or a PIL image of several frames.
Source = str | Path | Image.Image


def preprocess(sources: Sequence[Source], about: Mapping[str, Any]) -> NDArray[np.float32]:
    """Give clips (batch, 3, size, size) for the network whose export.json is `about`.

    ValueError names a clip that cannot be read.
    """
    count, size = about["drawing"]["frames"], about["size"]
    return normalised([sheet(source, count, size) for source in sources], about)


def sheet(source: Source, count: int, size: int) -> NDArray[np.uint8]:
    """Give RGB bytes (size, size, 3) of a clip: `count` frames in rows, each as `squared` gives it.

    ValueError names a clip that cannot be read, or has one frame, or frames of several sizes.
    """
    if isinstance(source, Image.Image):
        return _sheet(source, count, size)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"a clip is a path or a PIL image, not {type(source).__name__}")
    try:
        with open_image(source) as image:
            return _sheet(image, count, size)
    except UNREADABLE as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"no file {source}") from error
        raise ValueError(f"cannot read clip {source} ({error}): replace or remove it") from error


def frames_in(image: Image.Image) -> int:
    """The number of frames of an image file; ValueError for a still image."""
    if (count := getattr(image, "n_frames", 1)) < 2:
        raise ValueError("it has one frame, and a clip needs two or more")
    return int(count)


def _sheet(image: Image.Image, count: int, size: int) -> NDArray[np.uint8]:
    total, across = frames_in(image), isqrt(count)
    side, first = size // across, image.size
    pixels = np.empty((size, size, 3), np.uint8)
    for i in range(count):
        image.seek((2 * i + 1) * total // (2 * count))
        if image.size != first:
            raise ValueError(f"its frames differ in size: {first} and {image.size}")
        top, left = i // across * side, i % across * side
        pixels[top : top + side, left : left + side] = squared(image.copy(), side)
    return pixels
