"""The files of images with boxes: how a folder names its parts, and the flags that name others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import torch
from tyro.conf import FlagConversionOff

from stepwell.data.boxes import BoxSet, read_boxes, unlabelled, unlisted
from stepwell.data.coco import read_content
from stepwell.data.copies import check_apart, content_of, copies_in
from stepwell.data.decoding import image_files
from stepwell.data.loader import generator_of, seed_of
from stepwell.files import write_whole
from stepwell.flags import flag
from stepwell.measures import some

#: Usual names of the parts.
PARTS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
#: The json inside the folder of a part, as Roboflow writes it.
INSIDE = "_annotations.coco.json"
#: The test part of a run, if no file of its data holds it; and its entry for `BoxSet.known`.
KEPT, KNOWN = "test.json", "known"
#: What to do where drawn validation images have no box.
NO_VALIDATION = "name a json with --valid, use a larger --val-fraction, or 0"
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
    """The parts of images with boxes.

    notes: a line each about what was repaired. drawn: no file holds the test part.
    """

    train: BoxSet
    test: BoxSet
    validation: BoxSet | None
    notes: tuple[str, ...]
    drawn: bool = False


def read_parts(data: Path, files: BoxFiles = BoxFiles()) -> BoxParts:
    """Read the parts of `data`, a COCO json or a folder with some.

    A folder holds train.json, val.json and test.json beside images/; annotations/instances_train.json
    beside train/, as COCO; or a folder a part with `_annotations.coco.json`, as Roboflow. A
    validation part without a test part is the test part.

    Raises:
        ValueError: as for `read_boxes`; no json of a training part; a test or validation image is among
            the training images; the images set aside for testing have no box.
    """
    train_file = data if data.suffix == ".json" else _json_of(data, "train")
    if train_file is None:
        raise ValueError(
            f"{data} holds no train.json, annotations/instances_train*.json or train/{INSIDE}: name a "
            "folder with COCO json, or the json file"
        )
    train = read_boxes(train_file, _images_of(train_file, data, files))
    test, validation = _measured_parts(data, files, train.classes)
    notes = [note for part in (train, test, validation) if part is not None for note in part.notes]
    check_apart({"training": train, "validation": validation, "test": test})
    notes += copies_in(train_file, train)
    folder = _images_of(train_file, data, files)
    read = [part for part in (train, test, validation) if part is not None]
    if left := unlisted(folder, *read):
        shown = some([file.name for file in left])
        notes.append(f"{folder}: no json lists {len(left)} images, which are left out: {shown}")
    drawn = test is None
    if test is None:
        train, test = train.split(ASIDE)
        check_objects(test, "testing", "name a json with --test, or label more images")
        notes.append(f"{train_file} has no test part: {len(test)} of its images are set aside for it")
    return BoxParts(train, test, validation, tuple(notes), drawn)


def check_objects(part: BoxSet, purpose: str, remedy: str) -> None:
    """Raise ValueError for images that were set aside and have no box to find."""
    if not any(part.counts.values()):
        raise ValueError(
            f"the {len(part)} images set aside for {purpose} have no box, so nothing can be measured "
            f"on them: {remedy}"
        )


def _measured_parts(
    data: Path, files: BoxFiles, classes: Sequence[str]
) -> tuple[BoxSet | None, BoxSet | None]:
    """The test and validation parts that flags name, or that a folder holds."""
    test, validation = files.test, files.valid
    if data.is_dir():
        test, validation = test or _json_of(data, "test"), validation or _json_of(data, "valid")
    if test is None and files.valid is None:
        test, validation = validation, None

    def part(file: Path | None) -> BoxSet | None:
        return None if file is None else read_boxes(file, _images_of(file, data, files), classes)

    return part(test), part(validation)


def keep_test(run: Path, test: BoxSet) -> None:
    """Write a run's test part, which no file of its data holds, to the run."""
    root = Path(test.files[0].resolve().anchor)
    known = {} if test.known is None else {KNOWN: test.known.tolist()}
    write_whole(run / KEPT, json.dumps(test.coco(root) | known).encode())


def read_kept(run: Path, classes: Sequence[str]) -> BoxSet | None:
    """A run's test part as `keep_test` wrote it; None without. Errors as for `read_boxes`."""
    file = run / KEPT
    if not file.is_file():
        return None
    remedy = "bring them back, or name other images to measure on with --data"
    test = read_boxes(file, Path(file.resolve().anchor), classes, remedy=remedy)
    known = read_content(file).get(KNOWN)
    return test if known is None else replace(test, known=torch.tensor(known, dtype=torch.bool))


def read_test(data: Path, classes: Sequence[str]) -> BoxSet:
    """Other data to measure a detector of `classes` on: a json file, or the test part of a folder.

    Errors as for `read_boxes`.
    """
    file = data if data.suffix == ".json" else _json_of(data, "test") or _json_of(data, "valid")
    if file is None and not data.is_dir():
        raise ValueError(f"no folder {data}: name a folder with a test.json, or a COCO json")
    if file is None:
        raise ValueError(f"{data} holds no test.json and no val.json: name the COCO json itself")
    return read_boxes(file, _images_of(file, data, BoxFiles()), classes)


def _json_of(data: Path, part: str) -> Path | None:
    """The json of a part of a folder; None without one, ValueError for several."""
    for name in PARTS[part]:
        for file in (data / f"{name}.json", data / name / INSIDE):
            if file.is_file():
                return file
        matches = sorted((data / "annotations").glob(f"instances_{name}*.json"))
        if len(matches) > 1:
            one, other, *_ = matches
            raise ValueError(f"{data} has {one.name} and {other.name}: name one with --data")
        if matches:
            return matches[0]
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


class BoxPool(NamedTuple):
    """Images that teachers label, and the parts with labels; no image stands in two of them.

    images: for training, the labelled ones among them, without their labels.
    labelled: the training images with labels; None without labels.
    test, validation: None if there is none; teachers then label a part of `images`.
    notes: a line each about what was repaired or left out.
    """

    images: BoxSet
    labelled: BoxSet | None
    test: BoxSet | None
    validation: BoxSet | None
    notes: tuple[str, ...]


def read_labels(labels: Path, data: Path, files: BoxFiles) -> BoxSet:
    """Read the json of labelled training images; errors as for `read_boxes`."""
    return read_boxes(labels, _images_of(labels, data, files))


def read_pool(
    data: Path, files: BoxFiles, classes: Sequence[str], labelled: BoxSet | None, *,
    fraction: float = 1.0, val_fraction: float = 0.0, seed: int = 0,
) -> BoxPool:  # fmt: skip
    """Read the images that teachers label: those below `data`, and the labelled ones.

    `data` is a folder of images, or one that `read_parts` reads, whose training labels are not read.
    Images of a test or validation part are left out, whatever their names.

    Args:
        classes: the student's.
        labelled: training images with labels of `classes`.
        fraction: share of these that keep their labels; `seed` draws them.
        val_fraction: share of the labels that is set aside, without a validation part.

    Raises:
        ValueError: as for `read_boxes` and `drawn`; there is no image; a test or validation image is
            labelled for training.
    """
    if not data.is_dir():
        raise ValueError(
            f"{data} is a file: name the folder of the images, and a json with --labels"
            if data.is_file()
            else f"no folder {data}: name a folder of images"
        )
    train_file = _json_of(data, "train")
    folder = data if train_file is None else _images_of(train_file, data, files)
    if files.images is not None:
        folder = files.images
    test, validation = _measured_parts(data, files, classes)
    notes = [note for part in (labelled, test, validation) if part is not None for note in part.notes]
    check_apart({"training": labelled, "validation": validation, "test": test})
    if labelled is not None:
        notes += copies_in(data, labelled)
    if labelled is not None and test is None:
        labelled, test = labelled.split(ASIDE)
        check_objects(test, "testing", "name a json with --test, or label more images")
        notes.append(f"there is no test part: {len(test)} of the labelled images are set aside for it")
    if labelled is not None:
        labelled = drawn(labelled, fraction, seed)
    if labelled is not None and validation is None and val_fraction:
        labelled, validation = labelled.split(val_fraction)
        check_objects(validation, "validation", NO_VALIDATION)
    images, left = _unlabelled_of(folder, classes, labelled, test, validation)
    return BoxPool(images, labelled, test, validation, (*notes, *left))


def drawn(images: BoxSet, fraction: float, seed: int) -> BoxSet:
    """A share of the images, drawn by `seed`; all for a fraction of 1.

    ValueError if the share is no image.
    """
    if fraction == 1:
        return images
    count = round(fraction * len(images))
    if not count:
        raise ValueError(
            f"--label-fraction {fraction:g} of {len(images)} labelled images gives no image: use at "
            f"least {1 / max(1, len(images)):.2g}"
        )
    order = torch.randperm(len(images), generator=generator_of(seed_of("labels", seed)))
    return images.subset(sorted(order[:count].tolist()))


def _unlabelled_of(
    folder: Path, classes: Sequence[str], labelled: BoxSet | None, *apart: BoxSet | None
) -> tuple[BoxSet, list[str]]:
    """The images below a folder and the labelled ones, each once, without those of other parts."""
    chosen = {} if labelled is None else dict(zip(labelled.contents, labelled.files, strict=True))
    taken = {
        content: file
        for part in apart
        if part is not None
        for content, file in zip(part.contents, part.files, strict=True)
    }
    twice, elsewhere = [], []
    for file in image_files(folder):
        content = content_of(file)
        if content in taken:
            if file.resolve() != taken[content].resolve():
                elsewhere.append(file.name)
        elif content not in chosen:
            chosen[content] = file
        elif file.resolve() != chosen[content].resolve():
            twice.append(file.name)
    if not chosen:
        besides = " besides those of the test and validation parts" if taken else ""
        raise ValueError(f"{folder} holds no image{besides}: add images for the teachers to label")
    notes = []
    if elsewhere:
        notes.append(
            f"{folder}: {len(elsewhere)} images equal test or validation images under another name, "
            f"and are left out: {some(elsewhere)}"
        )
    if twice:
        notes.append(f"{folder}: {len(twice)} images are there twice, and count once: {some(twice)}")
    return unlabelled(sorted(chosen.values()), classes), notes
