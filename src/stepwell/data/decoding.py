"""Image files as RGB bytes of one size; sets over `MEMORY` bytes are decoded batch by batch."""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from stepwell.data.preprocess import LONGEST, UNREADABLE, Source, open_image, squared
from stepwell.measures import some

T = TypeVar("T")
#: Most bytes of a set that is decoded into memory at once.
MEMORY = 2 * 2**30
#: Height and width of images that differ in size, or are no squares.
DIFFERENT = 224
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
#: Number of decoding threads. PIL releases the interpreter; more threads would slow down training.
DECODERS = 2
#: Formats of images from the network; Pillow would run another program for some others.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: Bytes, and pixels, of an image that is decoded in about a millisecond.
SMALL = 2**16
#: Most files of a data set that are opened before training; about 12 s for so many.
CHECKED = 100_000


class Files:
    """Images on disk; each access decodes, resizes and crops them to a square."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = list(paths)
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 3 size size"]:
        """The images at `indices` as bytes; ValueError names unreadable ones."""
        paths = [self.paths[i] for i in indices.tolist()]
        images = each(paths, lambda path: read_image(path, self.size).numpy())
        return torch.from_numpy(np.stack(images))  # torch.stack would take a core from training


def each(paths: Sequence[Path], read: Callable[[Path], Any], noun: str = "image") -> list[Any]:
    """The results of `read` for all files; one ValueError names all files for which it raises one."""

    def attempt(path: Path) -> Any:
        try:
            return read(path)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(DECODERS) as pool:
        results = list(pool.map(attempt, paths))
    bad = {p: e for p, e in zip(paths, results, strict=True) if isinstance(e, ValueError)}
    if len(bad) == 1:
        raise next(iter(bad.values()))
    if bad:
        cause = next(iter(bad.values())).__cause__
        raise ValueError(
            f"cannot read {len(bad)} of {len(paths)} {noun}s, {some(bad)} (the first: {cause}): "
            "replace or remove them"
        )
    return results


def check_files(paths: Sequence[Path]) -> None:
    """Open the `checked` files; ValueError names all that are no images.

    The pixels are not decoded, so some kinds of damage remain unnoticed. A cut off JPEG is named.
    """

    def check(path: Path) -> None:
        try:
            with open_image(path) as image:
                whole = image.format != "JPEG" or _ends_as_jpeg(path)
                image.verify()
            if not whole:  # cut off, or with other bytes behind its end
                read_image(path, 1)
        except UNREADABLE:  # `verify` also refuses some damage that does no harm
            read_image(path, 1)

    each(checked(paths), check)


def checked(paths: Sequence[Path]) -> Sequence[Path]:
    """The files to open before a training: up to `CHECKED`, evenly chosen."""
    return paths[:: max(1, -(-len(paths) // CHECKED))]


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


def pixels_of(paths: Sequence[Path], size: int) -> UInt8[Tensor, "n 3 size size"] | Files:
    """The images, decoded if that fits in memory."""
    lazy = Files(paths, size)
    fits = len(paths) * 3 * size**2 <= MEMORY
    return lazy[torch.arange(len(paths))] if fits else lazy


def own_size(paths: Sequence[Path], usual: int = DIFFERENT) -> int:
    """The side of the images if some, evenly chosen, are equal squares; else `usual`, and a warning.

    For a network whose `usual` size is below 64, larger squares are brought to it as well.
    """
    sides: set[int] = set()
    for path in paths[:: max(1, len(paths) // 50)]:
        with contextlib.suppress(*UNREADABLE), open_image(path) as image:
            sides.update(image.size)
    if len(sides) == 1 and not usual < 64 < max(sides):
        return sides.pop()
    if sides:
        many = f"{min(sides)} to {max(sides)}" if len(sides) > 1 else min(sides)
        whose = ", for which the network is made" if usual < 64 else ""
        warnings.warn(
            f"images have sides of {many} pixels: all are brought to {usual} × {usual}{whose}; --size "
            "says another size",
            stacklevel=2,
        )
    return usual


def read_image(source: Source, size: int) -> UInt8[Tensor, "3 {size} {size}"]:
    """Read an image as bytes, shorter side scaled, middle cropped; ValueError names a bad one."""
    return torch.from_numpy(squared(source, size)).permute(2, 0, 1).contiguous()


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted by path, without hidden files and folders.

    ValueError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"folder {error.filename} cannot be read ({error.strerror}): change its permissions, or "
            "remove it"
        )

    paths = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(paths)


def image_files(folder: Path, suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Every image below `folder`, sorted by path, without hidden files and folders."""
    return [path for path in files_below(folder) if path.suffix.lower() in suffixes]


def decoded(content: bytes, form: Callable[[Image.Image], T]) -> T:
    """Decode an image, and give its `form`, such as the pixels of its middle square.

    ValueError if the bytes are no image of `FORMATS`, or of more than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_pixels` refuses
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        with image:
            _check_pixels(image)
            return form(image)
    except UNREADABLE as error:
        if isinstance(error, ValueError):
            raise
        too_large = isinstance(error, Image.DecompressionBombError)
        reason = "too many pixels" if too_large else f"damaged, or none of {', '.join(FORMATS)}"
        raise ValueError(f"cannot read the image ({reason})") from error


def is_small(content: bytes, size: int) -> bool:
    """Say whether an image is decoded, and its shorter side brought to `size`, in about a millisecond.

    It has few bytes, and by its header few pixels, then, too. Bytes of no image are small.
    """
    if len(content) > SMALL:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            short, long = sorted(image.size)
            scaled = size**2 * min(long / short, LONGEST)
            return short * long <= SMALL and scaled <= 2 * SMALL
    except UNREADABLE:
        return True


def _check_pixels(image: Image.Image) -> None:
    """Raise ValueError for an image of too many pixels, by its header."""
    most = Image.MAX_IMAGE_PIXELS
    width, height = image.size
    if most is not None and width * height > most:
        raise ValueError(
            f"the image has {width} × {height} pixels, and the server takes {most:,}: make it smaller"
        )
