"""The files of images with boxes: how a folder names its parts, and the flags that name others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from tyro.conf import FlagConversionOff

from stepwell.data.boxes import BoxSet, check_apart, read_boxes, some, unlisted
from stepwell.flags import flag

#: Usual names of the parts.
PARTS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
#: The json inside the folder of a part, as Roboflow writes it.
INSIDE = "_annotations.coco.json"
#: Share of the images that is set aside where there is no test part.
ASIDE = 0.2


@dataclass(frozen=True, kw_only=True)
class BoxFiles:
    """Images with boxes: their files, size and changes.

    Attributes:
        images: folder of the images, if not beside the json files.
        test: COCO json to test on.
        valid: COCO json to choose the epoch by, in place of --val-fraction.
        size: longer side of each image in pixels; images keep their shape.
        flip: mirror half of the training images.
        zoom: smallest scale of a training image; 1: none is scaled.
    """

    TITLE: ClassVar = "data"
    images: Annotated[Path | None, flag("FOLDER", "images/, or beside")] = None
    test: Annotated[Path | None, flag("FILE", "test.json, or a fifth")] = None
    valid: Annotated[Path | None, flag("FILE", "val.json")] = None
    size: Annotated[int, flag("PIXELS")] = 320
    flip: FlagConversionOff[Annotated[bool, flag("{True,False}")]] = True
    zoom: Annotated[float, flag("X")] = 1.0

    def check(self) -> None:
        """Refuse sizes that no detector could use."""
        if not 32 <= self.size <= 4096:
            raise ValueError(f"--size {self.size}: the longer side of images has 32 to 4096 pixels")


class BoxParts(NamedTuple):
    """The parts of images with boxes; `notes`: a line each about what was repaired."""

    train: BoxSet
    test: BoxSet
    validation: BoxSet | None
    notes: tuple[str, ...]


def read_parts(data: Path, files: BoxFiles = BoxFiles()) -> BoxParts:
    """Read the parts of `data`, a COCO json or a folder with some.

    A folder holds train.json, val.json and test.json beside images/; annotations/instances_train.json
    beside train/, as COCO; or a folder a part with `_annotations.coco.json`, as Roboflow. A
    validation part without a test part is the test part.

    Raises:
        ValueError: as for `read_boxes`; no json of a training part; a test or validation image is among
            the training images.
    """
    train_file = data if data.suffix == ".json" else _json_of(data, "train")
    if train_file is None:
        raise ValueError(
            f"{data} holds no train.json, annotations/instances_train*.json or train/{INSIDE}: name a "
            "folder with COCO json, or the json file"
        )
    train = read_boxes(train_file, _images_of(train_file, data, files))
    test_file, valid_file = files.test, files.valid
    if data.is_dir():
        valid_file = valid_file or _json_of(data, "valid")
        test_file = test_file or _json_of(data, "test")
    if test_file is None and files.valid is None:
        test_file, valid_file = valid_file, None
    notes, parts = [*train.notes], []
    for name, file in (("test", test_file), ("validation", valid_file)):
        part = None
        if file is not None:
            part = read_boxes(file, _images_of(file, data, files), train.classes)
            check_apart(train, part, name)
            notes += part.notes
        parts.append(part)
    test, validation = parts
    if test is not None and validation is not None:
        check_apart(validation, test)
    folder = _images_of(train_file, data, files)
    read = [part for part in (train, test, validation) if part is not None]
    if left := unlisted(folder, *read):
        shown = some([file.name for file in left])
        notes.append(f"{folder}: no json lists {len(left)} images, which are left out: {shown}")
    if test is None:
        train, test = train.split(ASIDE)
        notes.append(f"{train_file} has no test part: {len(test)} of its images are set aside for it")
    return BoxParts(train, test, validation, tuple(notes))


def read_test(data: Path, classes: Sequence[str]) -> BoxSet:
    """Other data to measure a detector of `classes` on: a json file, or the test part of a folder.

    Errors as for `read_boxes`.
    """
    file = data if data.suffix == ".json" else _json_of(data, "test") or _json_of(data, "valid")
    if file is None:
        raise ValueError(f"{data} holds no test.json and no val.json: name the COCO json itself")
    return read_boxes(file, _images_of(file, data, BoxFiles()), classes)


def _json_of(data: Path, part: str) -> Path | None:
    """The json of a part of a folder; None without one, ValueError for several."""
    for name in PARTS[part]:
        for file in (data / f"{name}.json", data / name / INSIDE):
            if file.is_file():
                return file
        found = sorted((data / "annotations").glob(f"instances_{name}*.json"))
        if len(found) > 1:
            raise ValueError(f"{data} has {found[0].name} and {found[1].name}: name one with --data")
        if found:
            return found[0]
    return None


def _images_of(file: Path, data: Path, files: BoxFiles) -> Path:
    """The folder of the images that a json lists."""
    if files.images is not None:
        if not files.images.is_dir():
            raise ValueError(f"--images {files.images} is no folder")
        return files.images
    if file.name == INSIDE:
        return file.parent
    name = file.stem.removeprefix("instances_")
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    places = (root / "images" / name, root / name, root / "images", root)
    return next(place for place in places if place.is_dir())
