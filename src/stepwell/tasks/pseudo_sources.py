"""What a run with pseudo labels opens before it trains: teachers, their merged classes, and images."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepwell.data.box_files import BoxFiles, BoxPool, read_labels, read_pool
from stepwell.data.boxes import BoxSet
from stepwell.measures import some
from stepwell.nets.detection.detector import Detector
from stepwell.pseudo_labels.categories import Categories, merged
from stepwell.pseudo_labels.make import Making, Thresholds
from stepwell.pseudo_labels.teachers import BoxTeacher, open_box_teachers
from stepwell.training.optimisation import Optimisation


@dataclass(frozen=True)
class Sources:
    """Teachers, merged classes, and images before the teachers have labelled them."""

    teachers: Sequence[BoxTeacher]
    categories: Categories
    pool: BoxPool
    making: Making

    @property
    def names(self) -> list[str]:
        """The names of the teachers."""
        return [teacher.name for teacher in self.teachers]


def open_sources(
    data: str, names: Sequence[str], labels: Path | None, fraction: float, files: BoxFiles,
    training: Optimisation, *, size: int | None = None,
    renames: Sequence[str] = (), classes: Sequence[str] = (), **how: Any,
) -> Sources:  # fmt: skip
    """Open teachers and images; every possible mistake in them is told before any training.

    Args:
        names: of the teachers.
        fraction: share of the labels that are used.
        how: how labels are made, as `Making` has it; thresholds and calibration may be None.

    Raises:
        ValueError, FileNotFoundError: as for `open_box_teachers`, `merged` and `read_pool`; labels of a
            class that is not trained.
        ImportError: an extra is missing.
    """
    if labels is None and fraction != 1:
        raise ValueError("--label-fraction is a share of --labels: name a file there")
    making = _settled(labels is not None, len(names), **how)
    low, high = making.ignore_from, making.min_score
    if making.thresholds == "fixed" and low is not None and low > high:
        raise ValueError(
            f"--ignore-from {low:g} lies above --min-score {high:g}: boxes between both are left open, "
            "so it must be the lower one"
        )
    folder = Path(data)
    labelled = None if labels is None else read_labels(labels, folder, files)
    teachers = open_box_teachers(names, size=size, known=labelled)
    listed = {teacher.name: teacher.classes for teacher in teachers}
    own = () if labelled is None else labelled.classes
    categories = merged(listed, own, renames=renames, chosen=classes)
    if labelled is not None:
        labelled = _of_classes(labelled, categories, labels)
    pool = read_pool(
        folder, files, categories.names, labelled, fraction=fraction,
        val_fraction=training.val_fraction, seed=training.seed,
    )  # fmt: skip
    pool, of_files = _listed(teachers, pool)
    for note in (*categories.notes, *pool.notes, *of_files):
        warnings.warn(note, stacklevel=3)
    return Sources(teachers, categories, pool, making)


def _listed(teachers: Sequence[BoxTeacher], pool: BoxPool) -> tuple[BoxPool, list[str]]:
    """Leave out the images to label that no teacher says anything about; with lines that say so.

    A file of predictions is read against all images, because a name may stand in several parts.
    ValueError for a file that lists none of them.
    """
    notes = []
    said = torch.zeros(len(pool.images), dtype=torch.bool)
    for teacher in teachers:
        if teacher.keeps:
            said[:] = True
            continue
        every = pool.images
        for part in (pool.test, pool.validation):
            every = every if part is None else every.joined(part)
        listed = torch.tensor([boxes is not None for boxes in teacher.find(every)], dtype=torch.bool)
        said |= listed[: len(said)]
        missing = [file.name for file, there in zip(every.files, listed, strict=True) if not there]
        if len(missing) == len(every):
            raise ValueError(
                f"{teacher.name} lists none of the {len(every)} images, such as {every.files[0]}: "
                "write their names there, or the ends of their paths"
            )
        if missing:
            notes.append(
                f"{teacher.name} lists {len(every) - len(missing)} of {len(every)} images and has no "
                f"predictions for the others, {some(missing)}"
            )
    if not said.any():
        raise ValueError(
            "the predictions are of test and validation images only: add those of images to train on"
        )
    images = pool.images if said.all() else pool.images.subset(said.nonzero()[:, 0].tolist())
    return pool._replace(images=images), notes


def check_store(store: Path | None, data: str) -> None:
    """Refuse a folder of teachers' boxes within the images, which would be taken for a part of them."""
    if store is not None and store.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"--store {store} lies in --data {data}: name a folder outside of it")


def _settled(
    labels: bool, teachers: int, *, thresholds: Any, calibrate: bool | None, **how: Any
) -> Making:
    """The settings, with the usual value in place of each None."""
    usual: Thresholds = ("f1" if labels else "fixed") if thresholds is None else thresholds
    adjust = labels and teachers > 1 if calibrate is None else calibrate
    return Making(thresholds=usual, calibrate=adjust, **how)


def _of_classes(labelled: BoxSet, categories: Categories, file: Path | None) -> BoxSet:
    """Labelled images with the student's classes; ValueError for boxes of another class."""
    at = {name: i for i, name in enumerate(categories.names)}
    of = [at.get(name, -1) for name in labelled.classes]
    if lost := [name for name, i in zip(labelled.classes, of, strict=True)
                if i < 0 and labelled.counts[name]]:  # fmt: skip
        raise ValueError(
            f"{file} has boxes of {some(lost)}, which --classes does not name: name it too, or remove "
            "its boxes"
        )
    return labelled.with_classes(categories.names, of, categories.labelled.tolist())


def check_head(detector: Detector, sources: Sources) -> None:
    """Refuse a head that cannot leave a class open, where one must be."""
    if detector.sigmoid:
        return
    covers = sources.categories.covers.any(0)
    from_file = [teacher.name for teacher in sources.teachers if not teacher.keeps]
    refused = None
    if not covers.all():
        names = [n for n, c in zip(sources.categories.names, covers.tolist(), strict=True) if not c]
        refused = f"no teacher knows {some(names)}"
    elif not sources.categories.labelled.all() and sources.pool.labelled is not None:
        refused = "the labels tell of some classes only"
    elif len(sources.teachers) > 1 and from_file:
        refused = f"{from_file[0]} may tell of some images only"
    elif sources.making.ignore_from is not None:
        refused = "--ignore-from leaves boxes open"
    if refused:
        raise ValueError(
            f"{detector.name} scores classes against each other, so it needs all classes in all "
            f"images, and {refused}: use fcos or retinanet"
        )
