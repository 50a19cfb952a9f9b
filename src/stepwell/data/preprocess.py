"""Images as a network of Stepwell takes them. Needs numpy and Pillow, nothing else.

    about = json.loads(Path("export.json").read_text())
    images = preprocess(["photo.jpg", "scan.png"], about)  # (2, 3, size, size), float32

`stepwell export` copies this file beside the graphs, and Stepwell prepares its own images by it: both
see the same pixels.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

#: The errors that PIL raises on files that are damaged or no images.
UNREADABLE = (
    OSError, UnidentifiedImageError, SyntaxError, ValueError, TypeError, IndexError, KeyError,
    EOFError, struct.error, zlib.error, MemoryError, OverflowError, Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip
#: Of an image that is longer than this many times its shorter side, the middle part is scaled.
LONGEST = 8
#: Orientations of EXIF that swap height and width.
SWAPPED = (5, 6, 7, 8)
#: An image: its file, a PIL image, or an array (height, width) or (height, width, 3 or 4).
Source = str | Path | Image.Image | NDArray[Any]


def preprocess(sources: Sequence[Source], about: Mapping[str, Any]) -> NDArray[np.float32]:
    """Give images (batch, 3, size, size) for the network whose export.json is `about`.

    ValueError names an image that cannot be read.
    """
    return normalised([squared(source, about["size"]) for source in sources], about)


def normalised(images: Sequence[NDArray[np.uint8]], about: Mapping[str, Any]) -> NDArray[np.float32]:
    """Give RGB bytes (size, size, 3) of images as the network takes them: (batch, 3, size, size)."""
    pixels = np.stack(images).astype(np.float32)
    mean, std = (np.array(about[name], np.float32) * np.float32(255) for name in ("mean", "std"))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))


def squared(source: Source, size: int) -> NDArray[np.uint8]:
    """Give RGB bytes (size, size, 3) of an image: turned upright, shorter side scaled, middle cropped.

    Transparency is ignored. ValueError names an image that cannot be read.
    """
    return _read(source, lambda image: _squared(image, size))


def whole(source: Source, longest: int | None = None) -> NDArray[np.uint8]:
    """Give RGB bytes (height, width, 3) of an image: turned upright, longer side scaled to `longest`.

    Transparency is ignored. ValueError names an image that cannot be read.
    """
    return _read(source, lambda image: _whole(image, longest))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Give height and width of an image as viewers show it, from its header."""
    width, height = image.size
    orientation = None
    with contextlib.suppress(*UNREADABLE):  # damaged EXIF; the pixels are fine
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    return (width, height) if orientation in SWAPPED else (height, width)


def _read(source: Source, form: Callable[[Image.Image], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        if isinstance(source, Image.Image):
            return form(source)
        if isinstance(source, np.ndarray):
            return form(Image.fromarray(source))
        if isinstance(source, (str, os.PathLike)):
            with open_image(source) as image:
                return form(image)
    except UNREADABLE as error:
        if isinstance(source, Image.Image):
            raise ValueError(f"cannot read the image ({error})") from error
        if isinstance(source, np.ndarray):
            raise ValueError(
                f"cannot read an array of {source.dtype} {source.shape} as an image ({error}): give "
                "uint8 (height, width, 3), or uint8, uint16 or float32 (height, width)"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"no image file {source}") from error
        raise ValueError(f"cannot read image {source} ({error}): replace or remove it") from error
    raise ValueError(f"an image is a path, a PIL image or a numpy array, not {type(source).__name__}")


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open a regular file with an image of a safe number of pixels; else one of `UNREADABLE`."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would block
        raise ValueError("it is a folder" if os.path.isdir(path) else "it is no regular file")
    image = Image.open(path)
    try:
        _check_pixels(*image.size)
    except ValueError:
        image.close()
        raise
    return image


def _check_pixels(width: int, height: int) -> None:
    most = Image.MAX_IMAGE_PIXELS
    if not (width and height):
        raise ValueError("it has no pixels")
    if most is not None and width * height > most:
        raise ValueError(
            f"{width} × {height} pixels are more than the {most} that PIL.Image.MAX_IMAGE_PIXELS allows"
        )


def _upright(image: Image.Image) -> Image.Image:
    _check_pixels(*image.size)
    return _as_rgb(ImageOps.exif_transpose(image))


def _whole(image: Image.Image, longest: int | None) -> NDArray[np.uint8]:
    image = _upright(image)
    if longest is not None and max(image.size) != longest:
        scale = longest / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image)


def _squared(image: Image.Image, size: int) -> NDArray[np.uint8]:
    image = _upright(image)
    width, height = (min(side, LONGEST * min(image.size)) for side in image.size)
    if (width, height) != image.size:  # a line of one pixel would grow without bound
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    if (width, height) != (size, size):
        scale = size / min(width, height)
        scaled = max(size, round(width * scale)), max(size, round(height * scale))
        _check_pixels(*scaled)
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.array(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel; PIL would clip the values of images with more, not scale them."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if image.mode == "F":
            full = 1 if high <= 1 else 255
        else:
            full = 255 if image.mode == "I" and high <= 255 else 65535
        if not (low >= 0 and high <= full):
            reach = f"run from {low:g} to {high:g}"
            raise ValueError(f"its values {reach}, and not up to 1, 255 or 65535")
        scaled = values // 257 if full == 65535 else np.rint(values * (255 / full))
        image = Image.fromarray(scaled.astype(np.uint8))
    return image.convert("RGB")
