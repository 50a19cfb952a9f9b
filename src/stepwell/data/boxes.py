"""Images with boxes: COCO json beside a folder of images, checked before training.

Boxes are (x1, y1, x2, y2) in pixels of the upright picture, as image viewers show it (EXIF). Classes
are counted from 0 in the order of the categories' ids, which may have holes. A head that needs a
background class adds it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os.path import abspath, isfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from stepwell.data.coco import (
    LISTS,
    Row,
    boxes_of,
    categories_of,
    check_lists,
    check_names,
    check_size,
    is_id,
    is_number_of_entry,
    read_content,
    row_of,
)
from stepwell.data.copies import content_of
from stepwell.data.decoding import check_files, image_files
from stepwell.data.loader import generator_of, seed_of
from stepwell.data.preprocess import open_image, upright_size
from stepwell.measures import some
from stepwell.types import Boxes

#: Pixels that a box may stick out of its image without a note: labelling tools round.
ROUNDING = 1.0


@dataclass(frozen=True)
class BoxSet:
    """Images on disk with their boxes.

    ids: of the images in their json.
    sizes: height and width of each upright picture.
    labelled: False for images without annotations: no boxes says nothing about them.
    categories: ids of the classes in the json.
    known: True for the classes that the boxes of an image tell of; None: all.
    notes: what was repaired or left out, a line each.
    """

    NOUN = "images"

    files: tuple[Path, ...]
    ids: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    truth: tuple[Boxes, ...]
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    labelled: bool = True
    known: Bool[Tensor, "images classes"] | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def boxes(self) -> int:
        """The number of boxes of all images, crowds included."""
        return sum(truth.total for truth in self.truth)

    @property
    def counts(self) -> dict[str, int]:
        """The number of boxes of each class, without crowds."""
        counts = Counter(i for t in self.truth for i in t.labels[~t.crowd].tolist())
        return {name: counts[i] for i, name in enumerate(self.classes)}

    def subset(self, indices: Iterable[int]) -> "BoxSet":
        """The images at `indices`, in that order."""
        chosen = [*indices]
        return replace(
            self,
            files=tuple(self.files[i] for i in chosen),
            ids=tuple(self.ids[i] for i in chosen),
            sizes=tuple(self.sizes[i] for i in chosen),
            truth=tuple(self.truth[i] for i in chosen),
            known=None if self.known is None else self.known[chosen],
            notes=(),
        )

    def joined(self, other: "BoxSet") -> "BoxSet":
        """This set and another of the same classes as one set, with new ids."""
        known = None
        if self.known is not None or other.known is not None:
            every = (torch.ones(len(p), len(p.classes), dtype=torch.bool) for p in (self, other))
            pairs = zip((self.known, other.known), every, strict=True)
            known = torch.cat([whole if own is None else own for own, whole in pairs])
        return replace(
            self, files=self.files + other.files, ids=tuple(range(1, len(self) + len(other) + 1)),
            sizes=self.sizes + other.sizes, truth=self.truth + other.truth, known=known, notes=(),
        )  # fmt: skip

    def split(self, fraction: float) -> tuple["BoxSet", "BoxSet"]:
        """Two parts, the second with about `fraction` of the images; the same at every call.

        Copies of an image stay together. ValueError for less than two images, or a fraction outside of
        (0, 1).
        """
        if not 0 < fraction < 1:
            raise ValueError(f"a part to set aside is a share between 0 and 1, not {fraction}")
        different = [*dict.fromkeys(self.contents)]
        if len(different) < 2:
            raise ValueError(
                f"{some([f.name for f in self.files])} is the only image here, so none can be set "
                "aside: add images; training, validation and test need one each"
            )
        order = torch.randperm(len(different), generator=generator_of(seed_of("aside"))).tolist()
        count = min(max(1, round(fraction * len(different))), len(different) - 1)
        aside = {different[i] for i in order[:count]}
        rows = [content in aside for content in self.contents]
        return (
            self.subset(i for i, out in enumerate(rows) if not out),
            self.subset(i for i, out in enumerate(rows) if out),
        )

    def with_classes(
        self, names: Sequence[str], of: Sequence[int], labelled: Sequence[bool] | None = None
    ) -> "BoxSet":
        """The images with labels of other classes.

        Args:
            names: the other classes.
            of: the number of each own class among them; -1 drops its boxes.
            labelled: True for the classes that the boxes tell of; all by default.
        """
        numbers = torch.tensor([*of])
        truth = []
        for own in self.truth:
            labels = numbers[own.labels]
            truth.append(own._replace(labels=labels).chosen(labels >= 0))
        whole = labelled is None or all(labelled)
        known = None if whole else torch.tensor([labelled]).repeat(len(self), 1)
        categories = tuple(range(1, len(names) + 1))
        return replace(
            self, truth=tuple(truth), classes=tuple(names), categories=categories, known=known
        )

    def with_boxes(self, boxes: Sequence[Boxes]) -> "BoxSet":
        """The images with other boxes, such as predicted ones, one entry an image."""
        if len(boxes) != len(self):
            raise ValueError(f"{len(boxes)} entries of boxes for {len(self)} images")
        return replace(self, truth=tuple(boxes), labelled=True, notes=())

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """`content_of` every image; the files are read once."""
        return tuple(map(content_of, self.files))

    @property
    def fingerprint(self) -> str:
        """A hash of the images and of their boxes."""
        digest = hashlib.sha256(json.dumps([self.classes, self.labelled]).encode())
        for content, truth in zip(self.contents, self.truth, strict=True):
            digest.update(content)
            for values in (truth.boxes, truth.labels, truth.crowd, truth.scores):
                digest.update(values.contiguous().numpy().tobytes())
        if self.known is not None:
            digest.update(self.known.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def coco(self, below: Path | None = None) -> dict[str, Any]:
        """The images and boxes as COCO's json has them; predicted boxes have a "score", too.

        Files are named by their paths below the absolute folder `below`, by default as they were given.
        """
        names = [f if below is None else Path(abspath(f)).relative_to(below) for f in self.files]
        images = [
            {"id": id, "file_name": str(file), "width": w, "height": h}
            for id, file, (h, w) in zip(self.ids, names, self.sizes, strict=True)
        ]
        rows = [
            row for id, truth in zip(self.ids, self.truth, strict=True) for row in self._rows(id, truth)
        ]
        annotations = [{"id": i, **row} for i, row in enumerate(rows, start=1)]
        categories = [
            {"id": id, "name": name} for id, name in zip(self.categories, self.classes, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def judged(self, predictions: Sequence[Boxes]) -> list[Boxes]:
        """The predicted boxes of each image, in order, of the classes that its own boxes tell of."""
        if self.known is None:
            return [*predictions]
        return [own.chosen(row[own.labels]) for own, row in zip(predictions, self.known, strict=True)]

    def results(self, predictions: Sequence[Boxes]) -> list[dict[str, Any]]:
        """Predicted boxes of the images, in order, as COCO's list of results has them."""
        pairs = zip(self.ids, predictions, strict=True)
        rows = (row for id, boxes in pairs for row in self._rows(id, boxes))
        return [{k: row[k] for k in ("image_id", "category_id", "bbox", "score")} for row in rows]

    def _rows(self, image: int, boxes: Boxes) -> list[dict[str, Any]]:
        rows = zip(*(values.tolist() for values in boxes), strict=True)
        return [
            {
                "image_id": image, "category_id": self.categories[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": int(crowd), "score": score,
            }
            for (x1, y1, x2, y2), label, crowd, area, score in rows
        ]  # fmt: skip


def read_boxes(
    file: Path, images: Path, classes: Sequence[str] | None = None, *,
    remedy: str = "add them, or name the folder that holds them with --images",
) -> BoxSet:  # fmt: skip
    """Read a COCO json whose `file_name`s stand below the folder `images`.

    Args:
        classes: those of the training part, by whose order the labels are counted; None: this is it.
        remedy: what to do where images do not exist.

    Raises:
        ValueError: the file is damaged or no COCO json; an image is listed twice, missing, unreadable,
            or of another size than the json says; an annotation has no image or no category; a box is
            not finite, reversed, or outside of its image, or none is of a single object; a category's
            name or id stands twice, or is none of `classes`. The message names the image or the entry.
    """
    content = read_content(file)
    if not isinstance(content, dict) or not content.keys() >= set(LISTS):
        raise ValueError(f"{file} is no COCO json: it needs images, annotations and categories")
    check_lists(file, content)
    listed = _listed(file, content["images"], images, remedy)
    ids = [*listed]
    paths = [*listed.values()]
    if not paths:
        raise ValueError(f"{file} lists no image")
    check_names(paths)
    check_files(paths)
    upright = [_upright_size(path) for path in paths]
    for path, size, entry in zip(paths, upright, content["images"], strict=True):
        check_size(file, path, size, entry)
    numbers = {id: i for i, id in enumerate(ids)}
    names, notes = categories_of(file, content, classes)
    class_names = tuple(classes) if classes is not None else tuple(names.values())
    rows: list[list[Row]] = [[] for _ in ids]
    for entry in content["annotations"]:
        at = numbers.get(entry.get("image_id")) if is_id(entry.get("image_id")) else None
        if at is None:
            raise ValueError(
                f"{file}: annotation {entry.get('id')!r:.40} is of image "
                f"{entry.get('image_id')!r:.40}, which is not listed: remove it, or add the image"
            )
        rows[at].append(row_of(file, paths[at], upright[at], entry, names, class_names))
    notes += _notes(file, images, paths, rows)
    truth = tuple(boxes_of([row for row in own if row.area > 0]) for own in rows)
    categories = {name: id for id, name in names.items()}
    category_ids = tuple(categories.get(name, -1 - i) for i, name in enumerate(class_names))
    part = BoxSet(
        tuple(paths), tuple(ids), tuple(upright), truth, class_names, category_ids, notes=tuple(notes)
    )
    counts = part.counts
    if classes is None and not part.boxes:
        raise ValueError(f"{file} has no box in any image: training needs some")
    if not any(counts.values()):
        raise ValueError(
            f"{file} has crowd regions alone: training needs boxes of single objects"
            if classes is None
            else f"{file} has no box of an object, so nothing can be measured on it: label it, or "
            "remove it"
        )
    if classes is None and (empty := [name for name, count in counts.items() if not count]):
        note = f"{file} has no box of {some(empty)}: a detector will never find one"
        part = replace(part, notes=(*part.notes, note))
    return part


def read_images(folder: str | Path, classes: Sequence[str] = ()) -> BoxSet:
    """Read a folder of images without labels, and all folders in it; ValueError names bad images."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: name a folder of images")
    return unlabelled(image_files(folder), classes, folder)


def unlabelled(files: Sequence[Path], classes: Sequence[str] = (), where: Path | None = None) -> BoxSet:
    """Images without labels, in order of `files`; ValueError names bad ones, or `where` without one."""
    if not files:
        raise ValueError(f"{where} holds no image")
    check_names(files)
    check_files(files)
    none, count = Boxes.of([], []), len(files)
    sizes = tuple(map(_upright_size, files))
    return BoxSet(
        tuple(files), tuple(range(1, count + 1)), sizes, (none,) * count, tuple(classes),
        tuple(range(1, len(classes) + 1)), labelled=False,
    )  # fmt: skip


def _listed(
    file: Path, entries: Sequence[Mapping[str, Any]], images: Path, remedy: str
) -> dict[int, Path]:
    """The path of each image by its id.

    A name counts from `images` or, as some programs write it, from the folder of the json. A name
    without folders may also stand in one of the folders of `images`.
    """
    listed: dict[int, Path] = {}
    names: dict[str, int] = {}
    places: dict[str, str] = {}
    missing = []
    by_name: dict[str, list[Path]] = {}
    for entry in entries:
        id, name = entry.get("id"), entry.get("file_name")
        if not is_number_of_entry(id) or not isinstance(name, str) or not name:
            raise ValueError(f"{file}: image {entry!r:.80} needs an id (a number) and a file_name")
        if id in listed or name in names:
            again = "id" if id in listed else "file"
            raise ValueError(f"{file} lists image {name} (id {id}) twice, by its {again}: remove one")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"{file}: image {name} may lie outside of {images}: name images by their path below it"
            )
        names[name] = id
        path = next((p / name for p in (images, file.parent) if isfile(p / name)), images / name)
        if not isfile(path):  # False, too, for a name that the system cannot have
            if not by_name:
                for one in image_files(images):
                    by_name.setdefault(one.name, []).append(one)
            same = by_name.get(Path(name).name, []) if name == Path(name).name else []
            if len(same) > 1:
                raise ValueError(
                    f"{file}: image {name} may be {same[0]} or {same[1]}: name it by its path "
                    f"below {images}"
                )
            path = same[0] if same else path
            if not same:
                missing.append(path)
        listed[id] = path
        if (place := abspath(path)) in places:
            raise ValueError(
                f"{file} lists image {path} twice, as {places[place]} and as {name}: remove one"
            )
        places[place] = name
    if missing:
        raise ValueError(
            f"{file} lists {len(missing)} of {len(listed)} images that do not exist, {some(missing)}: "
            f"{remedy}"
        )
    return listed


def _notes(file: Path, images: Path, paths: Sequence[Path], rows: Sequence[Sequence[Row]]) -> list[str]:
    """Lines about repaired and left out entries, and about entries that may be forgotten."""
    own = [(path.name, row) for path, of_image in zip(paths, rows, strict=True) for row in of_image]
    no_area = [name for name, row in own if not row.area]
    out = [name for name, row in own if row.clipped > ROUNDING]
    empty = [path.name for path, of_image in zip(paths, rows, strict=True) if not of_image]
    each = Counter((name, row.label, row.box) for name, row in own)
    repeated = [name for (name, *_), count in each.items() for _ in range(count - 1)]
    notes = []
    if no_area:
        notes.append(f"{file}: boxes of no area were left out: {len(no_area)}, of {some(no_area)}")
    if out:
        notes.append(
            f"{file}: boxes beyond their image were cut at its edge: {len(out)}, of {some(out)}"
        )
    if empty:
        count = f"{len(empty)} of {len(paths)} images"
        notes.append(f"{file}: {count} have no box and count as background, {some(empty)}")
    if repeated:
        notes.append(
            f"{file}: {len(repeated)} boxes repeat another one (class and place) and count twice, of "
            f"{some(repeated)}"
        )
    if crowds := sum(row.crowd for _, row in own):
        notes.append(f"{file}: {crowds} crowd regions are neither objects nor background")
    return notes


def unlisted(images: Path, *parts: BoxSet) -> list[Path]:
    """Images below a folder that no part lists."""
    listed = {file.resolve() for part in parts for file in part.files}
    return [file for file in image_files(images) if file.resolve() not in listed]


def _upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image as viewers show it, from its header."""
    with open_image(path) as image:
        return upright_size(image)
