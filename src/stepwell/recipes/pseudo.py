"""Train a detector on the boxes that other detectors predict, then on labels, if there are any."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from tyro.conf import FlagConversionOff

from stepwell.data.box_files import BoxFiles
from stepwell.flags import Flags, Hidden, Together, checked, flag
from stepwell.methods import Detection
from stepwell.recipes import flags
from stepwell.recipes.detect import DetectorNetwork, DetectorTraining
from stepwell.tasks import detection, pseudo_sources
from stepwell.tasks import pseudo as kind
from stepwell.tasks.task import open_task
from stepwell.training import Loop, check_resumes, fit

_IMAGES = "folder of images; one with val.json or test.json is measured on these."
_BOX_TEACHERS = (
    "detector run or file (@DEPTH picks a depth), .onnx, .json or folder of predictions, "
    "torchvision/NAME (a download), or NAME=FILE (its weights)."
)


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """Settings that turn the teachers' boxes into labels.

    Attributes:
        thresholds: f1: of each class the one with the best F1 on labelled images; count: the one that
            gives the labels' number of boxes per image; fixed: --min-score for all.
        min_score: threshold if fixed, and of a class that the labels do not decide.
        ignore_from: boxes from this score up to the threshold are neither objects nor background.
        calibrate: map each teacher's scores to its share of right boxes on labelled images.
        classes: the student's classes.
        rename: a class's name OLD=NEW, of a teacher 2:OLD=NEW; OLD= leaves it out.
        teacher_size: longer side of the teachers' images.
        store: keep the teachers' boxes here, for other runs too.
        keep_empty: images without a box count as background.
        label_share: share of the steps that train on the labels.
        label_rate: their learning rate, as a share of --lr.
    """

    TITLE: ClassVar = "pseudo label"
    thresholds: Annotated[
        Literal["f1", "count", "fixed"] | None, flag("KIND", "f1; without labels: fixed")
    ] = None
    min_score: Annotated[float, flag("X")] = 0.5
    ignore_from: Annotated[float | None, flag("X", "none")] = None
    calibrate: FlagConversionOff[
        Annotated[bool | None, flag("{True,False}", "of several teachers, with labels")]
    ] = None
    classes: Annotated[tuple[str, ...], flag("NAME ...", "all")] = ()
    rename: Annotated[tuple[str, ...], flag("OLD=NEW ...", "none")] = ()
    teacher_size: Annotated[int | None, flag("PIXELS", "their own")] = None
    store: Annotated[Path | None, flag("FOLDER", "in the run")] = None
    keep_empty: Annotated[bool, flag()] = False
    label_share: Annotated[float, flag("X")] = 0.2
    label_rate: Annotated[float, flag("X")] = 0.2


@dataclass(frozen=True, kw_only=True)
class PseudoAblation(Together):
    """Options for studies.

    Attributes:
        plain_fusion: divide scores by all teachers, also where some do not know the class.
        no_mask: a class that no teacher covers is background.
    """

    plain_fusion: bool = False
    no_mask: bool = False


def pseudo(
    *,
    data: Annotated[str, flag("FOLDER", help=_IMAGES)],
    teacher: Annotated[tuple[str, ...], flag("TEACHER ...", help=_BOX_TEACHERS)],
    out: flags.Out,
    labels: Annotated[Path | None, flag("FILE", "none")] = None,
    label_fraction: float = 1.0,
    making: Flags[PseudoLabels] = PseudoLabels(),
    network: Flags[DetectorNetwork] = DetectorNetwork(),
    boxes: Flags[BoxFiles] = BoxFiles(),
    training: Flags[DetectorTraining] = DetectorTraining(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[PseudoAblation] = PseudoAblation(),
) -> dict[str, Any]:
    """Train a detector on boxes that teachers predict, then on labels (Banitalebi-Dehkordi 2021).

    Only the abstract of the paper was available: the details are ours.

    Examples:
        stepwell train pseudo --teacher runs/big --data photos/ --out runs/small
        stepwell train pseudo --teacher runs/a detector.onnx --data cells/ --labels cells/train.json
          --label-fraction 0.2 --out runs/fused

    Args:
        labels: COCO json of labelled training images.
        label_fraction: share of the labels that are used.
    """
    init = flags.file_of(network.init)
    arguments = checked(locals())
    check_resumes("pseudo", arguments)
    detection.check_extra()
    pseudo_sources.check_store(making.store, data)
    sources = pseudo_sources.open_sources(
        data, teacher, labels, label_fraction, boxes, training, size=making.teacher_size,
        renames=making.rename, classes=making.classes, thresholds=making.thresholds,
        calibrate=making.calibrate, min_score=making.min_score, ignore_from=making.ignore_from,
        plain_fusion=ablation.plain_fusion,
    )  # fmt: skip
    torch.manual_seed(training.seed)
    detector = detection.start_detector(
        network.net, sources.categories.names, network.depths, width=network.width,
        convs=network.convs, init=init,
    )  # fmt: skip
    pseudo_sources.check_head(detector, sources)
    inputs = kind.prepare(sources, boxes, training, data)
    with open_task("pseudo", out, loop, arguments, inputs) as task:
        ready = kind.label(
            task, sources, store=making.store, keep_empty=making.keep_empty,
            share=making.label_share, mask=not ablation.no_mask,
        )  # fmt: skip
        objective = Detection(detector, teach=training.teach)
        steps, label_steps = kind.lengths(ready, training.epochs, making.label_share)
        learn = partial(
            fit, objective, run=task.run, loop=loop, patience=training.patience,
            validate=detection.validator(detector, ready.task),
        )  # fmt: skip
        learn(train=ready.train, optim=training.optim(), phase="pseudo", steps=steps)
        if ready.labels is not None:
            optim = training.optim(making.label_rate)
            learn(train=ready.labels, optim=optim, phase="labels", steps=label_steps)
        return kind.finish(ready, objective)
