"""Scenes for networks that look at parts of an image: a handwritten digit somewhere on a photograph.

`python -m benchmarks.scenes OUT` writes class folders, and close-ups of the size of a glance below
OUT/close, for the encoders that a network of glances starts from. `--digits 8 10` makes smaller digits:
at two thirds of the size they have fewer pixels than the 8×8 that they are drawn from. The digits and
the photographs are real ones of scikit-learn, without a download; the scenes are made of them: light
ink on darkened photographs. On a third of the size, a digit is a spot: it shows where to look, and not
what it is.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from stepwell.data import load_images

#: Sides of a scene, of a close-up and of the digit on them (from, to), and scenes of a class by part.
SIZE, CLOSE, SIDES, COUNTS = 96, 32, (14, 17), {"train": 600, "test": 300}


class Parts:
    """The digits and photographs of one part of the data; the parts share none.

    The digits are those of the same part of Stepwell's data set `digits`, so that a network trained on
    it has seen none of the test part.
    """

    def __init__(self, part: str) -> None:
        splits = load_images("digits")
        digits = splits.train if part == "train" else splits.test
        self.digits = {
            digit: digits.pixels[digits.labels == digit][:, 0].numpy() for digit in range(10)
        }
        halves = []
        for photograph in load_sample_images().images:
            middle = photograph.shape[1] // 2
            halves.append(photograph[:, :middle] if part == "train" else photograph[:, middle:])
        self.photographs = halves

    def background(self, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """A piece of a photograph, at half of its brightness."""
        photograph = self.photographs[int(rng.integers(len(self.photographs)))]
        top = int(rng.integers(0, photograph.shape[0] - height + 1))
        left = int(rng.integers(0, photograph.shape[1] - width + 1))
        return photograph[top : top + height, left : left + width] / 2

    def ink(
        self, number: int, side: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The ink (side, side, 1) of a digit, from 0 to 1, and its light colour."""
        images = self.digits[number]
        grey = Image.fromarray(images[int(rng.integers(len(images)))])
        scaled = np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC), np.float64)
        return scaled[..., None] / 255, rng.uniform(180, 255, 3)


def paste(
    pixels: NDArray[np.float64], ink: NDArray[np.float64], colour: NDArray[np.float64], top: int,
    left: int,
) -> None:  # fmt: skip
    """Draw ink onto pixels."""
    area = pixels[top : top + len(ink), left : left + len(ink)]
    area[:] = area * (1 - ink) + colour * ink


def as_image(pixels: NDArray[np.float64]) -> Image.Image:
    """Pixels as a picture."""
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_parts(
    out: Path, counts: dict[str, int], write: Callable[[Parts, int, np.random.Generator, Path], None],
    seed: int = 0,
) -> None:  # fmt: skip
    """Write `counts` files of each digit and part below `out`; `write` gets a path without a suffix."""
    for part, count in counts.items():
        parts = Parts(part)
        for number in range(10):
            place = out / part / str(number)
            place.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([seed, number, *part.encode()])
            for i in range(count):
                write(parts, number, rng, place / f"{i:04d}")


def write_scene(
    parts: Parts, number: int, rng: np.random.Generator, path: Path, size: int = SIZE,
    sides: tuple[int, int] = SIDES,
) -> None:  # fmt: skip
    """Write a digit at a random place and size."""
    pixels = parts.background(size, size, rng)
    ink, colour = parts.ink(number, int(rng.integers(*sides, endpoint=True)), rng)
    top, left = (int(v) for v in rng.integers(0, size - len(ink) + 1, 2))
    paste(pixels, ink, colour, top, left)
    as_image(pixels).save(path.with_suffix(".png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--digits", type=int, nargs=2, default=SIDES, metavar=("FROM", "TO"))
    given = parser.parse_args()
    scene = partial(write_scene, sides=tuple(given.digits))
    write_parts(given.out, COUNTS, scene)
    write_parts(given.out / "close", COUNTS, partial(scene, size=CLOSE), seed=1)
