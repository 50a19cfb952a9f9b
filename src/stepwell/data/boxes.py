"""Images with boxes: COCO json beside a folder of images, checked before training.

Boxes are (x1, y1, x2, y2) in pixels of the upright picture, as image viewers show it (EXIF). Classes
are counted from 0 in the order of the categories' ids, which may have holes. A head that needs a
background class adds it.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from stepwell.data.decoding import NAMED, check_files, image_files
from stepwell.data.loader import generator_of, seed_of
from stepwell.data.preprocess import open_image, upright_size
from stepwell.files import damaged
from stepwell.types import Boxes

#: Largest json file that is read into memory.
LARGEST = 1 << 30
#: Least side of a box in pixels; a smaller one has no area.
SMALLEST = 0.01
#: Pixels that a box may stick out of its image without a note: labelling tools round.
ROUNDING = 1.0
_BACKGROUND = "background"
#: What a COCO json holds.
_LISTS = ("images", "annotations", "categories")


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
        found = Counter(i for t in self.truth for i in t.labels[~t.crowd].tolist())
        return {name: found[i] for i, name in enumerate(self.classes)}

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

    def split(self, fraction: float) -> tuple["BoxSet", "BoxSet"]:
        """Two parts, the second with about `fraction` of the images; the same at every call.

        ValueError for less than two images, or a fraction outside of (0, 1).
        """
        if not 0 < fraction < 1:
            raise ValueError(f"a part to set aside is a share between 0 and 1, not {fraction}")
        if len(self) < 2:
            raise ValueError(f"{len(self)} image cannot be split in two: add images")
        order = torch.randperm(len(self), generator=generator_of(seed_of("aside"))).tolist()
        count = min(max(1, round(fraction * len(self))), len(self) - 1)
        return self.subset(sorted(order[count:])), self.subset(sorted(order[:count]))

    def with_classes(
        self, names: Sequence[str], of: Sequence[int], told: Sequence[bool] | None = None
    ) -> "BoxSet":
        """The images with labels of other classes.

        Args:
            names: the other classes.
            of: the number of each own class among them; -1 drops its boxes.
            told: True for the classes that the boxes tell of; all by default.
        """
        numbers = torch.tensor([*of])
        truth = []
        for own in self.truth:
            labels = numbers[own.labels]
            truth.append(own._replace(labels=labels).chosen(labels >= 0))
        whole = told is None or all(told)
        known = None if whole else torch.tensor([told]).repeat(len(self), 1)
        categories = tuple(range(1, len(names) + 1))
        return replace(
            self, truth=tuple(truth), classes=tuple(names), categories=categories, known=known
        )

    def with_boxes(self, found: Sequence[Boxes]) -> "BoxSet":
        """The images with other boxes, such as predicted ones, one entry an image."""
        if len(found) != len(self):
            raise ValueError(f"{len(found)} entries of boxes for {len(self)} images")
        return replace(self, truth=tuple(found), labelled=True, notes=())

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """`content_of` every image; the files are read once."""
        return tuple(map(content_of, self.files))

    @property
    def fingerprint(self) -> str:
        """A hash of the images and of their boxes."""
        found = hashlib.sha256(json.dumps([self.classes, self.labelled]).encode())
        for content, truth in zip(self.contents, self.truth, strict=True):
            found.update(content)
            for values in (truth.boxes, truth.labels, truth.crowd, truth.scores):
                found.update(values.contiguous().numpy().tobytes())
        if self.known is not None:
            found.update(self.known.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def coco(self, below: Path | None = None) -> dict[str, Any]:
        """The images and boxes as COCO's json has them; predicted boxes have a "score", too.

        Files are named by their paths below the folder `below`, by default as they were given.
        """
        names = [file if below is None else file.resolve().relative_to(below) for file in self.files]
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

    def results(self, found: Sequence[Boxes]) -> list[dict[str, Any]]:
        """Predicted boxes of the images, in order, as COCO's list of results has them."""
        rows = (row for id, one in zip(self.ids, found, strict=True) for row in self._rows(id, one))
        return [{k: row[k] for k in ("image_id", "category_id", "bbox", "score")} for row in rows]

    def _rows(self, image: int, found: Boxes) -> list[dict[str, Any]]:
        rows = zip(*(values.tolist() for values in found), strict=True)
        return [
            {
                "image_id": image, "category_id": self.categories[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": int(crowd), "score": score,
            }
            for (x1, y1, x2, y2), label, crowd, area, score in rows
        ]  # fmt: skip


def read_boxes(file: Path, images: Path, classes: Sequence[str] | None = None) -> BoxSet:
    """Read a COCO json whose `file_name`s stand below the folder `images`.

    Args:
        classes: those of the training part, by whose order the labels are counted; None: this is it.

    Raises:
        ValueError: the file is damaged or no COCO json; an image is listed twice, missing, unreadable,
            or of another size than the json says; an annotation has no image or no category; a box is
            not finite, reversed, or outside of its image; a category's name or id stands twice, or is
            none of `classes`. The message names the image or the entry.
    """
    content = read_content(file)
    if not isinstance(content, dict) or not content.keys() >= set(_LISTS):
        raise ValueError(f"{file} is no COCO json: it needs images, annotations and categories")
    _check_lists(file, content)
    listed = _listed(file, content["images"], images)
    ids = [*listed]
    paths, sizes = [path for path, _ in listed.values()], [size for _, size in listed.values()]
    if not paths:
        raise ValueError(f"{file} lists no image")
    check_files(paths)
    upright = [_upright_size(path) for path in paths]
    for path, said, own in zip(paths, sizes, upright, strict=True):
        if said is not None and said != own:
            raise ValueError(
                f"{path} has {own[1]} × {own[0]} pixels as viewers show it, and {file} says "
                f"{said[1]} × {said[0]}: its boxes would be of another "
                "picture; put the json or the image right"
            )
    numbers = {id: i for i, id in enumerate(ids)}
    names, notes = _categories(file, content, classes)
    kept = tuple(classes) if classes is not None else tuple(names.values())
    rows: list[list[_Row]] = [[] for _ in ids]
    for entry in content["annotations"]:
        at = numbers.get(entry.get("image_id")) if _hashable(entry.get("image_id")) else None
        if at is None:
            raise ValueError(
                f"{file}: annotation {entry.get('id')!r:.40} is of image "
                f"{entry.get('image_id')!r:.40}, which is not listed: remove it, or add the image"
            )
        rows[at].append(_row(file, paths[at], upright[at], entry, names, kept))
    notes += _notes(file, images, paths, rows)
    truth = tuple(_boxes_of([row for row in own if row.area > 0]) for own in rows)
    categories = {name: id for id, name in names.items()}
    own_ids = tuple(categories.get(name, -1 - i) for i, name in enumerate(kept))
    found = BoxSet(tuple(paths), tuple(ids), tuple(upright), truth, kept, own_ids, notes=tuple(notes))
    if classes is None:
        if not found.boxes:
            raise ValueError(f"{file} has no box in any image: training needs some")
        if empty := [name for name, count in found.counts.items() if not count]:
            note = f"{file} has no box of {some(empty)}: a detector will never find one"
            found = replace(found, notes=(*found.notes, note))
    return found


def read_images(folder: Path, classes: Sequence[str] = ()) -> BoxSet:
    """Read a folder of images without labels, and all folders in it; ValueError names bad images."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: name a folder of images")
    return unlabelled(image_files(folder), classes, folder)


def unlabelled(files: Sequence[Path], classes: Sequence[str] = (), where: Path | None = None) -> BoxSet:
    """Images without labels, in order of `files`; ValueError names bad ones, or `where` without one."""
    if not files:
        raise ValueError(f"{where} holds no image")
    check_files(files)
    none, count = Boxes.of([], []), len(files)
    sizes = tuple(map(_upright_size, files))
    return BoxSet(
        tuple(files), tuple(range(1, count + 1)), sizes, (none,) * count, tuple(classes),
        tuple(range(1, len(classes) + 1)), labelled=False,
    )  # fmt: skip


def read_predictions(source: Path, images: BoxSet) -> tuple[Boxes, ...]:
    """Read boxes that another program predicted for `images`, in their order.

    Args:
        source: COCO's list of results; a COCO json whose annotations have a "score"; or a folder of
            such files. An entry names its image by "image_id", or by "file_name".

    Raises:
        ValueError: no such file; it is damaged; an entry is of another image or category, has no score
            in [0, 1], or a box that is not finite, reversed or outside of its image.
    """
    found = _predictions(source, images, strict=True)
    return tuple(_boxes_of([row for row in own or () if row.area > 0]) for own in found)


def predictions_for(
    source: Path, images: BoxSet, classes: Sequence[str], known: BoxSet | None = None
) -> list[Boxes | None]:
    """Read boxes of `classes` that another program predicted, of `images` among others.

    Args:
        source: as for `read_predictions`.
        known: labelled images, by whose ids and categories a list of results counts.

    Returns:
        The boxes of each image; None for an image that no file lists.

    Raises:
        ValueError: as for `read_predictions`, but for images that are not asked for.
    """
    ids = dict(zip(known.files, known.ids, strict=True)) if known is not None else {}
    own = replace(
        images,
        ids=tuple(ids.get(file, -1 - i) for i, file in enumerate(images.files)),
        classes=tuple(classes),
        categories=known.categories if known is not None else tuple(range(1, len(classes) + 1)),
    )
    found = _predictions(source, own, strict=False)
    return [None if o is None else _boxes_of([row for row in o if row.area > 0]) for o in found]


def _predictions(source: Path, images: BoxSet, *, strict: bool) -> list[list["_Row"] | None]:
    """The predicted boxes of each image; None for one that no file lists."""
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source} holds no .json file of predictions")
    by_id = {id: i for i, id in enumerate(images.ids)}
    names = dict(zip(images.categories, images.classes, strict=False))
    numbers: dict[str, list[int]] = {}
    for i, path in enumerate(images.files):
        numbers.setdefault(path.name, []).append(i)
    rows: list[list[_Row] | None] = [None] * len(images)
    for file in files:
        content = read_content(file)
        own_names, own_ids = names, by_id
        if isinstance(content, dict) and content.keys() >= set(_LISTS):
            _check_lists(file, content)
            own_names, _ = _categories(file, content, images.classes)
            listed = {
                entry["id"]: entry.get("file_name")
                for entry in content["images"]
                if _hashable(entry.get("id"))
            }
            own_ids = _by_name(file, images, listed, numbers, strict=strict)
            for at in own_ids.values():
                rows[at] = rows[at] or []
            content = content["annotations"]
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError(f"{file} is no list of COCO results, and no COCO json")
        for entry in content:
            id = entry.get("image_id")
            place = own_ids.get(id) if _hashable(id) else None
            if place is None and "file_name" in entry:
                listed = {0: entry["file_name"]}
                named = _by_name(file, images, listed, numbers, strict=strict)
                place = next(iter(named.values()), None)
            if place is None and not strict:
                continue
            if place is None:
                raise ValueError(
                    f"{file}: a prediction is of image {entry.get('image_id')!r:.40}, which is not "
                    f"among the {len(images)} images: name the images that it was made for"
                )
            at = place
            score = entry.get("score")
            if not _is_number(score) or not 0 <= score <= 1:
                raise ValueError(
                    f"{file}: a box of {images.files[at].name} has the score {score!r:.40}, which "
                    "is none from 0 to 1"
                )
            row = _row(file, images.files[at], images.sizes[at], entry, own_names, images.classes)
            rows[at] = [*(rows[at] or ()), row._replace(score=float(score))]
    return rows


def check_apart(train: BoxSet, test: BoxSet, part: str = "test") -> None:
    """Raise ValueError if an image of `test` is among those of `train`, under whatever name."""
    known = dict(zip(train.contents, train.files, strict=True))
    for content, file in zip(test.contents, test.files, strict=True):
        if (twin := known.get(content)) is not None:
            raise ValueError(
                f"{part} image {file} is training image {twin} (equal content): remove one of them"
            )


def content_of(file: Path) -> bytes:
    """A hash of a file's content, equal for copies under any name."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, partial(hashlib.blake2b, digest_size=16)).digest()


def read_content(file: Path) -> Any:
    """The content of a json file; ValueError if it is missing, too large or damaged."""
    if not file.is_file():
        raise ValueError(f"no file {file}: name a COCO json")
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file} is larger than {LARGEST >> 20} MiB: split it")
    try:
        return json.loads(file.read_bytes())
    except RecursionError:
        raise damaged(file, "it is nested too deeply", "write it again") from None
    except ValueError as error:
        raise damaged(file, error, "it may be cut off; write it again") from None


def some(names: Sequence[Any]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more


class _Row(NamedTuple):
    """One annotation: `clipped`, by how many pixels it stuck out of its image."""

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float
    score: float
    clipped: float


def _check_lists(file: Path, content: Mapping[str, Any]) -> None:
    for name in _LISTS:
        if not isinstance(content[name], list) or not all(isinstance(e, dict) for e in content[name]):
            raise ValueError(f"{file}: its {name} are no list of entries")


def _listed(
    file: Path, entries: Sequence[Mapping[str, Any]], images: Path
) -> dict[int, tuple[Path, tuple[int, int] | None]]:
    """The path and the size (height, width), if it is said, of each image by its id."""
    listed: dict[int, tuple[Path, tuple[int, int] | None]] = {}
    names: dict[str, int] = {}
    missing = []
    by_name: dict[str, list[Path]] = {}
    for entry in entries:
        id, name = entry.get("id"), entry.get("file_name")
        if type(id) is not int or not isinstance(name, str) or not name:
            raise ValueError(f"{file}: image {entry!r:.80} needs an id (a number) and a file_name")
        if id in listed or name in names:
            again = "id" if id in listed else "file"
            raise ValueError(f"{file} lists image {name} (id {id}) twice, by its {again}: remove one")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{file}: image {name} lies outside of {images}: name it by a path below")
        names[name] = id
        path = images / name
        if not path.is_file():
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
        size = entry.get("height"), entry.get("width")
        said = size if all(type(side) is int and side > 0 for side in size) else None
        listed[id] = path, said  # type: ignore[assignment]
    if missing:
        raise ValueError(
            f"{file} lists {len(missing)} of {len(listed)} images that do not exist, {some(missing)}: "
            "add them, or remove their entries"
        )
    return listed


def _by_name(
    file: Path, images: BoxSet, listed: Mapping[Any, Any], names: Mapping[str, Sequence[int]], *,
    strict: bool,
) -> dict[Any, int]:  # fmt: skip
    """The number of each image of `listed`, file names by id, among `images`.

    `names` has the numbers of images by the last part of their paths. ValueError for a name of several
    images, and, if `strict`, of none.
    """
    found = {}
    for id, name in listed.items():
        same = names.get(Path(str(name)).name, [])
        ends = [i for i in same if str(images.files[i]).endswith(f"/{name}")] if len(same) > 1 else same
        if not ends and not strict:
            continue
        if len(ends) != 1:
            why = "is none of the images" if not ends else "has the name of several images"
            raise ValueError(f"{file}: image {name!r:.80} {why}: name it by its path")
        found[id] = ends[0]
    return found


def _categories(
    file: Path, content: Mapping[str, Any], classes: Sequence[str] | None
) -> tuple[dict[int, str], list[str]]:
    """The name of each category by its id, in the order of ids; and notes."""
    names: dict[int, str] = {}
    for entry in content["categories"]:
        id, name = entry.get("id"), entry.get("name")
        if type(id) is not int or not isinstance(name, str) or not name.strip():
            raise ValueError(f"{file}: category {entry!r:.80} needs an id (a number) and a name")
        if id in names or name in names.values():
            raise ValueError(
                f"{file}: category {name} (id {id}) stands twice, or shares its id: give each its own"
            )
        names[id] = name
    used = {
        entry.get("category_id")
        for entry in content["annotations"]
        if _hashable(entry.get("category_id"))
    }
    notes = []
    if background := [
        i for i, name in names.items() if name.casefold() == _BACKGROUND and i not in used
    ]:
        del names[background[0]]
        notes.append(f"{file}: category {_BACKGROUND} has no box and is no class here: it was left out")
    if not names:
        raise ValueError(f"{file} has no category: a detector needs one or more")
    if classes is not None and (
        unknown := [names[i] for i in names if i in used and names[i] not in classes]
    ):
        raise ValueError(
            f"{file} has boxes of {some(unknown)}, which no training image has: the classes are "
            f"{some(list(classes))}"
        )
    return dict(sorted(names.items())), notes


def _row(
    file: Path, path: Path, size: tuple[int, int], entry: Mapping[str, Any], names: Mapping[int, str],
    classes: Sequence[str],
) -> _Row:  # fmt: skip
    """One annotation of an image of `size`, its box clipped to the image."""
    category: Any = entry.get("category_id")
    box = entry.get("bbox")
    if not _hashable(category) or category not in names:
        raise ValueError(
            f"{file}: a box of {path.name} has category {category!r:.40}, which is not listed"
        )
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(
            f"{file}: a box of {path.name} is {box!r:.80}, not four finite numbers [x, y, "
            "width, height]"
        )
    x, y, width, height = map(float, box)
    shown = f"[{x:g}, {y:g}, {width:g}, {height:g}]"
    if width < 0 or height < 0:
        raise ValueError(
            f"{file}: a box of {path.name} is reversed, {shown} with a negative width or height: write "
            "[x, y, width, height] from its upper left corner"
        )
    high, wide = size
    x1, y1, x2, y2 = max(0.0, x), max(0.0, y), min(float(wide), x + width), min(float(high), y + height)
    if x2 < x1 or y2 < y1 or (width * height > 0 and (x2 <= x1 or y2 <= y1)):
        raise ValueError(
            f"{file}: a box of {path.name}, {shown}, lies outside of its {wide} × {high} pixels: "
            "put it right, or remove it"
        )
    clipped = max(x1 - x, y1 - y, x + width - x2, y + height - y2)
    area: Any = entry.get("area")
    own = (x2 - x1) * (y2 - y1) if min(x2 - x1, y2 - y1) >= SMALLEST else 0.0
    area = float(area) if _is_number(area) and area > 0 and own > 0 else own
    crowd = entry.get("iscrowd", 0) == 1
    return _Row((x1, y1, x2, y2), classes.index(names[category]), crowd, area, 1.0, clipped)


def _boxes_of(rows: Sequence[_Row]) -> Boxes:
    found = Boxes.of([r.box for r in rows], [r.label for r in rows], [r.score for r in rows])
    crowd = torch.tensor([r.crowd for r in rows], dtype=torch.bool)
    return found._replace(crowd=crowd, areas=torch.tensor([r.area for r in rows]))


def _notes(
    file: Path, images: Path, paths: Sequence[Path], rows: Sequence[Sequence[_Row]]
) -> list[str]:
    """Lines about repaired and left out entries, and about entries that may be forgotten."""
    own = [(path.name, row) for path, found in zip(paths, rows, strict=True) for row in found]
    no_area = [name for name, row in own if not row.area]
    out = [name for name, row in own if row.clipped > ROUNDING]
    empty = [path.name for path, found in zip(paths, rows, strict=True) if not found]
    notes = []
    if no_area:
        notes.append(f"{file}: {len(no_area)} boxes of no area were left out, of {some(no_area)}")
    if out:
        notes.append(
            f"{file}: {len(out)} boxes beyond their image were cut at its edge, of {some(out)}"
        )
    if empty:
        count = f"{len(empty)} of {len(paths)} images"
        notes.append(f"{file}: {count} have no box and count as background, {some(empty)}")
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _hashable(value: Any) -> bool:
    return isinstance(value, int | str | float)
