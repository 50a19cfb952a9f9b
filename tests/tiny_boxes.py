"""Small images with boxes, as COCO json: bright squares and dark circles on noise."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from stepwell.training import Loop

CLASSES = ("square", "disc")
#: A short training on such images.
SHORT = {"net": "fcos/resnet14_s4", "depths": ("8",), "size": 64, "epochs": 3, "batch_size": 8,
         "lr": 5e-3, "flip": False, "loop": Loop(device="cpu", checkpoint_minutes=0.0)}  # fmt: skip


def write_boxes(root: Path, name: str = "train", count: int = 8, seed: int = 0, size=(64, 48)) -> Path:
    """Write `count` images below root/images and root/NAME.json, with category ids 3 and 7."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(1, count + 1):
        pixels = rng.integers(90, 130, (size[1], size[0], 3))
        for x0, which in ((2, 0), (34, 1)):
            side = int(rng.integers(14, 24))
            x, y = x0 + int(rng.integers(0, 6)), int(rng.integers(0, size[1] - side))
            at = pixels[y : y + side, x : x + side]
            yy, xx = np.mgrid[:side, :side] - (side - 1) / 2
            at[(xx**2 + yy**2 <= side**2 / 4) | (which == 0)] = (230, 20)[which]
            annotations.append(
                {"image_id": i, "category_id": (3, 7)[which], "bbox": [x, y, side, side]}
            )
        file = f"{name}-{i}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / file)
        images.append({"id": i, "file_name": file, "width": size[0], "height": size[1]})
    return write_json(root / f"{name}.json", images, annotations)


def write_json(file: Path, images, annotations, categories=None) -> Path:
    """Write a COCO json; annotations get ids and the other usual entries."""
    annotations = [{"id": i, "iscrowd": 0, **a} for i, a in enumerate(annotations, 1)]
    categories = categories or [
        {"id": i, "name": n} for i, n in zip((7, 3), CLASSES[::-1], strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return file


def change(file: Path, **entries) -> Path:
    """Replace entries of a COCO json: a list, or a function of the present one."""
    content = json.loads(file.read_text())
    for name, value in entries.items():
        content[name] = value(content[name]) if callable(value) else value
    file.write_text(json.dumps(content))
    return file
