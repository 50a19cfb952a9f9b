"""Cut the boxes of a detection data set into class folders.

`python -m benchmarks.crops COCO OUT --per-class N`: COCO is a folder with `images` and, as COCO has
them, train.json and maybe val.json and test.json. Boxes of train and val are for training; those of
test, or of val where there is no test, for testing. A crop is the square around a box's middle, as
wide as its longer side and a tenth on each side, moved into the image where it stands out of it. So
studies of images with classes have larger real ones.
"""

import argparse
import json
from collections import Counter
from functools import lru_cache
from pathlib import Path

from PIL import Image

#: Boxes below this many pixels show too little to be told.
LEAST = 16
AROUND = 1.2


def main() -> None:
    """Cut, and say how many of what."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("coco", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-class", type=int, required=True, help="the first N of each class")
    arguments = parser.parse_args()
    named = [arguments.coco / f"{name}.json" for name in ("train", "val", "test")]
    files = [file for file in named if file.exists()]
    if len(files) < 2:
        parser.error(f"{arguments.coco} has no two of train.json, val.json and test.json")
    *others, test = files
    for part, sources in (("train", others), ("test", [test])):
        count: Counter[str] = Counter()
        for source in sources:
            cut(source, arguments.out / part, count, arguments.per_class)
        print(part, dict(count))


def cut(source: Path, out: Path, count: Counter[str], limit: int) -> None:
    """Cut one file's boxes, until each class has `limit`; `count` goes on."""
    document = json.loads(source.read_text())
    names = {c["id"]: c["name"] for c in document["categories"]}
    files = {i["id"]: i["file_name"] for i in document["images"]}
    for box in document["annotations"]:
        name = names[box["category_id"]]
        left, top, width, height = box["bbox"]
        if min(width, height) < LEAST or count[name] == limit:
            continue
        image = opened(source.parent / "images" / files[box["image_id"]])
        side = min(round(AROUND * max(width, height)), *image.size)
        x, y = (
            min(max(round(start + length / 2 - side / 2), 0), extent - side)
            for start, length, extent in zip((left, top), (width, height), image.size, strict=True)
        )
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        image.crop((x, y, x + side, y + side)).save(folder / f"{count[name]:05d}.png")
        count[name] += 1


@lru_cache(1)
def opened(path: Path) -> Image.Image:
    """The image of one box, and of the next ones, which are often in it, too."""
    return Image.open(path).convert("RGB")


if __name__ == "__main__":
    main()
