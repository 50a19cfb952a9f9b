"""Scenes for networks that look at parts of an image: a small picture somewhere on a photograph.

`python -m benchmarks.scenes IMAGES OUT` takes class folders (`train/`, `test/`) of small images, such
as CIFAR-10's, and scikit-learn's two photographs as backgrounds. The scenes are made, from real parts.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

#: Sides of a scene and of the picture on it; pictures of a class in each part.
SIZE, SIDES, COUNTS = 96, (24, 33), {"train": 1000, "test": 500}


def write_scenes(images: Path, out: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Write `counts` scenes of each class and part below `out`.

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
                    scene = scene_of(picture, photographs, part == "train", rng)
                scene.save(place / f"{files[i].stem}.png")


def scene_of(
    picture: Image.Image, photographs: Any, left_half: bool, rng: np.random.Generator
) -> Image.Image:
    """A picture at a random place and size on a piece of a photograph."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    middle = photograph.shape[1] // 2
    half = photograph[:, :middle] if left_half else photograph[:, middle:]
    top, left = (int(rng.integers(0, side - SIZE)) for side in half.shape[:2])
    scene = Image.fromarray(half[top : top + SIZE, left : left + SIZE])
    side = int(rng.integers(*SIDES))
    at = tuple(int(v) for v in rng.integers(0, SIZE - side + 1, 2))
    scene.paste(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), at)
    return scene


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("python -m benchmarks.scenes IMAGES OUT")
    write_scenes(Path(sys.argv[1]), Path(sys.argv[2]), COUNTS)
