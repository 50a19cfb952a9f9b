"""Arms of the study: detectors on labels, on features, and on boxes of teachers, in equal steps."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stepwell.data.box_files import BoxFiles, BoxParts, drawn
from stepwell.flags import call
from stepwell.losses import map_correlation_loss, map_imitation_loss
from stepwell.methods import Detection
from stepwell.nets.detection.file import load_detector
from stepwell.recipes.detect import DetectorTraining
from stepwell.recipes.pseudo import pseudo
from stepwell.tasks import detection
from stepwell.tasks.classification import open_task
from stepwell.training import Loop, fit
from stepwell.types import BoxBatch, Step

Features = Literal["pkd", "imitation"]


class FeatureTaught(Detection):
    """A detector's losses on labels, and a distance of its pyramid's maps from a teacher's.

    Args:
        teacher: a detector with maps of the same shapes.
        features: pkd: 1 - correlation; imitation: squared differences inside of true boxes.
        weight: of the distance.
    """

    def __init__(self, detector: Any, teacher: Any, *, features: Features, weight: float) -> None:
        super().__init__(detector, teach=0.0)
        self.features, self.weight = features, weight
        self._teacher = [teacher.eval().requires_grad_(False)]  # the list hides it from nn.Module

    def training_step(self, batch: BoxBatch) -> Step:
        """The losses of the full depth."""
        detector, (teacher,) = self.detector, self._teacher
        own = _maps(detector, batch)
        with torch.no_grad():
            taught = _maps(teacher, batch)
        terms = detector.losses(own, detector.outputs(own), batch)
        distances = []
        for level, other in zip(own.values(), taught.values(), strict=True):
            if self.features == "pkd":
                distances.append(map_correlation_loss(level, other))
            else:
                distances.append(map_imitation_loss(level, other, _inside(level, batch)))
        terms = {**terms, "features": torch.stack(distances).mean()}
        loss = torch.stack([v for k, v in terms.items() if k != "features"]).sum()
        return Step(loss + self.weight * terms["features"], terms)


def _maps(detector: Any, batch: BoxBatch) -> Any:
    """The pyramid's maps of the full depth."""
    (exit,) = detector.net.forward_all(batch.images, [detector.net.full]).values()
    return detector.maps(exit.features)


def _inside(level: Tensor, batch: BoxBatch) -> Tensor:
    """1 for the places of a map (batch, h, w) that lie in a true box."""
    mark = level.new_zeros(level.shape[0], *level.shape[2:])
    stride = batch.images.shape[2] / level.shape[2]
    for row, own in zip(mark, batch.truth, strict=True):
        for x1, y1, x2, y2 in (own.boxes / stride).tolist():
            row[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = 1
    return mark


def labels_alone(
    *, out: Path, data: str, net: str, size: int, epochs: int, depths: tuple[str, ...] = (),
    label_fraction: float = 1.0, classes: tuple[int, ...] = (), teacher: Path | None = None,
    features: Features = "pkd", weight: float = 1.0, batch_size: int = 16, lr: float = 1e-3,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train a detector on labels, for as many steps whatever their number; a teacher adds features.

    Args:
        label_fraction: share of the training images that are there.
        classes: numbers of the classes whose labels are there; all by default.
        teacher: file of a detector, whose pyramid's maps the student imitates.
        features, weight: as for `FeatureTaught`.
    """
    training = DetectorTraining(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    files, loop = BoxFiles(size=size), Loop(device="cpu")
    parts = detection.read_boxes_of(data, out, files)
    if classes:
        parts = _with(parts, tuple(parts.train.classes[i] for i in classes))
    whole = len(parts.train)
    parts = parts._replace(train=drawn(parts.train, label_fraction, seed))
    torch.manual_seed(seed)
    detector = detection.start_detector(net, parts.train.classes, depths)
    inputs = detection.prepare(parts, files, training, data)
    few = inputs.train.repeated(max(1, round(whole / len(parts.train))))
    arguments = {
        "data": data, "net": net, "size": size, "epochs": epochs, "depths": depths,
        "label_fraction": label_fraction, "classes": classes, "features": features, "weight": weight,
        "teacher": teacher, "seed": seed, "lr": lr, "batch_size": batch_size,
    }  # fmt: skip
    objective = Detection(detector)
    if teacher is not None:
        objective = FeatureTaught(detector, load_detector(teacher), features=features, weight=weight)
    with open_task("detect", out, loop, arguments, inputs) as task:
        steps = epochs * -(-whole // batch_size)
        fit(
            objective, few, training.optim(), task.run, phase="train", loop=loop, steps=steps,
            validate=detection.validator(detector, task),
        )  # fmt: skip
        return detection.finish(task, detector)


def _with(parts: BoxParts, classes: tuple[str, ...]) -> BoxParts:
    """The parts with labels of some classes alone."""

    def few(part: Any) -> Any:
        at = {name: i for i, name in enumerate(classes)}
        of = [at.get(name, -1) for name in part.classes]
        return part.with_classes(classes, of)

    aside = parts.validation
    valid = None if aside is None else few(aside)
    return BoxParts(few(parts.train), few(parts.test), valid, parts.notes)


def taught(
    *, out: Path, data: str, net: str, size: int, epochs: int, teacher: tuple[str, ...],
    label_fraction: float = 1.0, labels: bool = True, min_score: float = 0.5, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Train a detector by `train pseudo` on a folder with train.json, for as many steps as on labels.

    Args:
        labels: False: the teachers' boxes alone.
        min_score: threshold without labels, and of a class that they do not decide.
    """
    file = Path(data) / "train.json" if labels else None
    results: dict[str, Any] = call(
        pseudo, out=out, data=data, teacher=teacher, labels=file, label_fraction=label_fraction,
        net=net, size=size, epochs=epochs, seed=seed, keep_empty=True, loop=Loop(device="cpu"),
        min_score=min_score,
    )  # fmt: skip
    return results
