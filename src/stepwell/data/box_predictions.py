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
    is_no_class,
    is_number,
    read_content,
    row_of,
)
from stepwell.types import Boxes


def predictions_for(
    source: Path, images: BoxSet, classes: Sequence[str], known: BoxSet | None = None
) -> list[Boxes | None]:
    """Read boxes of `classes` that another program predicted, of `images` among others.

    Args:
        source: COCO's list of results; a COCO json whose annotations have a "score"; or a folder of
            such files. An entry names its image by "image_id", or by "file_name", a name or the end of
            a path.
        known: labelled images, by whose ids and categories a list of results counts.

    Returns:
        The boxes of each image; None for an image that no file lists.

    Raises:
        ValueError: no such file; it is damaged; an entry has another category, no score in [0, 1], or a
            box that is not finite, reversed or outside of its image; a name may be several images; an
            image has another size than the json says.
    """
    ids, categories = {}, {name: i for i, name in enumerate(classes, 1)}
    if known is not None:
        ids = dict(zip(known.files, known.ids, strict=True))
        categories = dict(zip(known.classes, known.categories, strict=True))
    numbered = replace(
        images,
        ids=tuple(ids.get(file, -1 - i) for i, file in enumerate(images.files)),
        classes=tuple(classes),
        categories=tuple(categories.get(name, -1 - i) for i, name in enumerate(classes)),
    )
    return [
        None if rows is None else boxes_of([row for row in rows if row.area > 0])
        for rows in _predictions(source, numbered)
    ]


def _predictions(source: Path, images: BoxSet) -> list[list[Row] | None]:
    """The predicted boxes of each image; None for one that no file lists."""
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source} holds no .json file of predictions")
    by_id = {id: i for i, id in enumerate(images.ids)}
    names = dict(zip(images.categories, images.classes, strict=True))
    by_name: dict[str, list[int]] = {}
    for i, path in enumerate(images.files):
        by_name.setdefault(path.name, []).append(i)
    rows: dict[int, list[Row]] = {}
    for file in files:
        content = read_content(file)
        file_names, file_ids = names, by_id
        if isinstance(content, dict) and content.keys() >= set(LISTS):
            check_lists(file, content)
            content = _without_no_class(content, images.classes)
            file_names, _ = categories_of(file, content, images.classes)
            entries = {entry["id"]: entry for entry in content["images"] if is_id(entry.get("id"))}
            listed = {id: entry.get("file_name") for id, entry in entries.items()}
            file_ids = _numbers_by_name(file, images, listed, by_name)
            for id, number in file_ids.items():
                check_size(file, images.files[number], images.sizes[number], entries[id])
                rows.setdefault(number, [])
            content = content["annotations"]
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ValueError(f"{file} is no list of COCO results, and no COCO json")
        for entry in content:
            id = entry.get("image_id")
            place = file_ids.get(id) if is_id(id) else None
            if place is None and "file_name" in entry:
                place = _numbers_by_name(file, images, {0: entry["file_name"]}, by_name).get(0)
            if place is None:
                continue
            path = images.files[place]
            score = entry.get("score")
            if score is None:
                raise ValueError(
                    f"{file}: a box of {path.name} has no score, as predictions need: add scores, or "
                    "give boxes that a person drew as --labels"
                )
            if not is_number(score) or not 0 <= score <= 1:
                raise ValueError(
                    f"{file}: a box of {path.name} has the score {score!r:.40}, and scores "
                    "lie between 0 and 1: put it right, or remove the box"
                )
            row = row_of(file, path, images.sizes[place], entry, file_names, images.classes)
            rows.setdefault(place, []).append(row._replace(score=float(score)))
    return [rows.get(i) for i in range(len(images))]


def _without_no_class(content: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A COCO json without the boxes of a background category, unless it is one of `classes`."""
    none = [
        entry.get("id")
        for entry in content["categories"]
        if isinstance(name := entry.get("name"), str) and is_no_class(name) and name not in classes
    ]
    rows = [entry for entry in content["annotations"] if entry.get("category_id") not in none]
    return {**content, "annotations": rows}


def _numbers_by_name(
    file: Path, images: BoxSet, listed: Mapping[Any, Any], by_name: Mapping[str, Sequence[int]]
) -> dict[Any, int]:
    """The number of each image of `listed`, file names by id, among `images`; not of other images.

    A name with folders is of the image whose path ends with it, and of no other: `images` may be a part
    of those that the file was made for. Of an absolute path, which may be of another computer, the end
    counts, with one folder at least. `by_name` has the numbers of images by the last part of their
    paths. ValueError for a name of several images.
    """
    numbers = {}
    for id, name in listed.items():
        parts = [part for part in Path(str(name)).parts if part != ".."]
        same = by_name.get(parts[-1], []) if parts else []
        ends = _ends_with(parts, [(i, Path(abspath(images.files[i])).parts) for i in same])
        if len(ends) > 1:
            raise ValueError(
                f"{file}: image {name!r:.80} may be several images; name it by the end of its path"
            )
        if ends:
            numbers[id] = ends[0]
    return numbers


def _ends_with(parts: Sequence[str], paths: Sequence[tuple[int, tuple[str, ...]]]) -> list[int]:
    """The numbers of the paths that end with `parts`, or if these are absolute, with most of them."""
    if not parts:
        return []
    shortest = 2 if Path(parts[0]).is_absolute() else len(parts)
    for length in range(len(parts), shortest - 1, -1):
        if numbers := [i for i, path in paths if path[-length:] == tuple(parts[-length:])]:
            return numbers
    return []
