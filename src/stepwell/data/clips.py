"""Clips: files of several frames as pictures, whose frames stand in rows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from stepwell.data import clips_preprocess, preprocess
from stepwell.data.clips_preprocess import frames_in, sheet
from stepwell.data.decoding import MEMORY, checked, decoded, each
from stepwell.data.formats import Format
from stepwell.data.preprocess import UNREADABLE, open_image
from stepwell.ranges import check_numbers

SUFFIXES = {".gif", ".webp", ".png", ".apng", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Clips, of which so many frames are read.

    Attributes:
        frames: number of frames of a clip, a square: 4, 9, 16, ...; taken evenly.
    """

    TITLE: ClassVar = "clip"
    frames: int = 16

    #: The name of a flag that differs from its default; see `data.pictures.flags`.
    changed: ClassVar = ""

    def check(self) -> None:
        """Refuse a number that fills no square; ValueError."""
        check_numbers(vars(self))

    @property
    def record(self) -> dict[str, Any]:
        """The settings as a card records them."""
        return {"format": "clip", "frames": self.frames}


class Clips(Format):
    """Files of several frames (GIF, WebP, APNG, TIFF); ValueError for a record that is none."""

    suffixes: Collection[str] = SUFFIXES
    NOUN: ClassVar = "clip"

    def __init__(self, record: Mapping[str, Any]) -> None:
        count = record.get("frames")
        if record.keys() != {"format", "frames"} or not isinstance(count, int):
            raise ValueError(f"clips cannot have the settings {dict(record)!r:.60}")
        frames = Frames(frames=count)
        frames.check()
        self.record, self.frames, self.across = frames.record, count, isqrt(count)

    def check(self, paths: Sequence[Path]) -> None:
        """Open files before a training; ValueError names stills, and files that are no images."""

        def check(path: Path) -> None:
            try:
                with open_image(path) as image:
                    frames_in(image)
            except UNREADABLE as error:
                raise ValueError(f"cannot read clip {path} ({error}): replace or remove it") from error

        try:
            each(checked(paths), check, "clip")
        except ValueError as error:
            if paths and all(map(_is_still, paths)):
                raise ValueError(
                    f"{paths[0].parent} holds still images, and a clip needs two or more frames: "
                    "`stepwell train glance` takes images"
                ) from error
            raise

    def own_size(self, paths: Sequence[Path], usual: int) -> int:
        """The side of a clip's picture, where the caller names none: frames of their own size.

        Frames that are no equal squares, or larger than those of the usual size, are brought to it.
        """
        sides = set[int]()
        for path in paths[:: max(1, len(paths) // 50)]:
            with open_image(path) as image:
                sides.update(image.size)
        side = sides.pop() * self.across if len(sides) == 1 else usual
        return min(side, usual) // self.across * self.across

    def load(
        self, paths: Sequence[Path], size: int
    ) -> tuple[UInt8[Tensor, "n 3 size size"], dict[str, NDArray[Any]]]:
        """The pictures, in memory; ValueError names unreadable files, or says they are too many."""
        if size % self.across:
            raise ValueError(
                f"a clip of {self.frames} frames has {self.across} in a row, which do not fill {size} "
                f"pixels: use --size {size // self.across * self.across or self.across}"
            )
        if (need := len(paths) * 3 * size**2) > MEMORY:
            raise ValueError(
                f"{len(paths):,} clips of {size} pixels need {need / 2**30:.1f} GiB, more than "
                f"{MEMORY / 2**30:g}: take a smaller --size, or fewer --frames"
            )
        pixels = np.stack(each(paths, lambda path: sheet(path, self.frames, size), "clip"))
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))), {}

    def squared(self, source: Any, size: int) -> NDArray[np.uint8]:
        """The picture (size, size, 3) of one clip; ValueError names an unreadable one."""
        return sheet(source, self.frames, size)

    def decoded(self, content: bytes, size: int, name: str = "") -> NDArray[np.uint8]:
        """The picture of the content of a file; ValueError if it is no clip."""
        return decoded(content, lambda image: sheet(image, self.frames, size))

    def quick(self, content: bytes, size: int) -> bool:
        """Say that a clip takes longer than a millisecond."""
        return False

    def programs(self) -> dict[str, bytes]:
        """The files that prepare clips without Stepwell."""
        own, images = (Path(str(m.__file__)).read_bytes() for m in (clips_preprocess, preprocess))
        return {
            "preprocess.py": own.replace(b"from stepwell.data.preprocess ", b"from photographs "),
            "photographs.py": images,
        }


def _is_still(path: Path) -> bool:
    """Check for an image of one frame."""
    try:
        with open_image(path) as image:
            return getattr(image, "n_frames", 1) == 1
    except UNREADABLE:
        return False
