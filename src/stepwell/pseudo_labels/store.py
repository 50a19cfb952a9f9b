"""Boxes that a teacher has predicted, on disk: no image is labelled twice.

A store is a folder with a folder for each teacher and its settings. That one holds `about.json` and
shards: COCO json files with scores, which other tools open. An image is known by its content, so a data
set that grows or moves keeps its boxes. A shard is written whole, so a process may be killed any time.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from stepwell.data.boxes import BoxSet
from stepwell.files import damaged, read_json, write_whole
from stepwell.pseudo_labels.teachers import BoxTeacher
from stepwell.types import Boxes

FORMAT = 1
#: Images of a shard: so many are labelled again, at most, after a process was killed.
SHARD = 64
_REMEDY = "remove it: its images are labelled again"
#: Decimals of coordinates and of scores in a shard.
_PIXELS, _SCORES = 2, 5
#: Shows progress: given a number of steps, a context with a call to make after each.
Progressing = Callable[[int], AbstractContextManager[Callable[[], object]]]


@contextmanager
def _silent(steps: int) -> Iterator[Callable[[], object]]:
    """Show nothing."""
    yield lambda: None


class Store:
    """The boxes of one teacher in a folder below `root`.

    ValueError if `root` is a file, or a shard is damaged.
    """

    def __init__(self, root: Path, teacher: BoxTeacher) -> None:
        if root.exists() and not root.is_dir():
            raise ValueError(f"--store {root} is a file: name a folder")
        self.teacher = teacher
        about = {"format": FORMAT, "fingerprint": teacher.fingerprint, "classes": [*teacher.classes]}
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        self.folder = root / key
        self._about = {**about, "teacher": teacher.name}
        self._known: dict[str, Boxes] = {}
        for file in sorted(self.folder.glob("*.json")):
            if file.name != "about.json":
                self._known |= _boxes_in(file, read_json(file, _REMEDY))

    def __len__(self) -> int:
        """The number of images with known boxes."""
        return len(self._known)

    def boxes(self, images: BoxSet, *, progress: Progressing = _silent) -> list[Boxes]:
        """The boxes of each image; the teacher finds those that are not known yet.

        The next images are read, and the last boxes written, while the teacher runs. `progress` gets
        the number of shards, and gives a call to make after each.
        """
        contents = [content.hex() for content in images.contents]
        unknown = {c: i for i, c in reversed([*enumerate(contents)]) if c not in self._known}
        missing = sorted(unknown.values())
        if not missing:
            return [self._known[content] for content in contents]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "about.json", json.dumps(self._about, indent=1).encode())
        shards = [missing[i : i + SHARD] for i in range(0, len(missing), SHARD)]
        parts = [images.subset(shard) for shard in shards]
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            ahead = reader.submit(self.teacher.load, parts[0])
            written: list[Future[None]] = []
            with progress(len(shards)) as advance:
                for k, (shard, part) in enumerate(zip(shards, parts, strict=True)):
                    loaded = ahead.result()
                    if k + 1 < len(parts):
                        ahead = reader.submit(self.teacher.load, parts[k + 1])
                    found = self.teacher.find(loaded)
                    for last in written:
                        last.result()
                    own = [contents[i] for i in shard]
                    written = [writer.submit(self._keep, part, found, own)]
                    advance()
            for last in written:
                last.result()
        return [self._known[content] for content in contents]

    def _content(
        self, images: BoxSet, found: Sequence[Boxes | None], contents: Sequence[str]
    ) -> dict[str, Any]:
        """A shard as COCO's json; each image also has a hash of its content."""
        classes = self.teacher.classes
        own = images.with_boxes([one or Boxes.of([], []) for one in found])
        for file, boxes in zip(own.files, own.truth, strict=True):
            if not (boxes.boxes.isfinite().all() and ((boxes.scores >= 0) & (boxes.scores <= 1)).all()):
                raise ValueError(
                    f"teacher {self.teacher.name} gives boxes of {file} that are not finite, or scores "
                    "outside of 0 to 1: check its weights, or the names of its outputs"
                )
        ids = tuple(range(1, len(own) + 1))
        categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1) if name]
        rows: list[dict[str, Any]] = []
        for id, boxes in zip(ids, own.truth, strict=True):
            corners, labels, scores = (v.tolist() for v in (boxes.boxes, boxes.labels, boxes.scores))
            for (x1, y1, x2, y2), label, score in zip(corners, labels, scores, strict=True):
                box = [round(value, _PIXELS) for value in (x1, y1, x2 - x1, y2 - y1)]
                if not classes[label] or min(box[2:]) <= 0:
                    continue
                rows.append({
                    "id": len(rows) + 1, "image_id": id, "category_id": label + 1, "bbox": box,
                    "area": round(box[2] * box[3], _PIXELS), "iscrowd": 0,
                    "score": round(score, _SCORES),
                })  # fmt: skip
        listed = [
            {"id": id, "file_name": str(file), "width": w, "height": h, "content": content}
            for id, file, (h, w), content in zip(ids, own.files, own.sizes, contents, strict=True)
        ]
        return {"images": listed, "annotations": rows, "categories": categories}

    def _keep(self, images: BoxSet, found: Sequence[Boxes | None], contents: Sequence[str]) -> None:
        """Write a shard, and take its boxes as if they were read: they are rounded."""
        content = self._content(images, found, contents)
        self._write(contents, content)
        self._known |= _boxes_in(self.folder, content)

    def _write(self, contents: Sequence[str], content: Mapping[str, Any]) -> None:
        name = hashlib.sha256("".join(contents).encode()).hexdigest()[:16]
        write_whole(self.folder / f"{name}.json", json.dumps(content).encode())


def _boxes_in(file: Path, content: Mapping[str, Any]) -> dict[str, Boxes]:
    """The boxes of each image in a shard, by the hash of its content."""
    try:
        hashes = {row["id"]: row["content"] for row in content["images"]}
        rows: dict[int, list[tuple[list[float], int, float]]] = {id: [] for id in hashes}
        for row in content["annotations"]:
            x, y, w, h = row["bbox"]
            box = [x, y, x + w, y + h]
            rows[row["image_id"]].append((box, row["category_id"] - 1, row["score"]))
        return {
            hashes[id]: Boxes.of([r[0] for r in own], [r[1] for r in own], [r[2] for r in own])
            for id, own in rows.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(file, f"{type(error).__name__}: {error}", _REMEDY) from error
