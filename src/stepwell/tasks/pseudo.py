"""The task of detection by pseudo labels: how the teachers of a run label its images."""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stepwell.data.box_batches import BoxBatches
from stepwell.data.box_files import ASIDE, BoxFiles, BoxPool, check_objects, keep_test
from stepwell.data.boxes import BoxSet
from stepwell.files import write_whole
from stepwell.measure.detection import precisions
from stepwell.methods import Detection
from stepwell.pseudo_labels.make import Fused, Judge, Made, described, without_empty
from stepwell.pseudo_labels.store import Store
from stepwell.tasks import detection
from stepwell.tasks.pseudo_sources import Sources
from stepwell.tasks.task import Inputs, Task
from stepwell.training.optimisation import Optimisation
from stepwell.training.progress import Progress, tell
from stepwell.types import Boxes

#: The labels that teachers made of the training images, in a run.
LABELS = "pseudo_labels.json"
#: What the parts that teachers label are for, in words.
PURPOSES = {"test": "testing", "validation": "validation"}
#: Validation images from which on they alone decide thresholds.
ENOUGH = 20


class Labelled(NamedTuple):
    """The parts of a run after the teachers have labelled them.

    train: training images with the teachers' boxes. labels: images of the labels phase; None without.
    task: the run with these parts. record: what thresholds and fusion did.
    """

    train: BoxBatches
    labels: BoxBatches | None
    task: Task[BoxBatches]
    record: dict[str, Any]


def prepare(sources: Sources, files: BoxFiles, training: Optimisation, name: str) -> Inputs[BoxBatches]:
    """The images as batches, before the teachers have labelled them."""
    images, labelled, test, validation, _ = sources.pool
    if labelled is None:
        images, test, validation = _apart(images, test, validation, training.val_fraction)
    detection.check_patience(training, validation is not None)
    assert training.batch_size is not None
    batches = BoxBatches(
        images, training.batch_size, size=files.size, flip=files.flip, zoom=files.zoom, shuffle=True,
        seed=training.seed,
    )  # fmt: skip
    assert test is not None
    about = {
        "name": name, "size": files.size, "train": len(images),
        "labels": len(labelled) if labelled is not None else 0,
        "validation": len(validation) if validation is not None else 0, "test": len(test),
        "fingerprint": "/".join(
            part.fingerprint for part in (images, labelled, validation, test) if part is not None
        ),
        **described(sources.categories, sources.names),
    }  # fmt: skip
    marks = tuple(teacher.fingerprint for teacher in sources.teachers)
    aside = None if validation is None else batches.with_examples(validation)
    return Inputs(batches, aside, batches.with_examples(test), None, about, marks)


def _apart(
    images: BoxSet, test: BoxSet | None, validation: BoxSet | None, fraction: float
) -> tuple[BoxSet, BoxSet, BoxSet | None]:
    """Images without labels in training, test and validation parts."""
    if test is None:
        images, test = images.split(ASIDE)
    if validation is None and fraction:
        images, validation = images.split(fraction)
    return images, test, validation


def label(
    task: Task[BoxBatches], sources: Sources, *, store: Path | None, keep_empty: bool, share: float,
    mask: bool = True,
) -> Labelled:  # fmt: skip
    """Let the teachers label all parts without labels, and measure them on the test part.

    Writes the labels to the run's pseudo_labels.json. Errors as for `Judge`.

    Args:
        store: folder of the teachers' boxes; by default in the run.
        keep_empty: images without a box are background.
        share: of the training's steps that the labels phase gets.
        mask: False: a class that no teacher covers is background; for studies.
    """
    run, pool = task.run, sources.pool
    root = run.path / "boxes" if store is None else store
    stores = [Store(root, t) if t.keeps else None for t in sources.teachers]

    def predictions(images: BoxSet, part: str) -> list[Sequence[Boxes | None]]:
        return [
            teacher.find(images)
            if own_store is None
            else own_store.boxes(images, progress=_shown(task, part))
            for teacher, own_store in zip(sources.teachers, stores, strict=True)
        ]

    reference = _reference(pool)
    labelled_before = None if reference is None else (reference, predictions(reference, "labelled"))
    judge = Judge(sources.names, sources.categories, sources.making, labelled_before)
    training = task.train.examples
    on_training = predictions(training, "training")
    judge.settle(training, on_training)
    made = judge.made(training, on_training)
    for note in made.notes:
        warnings.warn(note, stacklevel=2)
    images, empty = without_empty(made.images, keep=keep_empty)
    images = images if mask else replace(images, known=None)
    if empty:
        text = f"note: {empty} images without a box are left out; with --keep-empty they are background"
        tell(text, quiet=not run.writes)
    record = dict(made.record)
    parts: dict[str, BoxBatches | None] = {"test": task.test, "validation": task.validation}
    for name, batches in parts.items():
        if batches is not None and not batches.examples.labelled:
            guessed = judge.made(batches.examples, predictions(batches.examples, name)).images
            check_objects(
                guessed,
                PURPOSES[name],
                "the teachers find none there; name labelled images with "
                "--test and --valid, or use more images",
            )
            certain = [boxes._replace(scores=torch.ones(boxes.total)) for boxes in guessed.truth]
            parts[name] = batches.with_examples(replace(guessed, truth=tuple(certain)))
    test = parts["test"]
    assert test is not None
    record["truth"] = "labels" if pool.labelled is not None or pool.test is not None else "teacher"
    on_test = predictions(test.examples, "test")
    record |= _teachers_on(test.examples, judge, on_test, sources.names)
    record["labels_of_test"] = judge.made(test.examples, on_test).images.truth
    if run.writes:
        _write_labels(run.path, made.images)
    train = task.train.others(images)
    labels = None
    if pool.labelled is not None:
        whole = pool.labelled
        if whole.known is not None:
            whole = _completed(whole, judge.made(whole, predictions(whole, "labelled")))
        few = task.train.others(whole).reseeded("labels")
        labels = few.repeated(max(1, round(len(train) / len(few))))
        record["labels"] = {"images": len(whole), "share": share}
    return Labelled(
        train, labels, replace(task, train=train, test=test, validation=parts["validation"]), record
    )


def _write_labels(run: Path, made: BoxSet) -> None:
    """Write the teachers' labels; files are named below a folder, and that one from the run on."""
    folder = os.path.commonpath([os.path.abspath(file.parent) for file in made.files])
    info = {"images": os.path.relpath(folder, run)}
    content = {"info": info, **made.coco(Path(folder))}
    write_whole(run / LABELS, json.dumps(content).encode())


def _reference(pool: BoxPool) -> BoxSet | None:
    """The labelled images that decide thresholds; None without labels.

    A teacher that was trained on the labels is too sure of them, so validation images decide alone if
    there are enough.
    """
    parts = [part for part in (pool.validation, pool.labelled) if part is not None]
    if pool.validation is not None and len(pool.validation) >= ENOUGH:
        return pool.validation
    if len(parts) < 2:
        return parts[0] if parts else None
    first, second = parts
    return first.joined(second)


def _completed(labelled: BoxSet, made: Made) -> BoxSet:
    """Labelled images with the teachers' boxes of the classes that the labels do not tell of."""
    assert labelled.known is not None
    labelled_classes = labelled.known[0]
    covered = torch.ones_like(labelled.known) if made.images.known is None else made.images.known
    truth = []
    for own, other in zip(labelled.truth, made.images.truth, strict=True):
        more = other.chosen(~labelled_classes[other.labels])
        truth.append(Boxes(*(torch.cat(values) for values in zip(own, more, strict=True))))
    known = labelled.known | covered
    return replace(labelled, truth=tuple(truth), known=None if bool(known.all()) else known)


def _teachers_on(
    test: BoxSet, judge: Judge, predictions: Sequence[Sequence[Boxes | None]], names: Sequence[str]
) -> dict[str, Any]:
    """Average precision of the teachers together, and of each, on the test part."""
    fused: Fused = judge.fused(predictions)
    if not fused.known.any():
        return {"teacher_test": {}, "boxes_of_test": fused.boxes}
    rows = {"teachers": fused.boxes}
    if len(names) > 1:
        alone = [
            [boxes if k == i else [None] * len(test) for i, boxes in enumerate(predictions)]
            for k in range(len(names))
        ]
        rows |= {name: judge.fused(own).boxes for name, own in zip(names, alone, strict=True)}
    return {"teacher_test": precisions(test, rows), "boxes_of_test": fused.boxes}


def _shown(task: Task[BoxBatches], part: str) -> Callable[[int], Any]:
    @contextmanager
    def progress(steps: int) -> Iterator[Callable[[], object]]:
        phase = f"labels of {part} images"
        with Progress(phase, 0, steps, steps, quiet=not task.run.writes) as bar:
            yield bar.advance

    return progress


def lengths(labelled: Labelled, epochs: int, share: float) -> tuple[int, int]:
    """Steps of the two phases: of the teachers' boxes, and of labels; together the whole training."""
    total = epochs * len(labelled.train)
    tuned = max(1, round(share * total)) if labelled.labels is not None else 0
    return max(1, total - tuned), tuned


def finish(labelled: Labelled, objective: Detection) -> dict[str, Any]:
    """Measure the trained detector, and write the run's results and its test part."""
    if labelled.task.run.writes:
        keep_test(labelled.task.run.path, labelled.task.test.examples)
    record = dict(labelled.record)
    boxes, labels = record.pop("boxes_of_test"), record.pop("labels_of_test")
    return detection.finish(
        labelled.task, objective.detector, record={"pseudo": record},
        others={"teachers": boxes}, pictured={"teachers": labels},
    )  # fmt: skip
