"""Boxes that another program predicted: COCO's list of results, or a COCO json with scores."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os.path import abspath
from pathlib import Path
from typing import Any

from stepwell.data.boxes import BoxSet
from stepwell.data.coco import (
    LISTS,
    Row,
    boxes_of,
    categories_of,
    check_lists,
    check_size,
    is_id,
    is_number,
    read_content,
    row_of,
)
from stepwell.types import Boxes


def read_predictions(source: Path, images: BoxSet) -> tuple[Boxes, ...]:
    """Read boxes that another program predicted for `images`, in their order.

    Args:
        source: COCO's list of results; a COCO json whose annotations have a "score"; or a folder of
            such files. An entry names its image by "image_id", or by "file_name", a name or the end of
            a path.

    Raises:
        ValueError: no such file; it is damaged; an entry is of another image or category, has no score
            in [0, 1], or a box that is not finite, reversed or outside of its image; an image has
            another size than the json says.
    """
    found = _predictions(source, images, strict=True)
    return tuple(boxes_of([row for row in own or () if row.area > 0]) for own in found)


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
    ids, categories = {}, {name: i for i, name in enumerate(classes, 1)}
    if known is not None:
        ids = dict(zip(known.files, known.ids, strict=True))
        categories = dict(zip(known.classes, known.categories, strict=True))
    own = replace(
        images,
        ids=tuple(ids.get(file, -1 - i) for i, file in enumerate(images.files)),
        classes=tuple(classes),
        categories=tuple(categories.get(name, -1 - i) for i, name in enumerate(classes)),
    )
    found = _predictions(source, own, strict=False)
    return [None if o is None else boxes_of([row for row in o if row.area > 0]) for o in found]


def _predictions(source: Path, images: BoxSet, *, strict: bool) -> list[list[Row] | None]:
    """The predicted boxes of each image; None for one that no file lists."""
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source} holds no .json file of predictions")
    by_id = {id: i for i, id in enumerate(images.ids)}
    names = dict(zip(images.categories, images.classes, strict=True))
    numbers: dict[str, list[int]] = {}
    for i, path in enumerate(images.files):
        numbers.setdefault(path.name, []).append(i)
    rows: list[list[Row] | None] = [None] * len(images)
    for file in files:
        content = read_content(file)
        own_names, own_ids = names, by_id
        if isinstance(content, dict) and content.keys() >= set(LISTS):
            check_lists(file, content)
            own_names, _ = categories_of(file, content, images.classes)
            entries = {entry["id"]: entry for entry in content["images"] if is_id(entry.get("id"))}
            listed = {id: entry.get("file_name") for id, entry in entries.items()}
            own_ids = _by_name(file, images, listed, numbers, strict=strict)
            for id, at in own_ids.items():
                check_size(file, images.files[at], images.sizes[at], entries[id])
                rows[at] = rows[at] or []
            content = content["annotations"]
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError(f"{file} is no list of COCO results, and no COCO json")
        for entry in content:
            id = entry.get("image_id")
            place = own_ids.get(id) if is_id(id) else None
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
            if not is_number(score) or not 0 <= score <= 1:
                raise ValueError(
                    f"{file}: a box of {images.files[at].name} has the score {score!r:.40}, and scores "
                    "lie between 0 and 1"
                )
            row = row_of(file, images.files[at], images.sizes[at], entry, own_names, images.classes)
            mine = rows[at] or []
            mine.append(row._replace(score=float(score)))
            rows[at] = mine
    return rows


def _by_name(
    file: Path, images: BoxSet, listed: Mapping[Any, Any], names: Mapping[str, Sequence[int]], *,
    strict: bool,
) -> dict[Any, int]:  # fmt: skip
    """The number of each image of `listed`, file names by id, among `images`.

    A name with folders is of the image whose path ends with it, and of no other: `images` may be a part
    of those that the file was made for. Of an absolute path, which may be of another computer, the end
    counts, with one folder at least. `names` has the numbers of images by the last part of their paths.
    ValueError for a name of several images, and, if `strict`, of none.
    """
    found = {}
    for id, name in listed.items():
        parts = [part for part in Path(str(name)).parts if part != ".."]
        same = names.get(parts[-1], []) if parts else []
        ends = _ends_with(parts, [(i, Path(abspath(images.files[i])).parts) for i in same])
        if not ends and not strict:
            continue
        if len(ends) != 1:
            why = "is none of the images: no path ends so" if not ends else "may be several images"
            raise ValueError(f"{file}: image {name!r:.80} {why}; name it by the end of its path")
        found[id] = ends[0]
    return found


def _ends_with(parts: Sequence[str], paths: Sequence[tuple[int, tuple[str, ...]]]) -> list[int]:
    """The numbers of the paths that end with `parts`, or if these are absolute, with most of them."""
    if not parts:
        return []
    shortest = 2 if Path(parts[0]).is_absolute() else len(parts)
    for length in range(len(parts), shortest - 1, -1):
        if found := [i for i, path in paths if path[-length:] == tuple(parts[-length:])]:
            return found
    return []
