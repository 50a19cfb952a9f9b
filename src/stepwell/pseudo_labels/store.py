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
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
                content = read_json(file, _REMEDY)
                self._known |= _boxes_in(file, content, len(teacher.classes))

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
                    predictions = self.teacher.find(loaded)
                    for last in written:
                        last.result()
                    shard_contents = [contents[i] for i in shard]
                    written = [writer.submit(self._keep, part, predictions, shard_contents)]
                    advance()
            for last in written:
                last.result()
        return [self._known[content] for content in contents]

    def _content(
        self, images: BoxSet, predictions: Sequence[Boxes | None], contents: Sequence[str]
    ) -> dict[str, Any]:
        """A shard as COCO's json; each image also has a hash of its content."""
        classes = self.teacher.classes
        every = [image_boxes or Boxes.of([], []) for image_boxes in predictions]
        counts = [image_boxes.total for image_boxes in every]
        corners, labels, scores = (
            torch.cat([getattr(image_boxes, name) for image_boxes in every]).numpy()
            for name in ("boxes", "labels", "scores")
        )
        number = np.repeat(np.arange(len(every)), counts)
        good = np.isfinite(corners).all(1) & (scores >= 0) & (scores <= 1)
        if not good.all():
            file = images.files[number[~good][0]]
            raise ValueError(
                f"teacher {self.teacher.name} gives boxes of {file} that are not finite, or scores "
                "outside of 0 to 1: check its weights, or the names of its outputs"
            )
        low, high = np.split(corners.astype(np.float64), 2, axis=1)
        boxes = np.round(np.concatenate([low, high - low], 1), _PIXELS)
        areas = np.round(boxes[:, 2:].prod(1), _PIXELS)
        sure = np.round(scores.astype(np.float64), _SCORES)
        named = np.array([bool(name) for name in classes])
        usable = np.flatnonzero(named[labels] & (boxes[:, 2:] > 0).all(1))
        columns = (values[usable].tolist() for values in (number + 1, labels + 1, boxes, areas, sure))
        rows = [
            {"id": id, "image_id": image, "category_id": category, "bbox": box, "area": area,
             "iscrowd": 0, "score": score}
            for id, (image, category, box, area, score) in enumerate(zip(*columns, strict=True), 1)
        ]  # fmt: skip
        categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1) if name]
        listed = [
            {"id": id, "file_name": str(file), "width": w, "height": h, "content": content}
            for id, (file, (h, w), content) in enumerate(
                zip(images.files, images.sizes, contents, strict=True), 1
            )
        ]
        return {"images": listed, "annotations": rows, "categories": categories}

    def _keep(
        self, images: BoxSet, predictions: Sequence[Boxes | None], contents: Sequence[str]
    ) -> None:
        """Write a shard, and take its boxes as if they were read: they are rounded."""
        content = self._content(images, predictions, contents)
        self._write(contents, content)
        self._known |= _boxes_in(self.folder, content, len(self.teacher.classes))

    def _write(self, contents: Sequence[str], content: Mapping[str, Any]) -> None:
        name = hashlib.sha256("".join(contents).encode()).hexdigest()[:16]
        write_whole(self.folder / f"{name}.json", json.dumps(content).encode())


def _boxes_in(file: Path, content: Mapping[str, Any], classes: int) -> dict[str, Boxes]:
    """The boxes of each image in a shard, by the hash of its content; ValueError if it is damaged."""
    try:
        hashes = {row["id"]: row["content"] for row in content["images"]}
        ids, rows = sorted(hashes), sorted(content["annotations"], key=itemgetter("image_id"))
        whose = [row["image_id"] for row in rows]
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        if not np.isfinite(boxes).all() or not hashes.keys() >= {*whose}:
            raise ValueError("a box is not finite, or of no image")
        labels = np.array([row["category_id"] for row in rows], np.int64) - 1
        scores = np.array([row["score"] for row in rows], np.float64)
        if not ((labels >= 0) & (labels < classes)).all():
            raise ValueError("a box is of no category")
        ends = np.searchsorted(np.array(whose, np.int64), ids[1:]).tolist()
        parts = (torch.from_numpy(values).tensor_split(ends) for values in (boxes, labels, scores))
        return {
            hashes[id]: Boxes.of(*columns)
            for id, columns in zip(ids, zip(*parts, strict=True), strict=True)
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(file, f"{type(error).__name__}: {error}", _REMEDY) from error
