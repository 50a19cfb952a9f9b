"""Image files as RGB bytes of one size.

Small sets are decoded into memory once; a set over `MEMORY` bytes is decoded as it is read.
"""

import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

#: Sets that need more bytes than this, decoded, are read from disk batch by batch.
MEMORY = 2 * 2**30
#: Height and width to bring images to that differ, or are no squares.
DIFFERENT = 224
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
#: Two threads decode: PIL lets go of the interpreter, and more would crowd out training.
DECODERS = 2
#: Files that cannot be read are named up to so many.
NAMED_BAD = 3
#: What PIL raises on files that are damaged or no images, in one format or another.
UNREADABLE = (
    OSError, UnidentifiedImageError, SyntaxError, ValueError, TypeError, IndexError, KeyError,
    EOFError, struct.error, zlib.error, MemoryError, OverflowError, Image.DecompressionBombError,
)  # fmt: skip


class Files:
    """Images on disk, decoded, resized and cropped to a square when they are asked for."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = list(paths)
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Bytes (n, 3, size, size) of the images at `indices`; ValueError names unreadable ones."""
        paths = [self.paths[i] for i in indices.tolist()]
        with ThreadPoolExecutor(DECODERS) as pool:
            read = list(pool.map(self._read, paths))
        bad = {p: e for p, e in zip(paths, read, strict=True) if isinstance(e, ValueError)}
        if len(bad) == 1:
            raise next(iter(bad.values()))
        if bad:
            named = ", ".join(map(str, list(bad)[:NAMED_BAD]))
            more = f" and {len(bad) - NAMED_BAD} more" if len(bad) > NAMED_BAD else ""
            cause = next(iter(bad.values())).__cause__
            raise ValueError(
                f"cannot read {len(bad)} of {len(paths)} images, {named}{more} (the first: {cause}): "
                "replace or remove them"
            )
        return torch.from_numpy(np.stack(read))

    def _read(self, path: Path) -> Any:
        """The image, or why it cannot be read, so that one bad file hides no other."""
        try:
            return read_image(path, self.size).numpy()
        except ValueError as error:
            return error


def pixels_of(paths: Sequence[Path], size: int) -> Tensor | Files:
    """The images, decoded if that fits in memory."""
    lazy = Files(paths, size)
    return lazy[torch.arange(len(paths))] if _fits(paths, size) else lazy


def _fits(paths: Sequence[Path], size: int) -> bool:
    return len(paths) * 3 * size**2 <= MEMORY


def own_size(paths: Sequence[Path]) -> int:
    """The side of the images if some, evenly chosen, are squares of one size; else 224, and a warning.

    Raises:
        ValueError: one of these cannot be read, in a set too large to be decoded at once.
    """
    sizes, bad = set(), None
    for path in paths[:: max(1, len(paths) // 50)]:
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except UNREADABLE as error:
            bad = bad or ValueError(f"cannot read image {path} ({error}): replace or remove it")
    sides = {side for size in sizes for side in size}
    side = sides.pop() if len(sides) == 1 else DIFFERENT
    if bad is not None and not _fits(paths, side):
        raise bad
    if sides:
        warnings.warn(
            f"images have sides of {min(sides)} to {max(sides)} pixels: all are brought to {DIFFERENT} "
            f"× {DIFFERENT}; --size says another size",
            stacklevel=2,
        )
    return side


def read_image(path: Path, size: int) -> Tensor:
    """Bytes (3, size, size), shorter side scaled, middle cropped; ValueError for no image, by name."""
    try:
        with Image.open(path) as file:
            image = _as_rgb(ImageOps.exif_transpose(file))
            width, height = image.size
            if (width, height) != (size, size):
                scale = size / min(width, height)
                scaled = max(size, round(width * scale)), max(size, round(height * scale))
                image = image.resize(scaled, Image.Resampling.BILINEAR)
                left, top = (image.width - size) // 2, (image.height - size) // 2
                image = image.crop((left, top, left + size, top + size))
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    except UNREADABLE as error:
        raise ValueError(f"cannot read image {path} ({error}): replace or remove it") from error


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


def image_files(folder: Path) -> list[Path]:
    """Every image below `folder`, sorted by path; hidden files and folders are passed over."""
    images = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
    parts = {p: p.relative_to(folder).parts for p in images}
    return sorted(p for p in parts if not any(part.startswith(".") for part in parts[p]))
