"""Images with boxes for any budget: real digits of scikit-learn's set on its real photographs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Side of an image; sides of the digits on it; digits of an image, at most.
SIZE, SIDES, MOST = 64, (14, 25), 4
#: Digits of the set that stand in training images; the others stand in validation and test images.
TRAINING = 1200


def write_composites(
    root: Path, part: str, count: int, *, seed: int = 0, classes: int = 10, shifted: bool = False
) -> Path:
    """Write `count` images below root/images and root/PART.json; gives the json.

    Args:
        part: "train", or another, whose digits are other ones.
        classes: the digits below this.
        shifted: another domain: inverted colours, scaled channels, noise.
    """
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    photographs = load_sample_images().images
    numbers = np.arange(len(digits.target))
    in_part = (numbers < TRAINING) == (part == "train")
    numbers = numbers[in_part & (digits.target < classes)]
    rng = np.random.default_rng([seed, len(part)])
    (root / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for id in range(1, count + 1):
        photograph = photographs[int(rng.integers(len(photographs)))]
        top, left = (int(rng.integers(0, side - SIZE)) for side in photograph.shape[:2])
        pixels = photograph[top : top + SIZE, left : left + SIZE].astype(np.float64)
        taken: list[tuple[int, int, int, int]] = []
        for _ in range(int(rng.integers(1, MOST + 1))):
            number = int(rng.choice(numbers))
            box = _paste(pixels, digits.images[number], taken, rng)
            if box is not None:
                taken.append(box)
                x1, y1, x2, y2 = box
                rows.append({
                    "id": len(rows) + 1, "image_id": id, "iscrowd": 0,
                    "category_id": int(digits.target[number]) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                })  # fmt: skip
        if shifted:
            pixels = (255 - pixels) * rng.uniform(0.6, 1.0, 3) + rng.normal(0, 25, pixels.shape)
        name = f"{part}-{id:05d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / name)
        images.append({"id": id, "file_name": name, "width": SIZE, "height": SIZE})
    categories = [{"id": i + 1, "name": str(i)} for i in range(classes)]
    file = root / f"{part}.json"
    file.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return file


def _paste(
    pixels: NDArray[np.float64], digit: NDArray[np.float64], taken: list[tuple[int, int, int, int]],
    rng: np.random.Generator,
) -> tuple[int, int, int, int] | None:  # fmt: skip
    """Paste a digit where none is yet; its box, tight around the ink; None without a free place."""
    side = int(rng.integers(*SIDES))
    grey = Image.fromarray((digit * 15.9).astype(np.uint8))
    grey = grey.resize((side, side), Image.Resampling.BICUBIC)
    ink = np.asarray(grey, np.float64)[..., None] / 255
    y, x = (ink[..., 0] > 0.3).nonzero()
    colour = rng.uniform(150, 255, 3) if rng.random() < 0.5 else rng.uniform(0, 90, 3)
    for _ in range(10):
        left, top = (int(v) for v in rng.integers(0, SIZE - side, 2))
        x1, y1 = left + int(x.min()), top + int(y.min())
        box = (x1, y1, left + int(x.max()) + 1, top + int(y.max()) + 1)
        if all(box[2] <= b[0] or b[2] <= box[0] or box[3] <= b[1] or b[3] <= box[1] for b in taken):
            area = pixels[top : top + side, left : left + side]
            area[:] = area * (1 - ink) + colour * ink
            return box
    return None


def small_study(folder: Path) -> dict[str, object]:
    """Write composites of three digits into a folder; gives the study's arguments for them."""
    for part, count in (("train", 52), ("val", 8), ("test", 8)):
        write_composites(folder / "composites", part, count, classes=3)
    return {"data": str(folder / "composites"), "size": SIZE, "epochs": 8, "min_score": 0.06}
