"""Clips for networks that look at frames: a small picture that shows in a few frames of many.

`python -m benchmarks.clips IMAGES OUT` takes class folders (`train/`, `test/`) of small images, such as
CIFAR-10's. In two to four of 16 frames the picture moves over a piece of scikit-learn's photographs;
the others show the piece alone, which drifts. The clips are made, from real parts.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

#: Pixels of a frame and of the picture in it, frames of a clip, and clips of a class in each part.
SIDE, SHOWN, FRAMES, COUNTS = 32, 24, 16, {"train": 500, "test": 300}


def write_clips(images: Path, out: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Write `counts` clips of each class and part below `out`, as WebP without loss.

    The parts take different pictures, and different halves of the photographs.
    """
    photographs = load_sample_images().images
    for part, count in counts.items():
        for folder in sorted(f for f in (images / part).iterdir() if f.is_dir()):
            place = out / part / folder.name
            place.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([seed, *f"{part}/{folder.name}".encode()])
            files = sorted(folder.iterdir())
            for i in rng.permutation(len(files))[:count]:
                with Image.open(files[i]) as picture:
                    first, *others = clip_of(picture, photographs, part == "train", rng)
                first.save(place / f"{files[i].stem}.webp", save_all=True, append_images=others,
                           lossless=True, quality=0, method=0)  # fmt: skip


def clip_of(
    picture: Image.Image, photographs: Any, left_half: bool, rng: np.random.Generator
) -> list[Image.Image]:
    """The frames of a clip: a picture crosses a piece of a photograph, from some frame on."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    middle = photograph.shape[1] // 2
    half = photograph[:, :middle] if left_half else photograph[:, middle:]
    top, left = (int(rng.integers(0, side - SIDE - FRAMES)) for side in half.shape[:2])
    shown = picture.convert("RGB").resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)
    count = int(rng.integers(2, 5))
    begin = int(rng.integers(0, FRAMES - count + 1))
    at, step = rng.integers(0, SIDE - SHOWN + 1, 2), rng.integers(-3, 4, 2)
    frames = []
    for i in range(FRAMES):
        frame = Image.fromarray(half[top : top + SIDE, left + i : left + i + SIDE])
        if begin <= i < begin + count:
            x, y = (at + (i - begin) * step).clip(0, SIDE - SHOWN).tolist()
            frame.paste(shown, (int(x), int(y)))
        frames.append(frame)
    return frames


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("python -m benchmarks.clips IMAGES OUT")
    write_clips(Path(sys.argv[1]), Path(sys.argv[2]), COUNTS)
