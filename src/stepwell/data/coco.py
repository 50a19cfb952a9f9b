"""The entries of a COCO json: categories and annotations, checked one by one."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch

from stepwell.files import damaged
from stepwell.measures import some
from stepwell.types import Boxes

#: Largest json file that is read, and the most memory that its content may take, in bytes.
LARGEST, MEMORY = 1 << 30, 8 << 30
#: Upper bounds in bytes, for CPython 3.11: for a character of ASCII text, of other text, and for the
#: mark of an object, a list, an entry, a key and a string.
ASCII, WIDE, MARKS = 4, 10, {b"{": 360, b"[": 96, b",": 40, b":": 65, b'"': 30}
#: Least side of a box in pixels; a smaller one has no area.
SMALLEST = 0.01
#: Names in a list of categories that stand for no class, in small letters.
NO_CLASS = ("", "__background__", "background", "no person", "n/a")
#: Lists that a COCO json holds.
LISTS = ("images", "annotations", "categories")


def read_content(file: Path) -> Any:
    """The content of a json file; ValueError if it is missing, too large or damaged."""
    if not file.is_file():
        raise ValueError(f"no file {file}: name a COCO json")
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file} is larger than {LARGEST >> 20} MiB: split it")
    content = file.read_bytes()
    if (need := memory_of(content)) > MEMORY:
        raise ValueError(
            f"{file} may take {need / 2**30:.1f} GiB of memory, more than {MEMORY >> 30}: split it"
        )
    try:
        return json.loads(content)
    except RecursionError:
        raise damaged(file, "it is nested too deeply", "write it again") from None
    except ValueError as error:
        raise damaged(file, error, "it may be cut off; write it again") from None


def memory_of(content: bytes) -> int:
    """The most bytes of memory that reading the content of a json file takes."""
    text = ASCII if content.isascii() and rb"\u" not in content else WIDE
    return text * len(content) + sum(content.count(mark) * size for mark, size in MARKS.items())


class Row(NamedTuple):
    """One annotation: `clipped`, by how many pixels it stuck out of its image."""

    box: tuple[float, float, float, float]
    label: int
    crowd: bool
    area: float
    score: float
    clipped: float


def check_lists(file: Path, content: Mapping[str, Any]) -> None:
    """Raise ValueError for a list of COCO's json that is none, or has an entry that is no object."""
    for name in LISTS:
        if not isinstance(content[name], list):
            raise ValueError(f"{file}: its {name} are no list of entries")
        for i, entry in enumerate(content[name]):
            if not isinstance(entry, dict):
                raise ValueError(f"{file}: entry {i} of its {name} is {entry!r:.40}: remove it")


def categories_of(
    file: Path, content: Mapping[str, Any], classes: Sequence[str] | None
) -> tuple[dict[int, str], list[str]]:
    """The name of each category by its id, in the order of ids; and notes."""
    names: dict[int, str] = {}
    for entry in content["categories"]:
        id, name = entry.get("id"), entry.get("name")
        if not is_number_of_entry(id) or not isinstance(name, str) or not name.strip():
            raise ValueError(f"{file}: category {entry!r:.80} needs an id (a number) and a name")
        if id in names or name in names.values():
            raise ValueError(
                f"{file}: category {name} (id {id}) stands twice, or shares its id: give each its own"
            )
        names[id] = name
    used = {
        entry.get("category_id") for entry in content["annotations"] if is_id(entry.get("category_id"))
    }
    notes = []
    for id in [i for i, name in names.items() if is_no_class(name) and i not in used]:
        notes.append(f"{file}: category {names[id]} has no box and is no class here: it was left out")
        del names[id]
    alike: dict[str, list[str]] = {}
    for name in names.values():
        alike.setdefault(" ".join(name.casefold().split()), []).append(name)
    notes += [
        f"{file}: categories {some(list(map(repr, same)))} differ by case or spaces only, and count as "
        "different classes"
        for same in alike.values()
        if len(same) > 1
    ]
    if not names:
        raise ValueError(f"{file} has no category: a detector needs one or more")
    names = {id: _among(name, classes or (), names.values()) for id, name in names.items()}
    if classes is not None and (
        unknown := [names[i] for i in names if i in used and names[i] not in classes]
    ):
        raise ValueError(
            f"{file} has boxes of {some(unknown)}, which no training image has: the classes are "
            f"{some(list(classes))}; rename them, or remove their boxes"
        )
    return dict(sorted(names.items())), notes


def is_no_class(name: str) -> bool:
    """Check whether a category's name stands for no class."""
    return name.strip().casefold() in NO_CLASS


def class_key(name: str) -> str:
    """The form in which names of classes are compared: small letters; spaces, - and _ are alike."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _among(name: str, classes: Sequence[str], others: Collection[str]) -> str:
    """The name of the one class of `classes` that `name` means, if no other category means it."""
    alike = [known for known in classes if class_key(known) == class_key(name)]
    rivals = [other for other in others if class_key(other) == class_key(name)]
    return alike[0] if name not in classes and len(alike) == len(rivals) == 1 else name


def check_names(files: Sequence[Path]) -> None:
    """Raise ValueError for a name of other bytes than UTF-8: a json of boxes could not hold it."""
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of image {str(file)!r} is no UTF-8, so no json of boxes can hold it: "
                "rename it"
            ) from None


def check_size(file: Path, path: Path, size: tuple[int, int], entry: Mapping[str, Any]) -> None:
    """Raise ValueError if an image of `size` has another one in its entry."""
    said = entry.get("height"), entry.get("width")
    if all(type(side) is int and side > 0 for side in said) and said != size:
        raise ValueError(
            f"{path} has {size[1]} × {size[0]} pixels as viewers show it, and {file} says "
            f"{said[1]} × {said[0]}: its boxes would be of another picture; put the json or the image "
            "right"
        )


def row_of(
    file: Path, path: Path, size: tuple[int, int], entry: Mapping[str, Any], names: Mapping[int, str],
    classes: Sequence[str],
) -> Row:  # fmt: skip
    """One annotation of an image of `size`, its box clipped to the image."""
    category: Any = entry.get("category_id")
    box = entry.get("bbox")
    if not is_id(category) or category not in names:
        raise ValueError(
            f"{file}: a box of {path.name} has category {category!r:.40}, which is not listed: put it "
            f"right, or list it; the ids under categories are {some(list(names))}"
        )
    if box is None:
        raise ValueError(f"{file}: an annotation of {path.name} has no bbox: add it, or remove it")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(
            f"{file}: a box of {path.name} is {box!r:.80}, not four finite numbers [x, y, "
            "width, height]: put it right, or remove it"
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
    area = float(area) if is_number(area) and area > 0 and own > 0 else own
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise ValueError(f"{file}: a box of {path.name} has iscrowd {crowd!r:.20}: 0 or 1 is meant")
    return Row((x1, y1, x2, y2), classes.index(names[category]), bool(crowd), area, 1.0, clipped)


def boxes_of(rows: Sequence[Row]) -> Boxes:
    """The boxes of one image."""
    boxes = Boxes.of([r.box for r in rows], [r.label for r in rows], [r.score for r in rows])
    crowd = torch.tensor([r.crowd for r in rows], dtype=torch.bool)
    return boxes._replace(crowd=crowd, areas=torch.tensor([r.area for r in rows]))


def is_number(value: Any) -> bool:
    """Check whether a value of a json file is a number that a float can hold."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # a whole number may be larger than any float


def is_number_of_entry(value: Any) -> TypeGuard[int]:
    """Check whether a value can number an entry of a json: a whole number of 64 bits."""
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def is_id(value: Any) -> bool:
    """Check whether a value can be an image's id: a number or a text, which can be looked up."""
    return isinstance(value, int | str | float) and not isinstance(value, bool)
