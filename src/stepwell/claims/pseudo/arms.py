"""Arms of the study: detectors on labels, on features, and on boxes of teachers, in equal steps.

The images with labels that are not for tests are drawn apart by the seed: some for validation, half of
the others for teachers, and half for students. A teacher has seen no image of the students.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stepwell.data.box_batches import BoxBatches
from stepwell.data.box_files import BoxFiles, BoxParts, BoxPool, drawn
from stepwell.data.boxes import BoxSet
from stepwell.data.loader import generator_of, seed_of
from stepwell.losses import map_correlation_loss, map_imitation_loss
from stepwell.methods import Detection
from stepwell.methods.objective import Objective
from stepwell.nets.detection.file import load_detector
from stepwell.pseudo_labels.categories import merged
from stepwell.pseudo_labels.make import Making
from stepwell.pseudo_labels.teachers import open_box_teachers
from stepwell.ranges import SURE
from stepwell.recipes.detect import DetectorTraining
from stepwell.recipes.pseudo import PseudoLabels
from stepwell.tasks import detection
from stepwell.tasks import pseudo as kind
from stepwell.tasks.pseudo_sources import Sources
from stepwell.tasks.task import Task, open_task
from stepwell.training import Loop, fit
from stepwell.types import BoxBatch, Boxes, Step

Features = Literal["pkd", "imitation"]
#: Images that choose epochs and thresholds, at most.
VALIDATION = 20
_LOOP = Loop(device="cpu")


class Parts(NamedTuple):
    """The images of teachers, of students, of validation and of tests; no image stands in two."""

    teachers: BoxSet
    students: BoxSet
    validation: BoxSet
    test: BoxSet


def read_apart(data: str, out: Path, files: BoxFiles, seed: int) -> Parts:
    """Draw the parts of a folder's images by `seed`; errors as for `read_parts`."""
    train, test, validation, *_ = detection.read_boxes_of(data, out, files)
    every = train if validation is None else train.joined(validation)
    order = torch.randperm(len(every), generator=generator_of(seed_of("study", seed))).tolist()
    aside = min(VALIDATION, len(every) // 3)
    half = aside + (len(every) - aside) // 2
    parts = (
        every.subset(sorted(indices)) for indices in (order[aside:half], order[half:], order[:aside])
    )
    teachers, students, chosen = parts
    return Parts(teachers, students, chosen, test)


class FeatureTaught(Detection):
    """A detector's losses where there are labels, and a distance of its maps from a teacher's.

    Args:
        teacher: a detector with maps of the same shapes.
        features: pkd: 1 - correlation, a sum over levels; imitation: squared differences inside of true
            boxes, or of the teacher's where there are no labels.
        weight: of the distance.
    """

    def __init__(self, detector: Any, teacher: Any, *, features: Features, weight: float) -> None:
        super().__init__(detector, teach=0.0)
        self.features, self.weight = features, weight
        self._teacher = [teacher.eval().requires_grad_(False)]  # the list hides it from nn.Module

    def training_step(self, batch: BoxBatch) -> Step:
        """The losses of the full depth."""
        detector, (teacher,) = self.detector, self._teacher
        maps = _maps(detector, batch)
        with torch.no_grad():
            taught = _maps(teacher, batch)
        terms = detector.losses(maps, detector.outputs(maps), batch, known=batch.known)
        loss = torch.stack([*terms.values()]).sum()
        boxes = [true.boxes for true in batch.truth]
        if self.features == "imitation" and batch.known is not None:
            boxes = self._objects(taught, batch)
        distances = []
        for level, other in zip(maps.values(), taught.values(), strict=True):
            if self.features == "pkd":
                distances.append(map_correlation_loss(level, other))
            else:
                inside = _inside(level, boxes, batch.images.shape[2] / level.shape[2])
                distances.append(map_imitation_loss(level, other, inside))
        distance = torch.stack(distances).sum()
        return Step(loss + self.weight * distance, {**terms, "features": distance})

    @torch.no_grad()
    def _objects(self, maps: Any, batch: BoxBatch) -> list[Tensor]:
        """True boxes of images with labels, and the teacher's of the others."""
        (teacher,) = self._teacher
        predictions = teacher.boxes(maps, teacher.outputs(maps), batch.images, batch.sizes)
        assert batch.known is not None
        rows = zip(predictions, batch.truth, batch.known, strict=True)
        return [
            true.boxes if known.any() else boxes.boxes[boxes.scores >= SURE]
            for boxes, true, known in rows
        ]


def _maps(detector: Any, batch: BoxBatch) -> Any:
    """The pyramid's maps of the full depth."""
    (exit,) = detector.net.forward_all(batch.images, [detector.net.full]).values()
    return detector.maps(exit.features)


def _inside(level: Tensor, boxes: Sequence[Tensor], stride: float) -> Tensor:
    """1 for the places of a map (batch, h, w) that lie in a box."""
    mark = level.new_zeros(level.shape[0], *level.shape[2:])
    for row, image_boxes in zip(mark, boxes, strict=True):
        for x1, y1, x2, y2 in (image_boxes / stride).tolist():
            row[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = 1
    return mark


class Setting(NamedTuple):
    """Images and lengths that all arms of a seed share.

    labelled: images of the students' part whose labels are there.
    steps: of the whole training; epoch: of one pass through the students' images.
    """

    parts: Parts
    labelled: BoxSet
    files: BoxFiles
    training: DetectorTraining
    steps: int
    epoch: int

    def as_long(self, batches: BoxBatches) -> BoxBatches:
        """As many passes through the images as make an epoch of the students' length."""
        return batches.repeated(max(1, round(self.epoch / len(batches.repeated(1)))))

    def tested(self, train: BoxSet) -> BoxParts:
        """Training images with the setting's validation and test part."""
        return BoxParts(train, self.parts.test, self.parts.validation, ())


def _setting(data: str, out: Path, size: int, epochs: int, seed: int, label_fraction: float) -> Setting:
    training = DetectorTraining(epochs=epochs, seed=seed)
    files = BoxFiles(size=size)
    parts = read_apart(data, out, files, seed)
    labelled = drawn(parts.students, label_fraction, seed)
    epoch = -(-len(parts.students) // training.batch_size)
    return Setting(parts, labelled, files, training, epochs * epoch, epoch)


def labels_alone(
    *, out: Path, data: str, net: str, size: int, epochs: int, depths: tuple[str, ...] = (),
    label_fraction: float = 1.0, teachers: bool = False, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train a detector on labels, for as many steps whatever their number.

    Args:
        label_fraction: share of the students' images that are there.
        teachers: train on the teachers' images.
    """
    arguments = {k: v for k, v in locals().items() if k != "out"}
    setting = _setting(data, out, size, epochs, seed, label_fraction)
    labelled = setting.parts.teachers if teachers else setting.labelled
    detector = _start(net, labelled.classes, seed, depths)
    inputs = detection.prepare(setting.tested(labelled), setting.files, setting.training, data)
    with open_task("detect", out, _LOOP, arguments, inputs) as task:
        validate = detection.validator(detector, task)
        fit(
            Detection(detector), setting.as_long(task.train), setting.training.optim(), task.run,
            phase="train", steps=setting.steps, validate=validate, loop=_LOOP,
        )  # fmt: skip
        return detection.finish(task, detector)


def features_taught(
    *, out: Path, data: str, net: str, size: int, epochs: int, teacher: Path, label_fraction: float,
    features: Features, weight: float, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train a detector to imitate a teacher on all images of the students, and on the labels.

    Its two phases are as long as those of `taught`: all images, half of each batch with labels; then
    the labelled ones.

    Args:
        teacher: file of a detector, whose pyramid's maps the student imitates.
        features, weight: as for `FeatureTaught`.
    """
    arguments = {k: v for k, v in locals().items() if k != "out"}
    setting = _setting(data, out, size, epochs, seed, label_fraction)
    detector = _start(net, setting.labelled.classes, seed)
    every = _partly(setting.parts.students, setting.labelled)
    inputs = detection.prepare(setting.tested(every), setting.files, setting.training, data)
    objective = FeatureTaught(detector, load_detector(teacher), features=features, weight=weight)
    with open_task("detect", out, _LOOP, arguments, inputs) as task:
        labels = task.train.others(setting.labelled).reseeded("labels")
        _two_phases(objective, setting, task, task.train, labels, detection.validator(detector, task))
        return detection.finish(task, detector)


def taught(
    *, out: Path, data: str, net: str, size: int, epochs: int, teacher: tuple[str, ...],
    label_fraction: float, labels: bool = True, unlabelled: bool = True, disjoint: bool = False,
    min_score: float = 0.5, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train a detector on boxes of teachers, then on labels, as `train pseudo` does.

    Args:
        labels: False: the teachers' boxes alone, which also choose the epoch; thresholds are
            `min_score`.
        unlabelled: False: the teachers label the labelled images alone.
        disjoint: the first teacher's first class alone counts, and the other classes of the others.
    """
    arguments = {k: v for k, v in locals().items() if k != "out"}
    setting = _setting(data, out, size, epochs, seed, label_fraction)
    parts, names = setting.parts, setting.labelled.classes
    teachers = open_box_teachers(teacher)
    first, others = names[:1], names[1:]
    renames = [f"1:{name}=" for name in others] + [f"2:{name}=" for name in first]
    categories = merged(
        {member.name: member.classes for member in teachers}, names, renames=renames if disjoint else ()
    )
    images = _without_labels(parts.students if unlabelled else setting.labelled)
    validation = parts.validation if labels else _without_labels(parts.validation)
    pool = BoxPool(images, setting.labelled if labels else None, parts.test, validation, ())
    making = Making(
        thresholds="f1" if labels else "fixed", min_score=min_score,
        calibrate=labels and len(teachers) > 1,
    )  # fmt: skip
    sources = Sources(teachers, categories, pool, making)
    detector = _start(net, names, seed)
    inputs = kind.prepare(sources, setting.files, setting.training, data)
    with open_task("pseudo", out, _LOOP, arguments, inputs) as task:
        ready = kind.label(task, sources, store=None, keep_empty=True, share=PseudoLabels.label_share)
        objective, validate = Detection(detector), detection.validator(detector, ready.task)
        _two_phases(objective, setting, task, ready.train, ready.labels, validate)
        return kind.finish(ready, objective)


def _start(net: str, classes: Sequence[str], seed: int, depths: Sequence[str] = ()) -> Any:
    torch.manual_seed(seed)
    return detection.start_detector(net, classes, depths)


def _two_phases(
    objective: Objective, setting: Setting, task: Task[BoxBatches], every: BoxBatches,
    labels: BoxBatches | None, validate: Callable[[], dict[str, float]] | None,
) -> None:  # fmt: skip
    """Train on all images, then on labels at a lower rate, as `train pseudo` does."""
    tuned = 0 if labels is None else max(1, round(PseudoLabels.label_share * setting.steps))
    learn = partial(fit, objective, run=task.run, loop=_LOOP, validate=validate)
    optim = setting.training.optim
    learn(setting.as_long(every), optim(), phase="all", steps=max(1, setting.steps - tuned))
    if labels is not None:
        rate = PseudoLabels.label_rate
        learn(setting.as_long(labels), optim(rate), phase="labels", steps=tuned)


def _partly(images: BoxSet, labelled: BoxSet) -> BoxSet:
    """Images of which some have labels; the others tell of no class.

    Labelled images repeat, so that they are half of a batch: of few, a batch would learn no boxes.
    """
    labelled_files = {*labelled.files}
    has = torch.tensor([file in labelled_files for file in images.files])
    rows = zip(images.truth, has.tolist(), strict=True)
    truth = tuple(true if is_labelled else Boxes.of([], []) for true, is_labelled in rows)
    known = has[:, None].repeat(1, len(images.classes))
    with_labels, others = (mask.nonzero()[:, 0].tolist() for mask in (has, ~has))
    repeats = max(1, round(len(others) / len(with_labels)))
    return replace(images, truth=truth, known=known).subset(others + repeats * with_labels)


def _without_labels(images: BoxSet) -> BoxSet:
    return replace(images, truth=(Boxes.of([], []),) * len(images), labelled=False)
