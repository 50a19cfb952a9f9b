"""Clips for networks that look at frames: a handwritten digit that shows in a few frames of many.

`python -m benchmarks.clips OUT` writes class folders. In two to four of 16 frames a digit moves over a
piece of a photograph; the others show the piece alone, which drifts. Digits and photographs are real
ones of scikit-learn, without a download; the clips are made of them. On a quarter of the size, a digit
is a spot: it shows in which frame to look, and not what it is.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.scenes import Parts, as_image, paste, write_parts

#: Pixels of a frame and of the digit in it, frames of a clip, and clips of a class in each part.
SIDE, SHOWN, FRAMES, COUNTS = 32, 14, 16, {"train": 500, "test": 300}


def clip(parts: Parts, number: int, rng: np.random.Generator) -> list[Image.Image]:
    """The frames of a clip: a digit moves over a piece of a photograph, from some frame on."""
    piece = parts.background(SIDE, SIDE + FRAMES, rng)
    ink, colour = parts.ink(number, SHOWN, rng)
    count = int(rng.integers(2, 5))
    begin = int(rng.integers(0, FRAMES - count + 1))
    start, step = rng.integers(0, SIDE - SHOWN + 1, 2), rng.integers(-3, 4, 2)
    frames = []
    for i in range(FRAMES):
        pixels = piece[:, i : i + SIDE].copy()
        if begin <= i < begin + count:
            top, left = (start + (i - begin) * step).clip(0, SIDE - SHOWN).tolist()
            paste(pixels, ink, colour, top, left)
        frames.append(as_image(pixels))
    return frames


def write_clip(parts: Parts, number: int, rng: np.random.Generator, path: Path) -> None:
    """Write a clip as WebP without loss."""
    first, *others = clip(parts, number, rng)
    first.save(path.with_suffix(".webp"), save_all=True, append_images=others, lossless=True,
               quality=0, method=0)  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("python -m benchmarks.clips OUT")
    write_parts(Path(sys.argv[1]), COUNTS, write_clip)
