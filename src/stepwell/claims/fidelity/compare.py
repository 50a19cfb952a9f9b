"""A comparison as an arm of a study: agreement of a trained student with its teacher."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepwell.claims.kit.measuring import Clock
from stepwell.data import Batches
from stepwell.evaluation.fidelity import fidelity_measures
from stepwell.evaluation.side_by_side import Network, observe
from stepwell.files import write_whole
from stepwell.measure.data_parts import batches_of, fitted
from stepwell.teachers import open_teacher
from stepwell.types import Batch


def compare(
    *, out: Path, student: Path, teacher: tuple[str, ...], control: Path | None = None,
    depth: str | None = None, control_depth: str | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Measure the fidelity of a run's network to a teacher (`evaluation.fidelity`).

    Args:
        out: a folder, for fidelity.json: all numbers, with their intervals over images.
        student: the file of the network, in its run directory, which says what it was trained on.
        teacher: files; several are an ensemble.
        control: the file of a student of another teacher.
        depth, control_depth: of the student and of the control; the deepest by default.
        seed: of the images whose features are compared.

    Returns:
        Under "test" the numbers of `fidelity_measures`, without their intervals, on three sets of
        images: "test/KEY", the data's test part; "train/KEY", the run's training images as they are;
        "seen/KEY", its first epoch's images as the student saw them, without labels.

    Raises:
        ValueError: the run's data has changed; the networks do not fit to each other or to the data.
    """
    clock = Clock()
    train, test = batches_of(student.parent)
    names = {
        "teacher": teacher,
        "student": (_at(student, depth),),
        "control": () if control is None else (_at(control, control_depth),),
    }
    nets = {who: fitted(open_teacher(files), train) for who, files in names.items() if files}
    parts: dict[str, tuple[Iterable[Batch], bool]] = {
        "test": (test, True),
        "train": (train.with_images(train.images), False),
        "seen": (_without_labels(train), False),
    }
    measures: dict[str, dict[str, float]] = {}
    for part, (batches, stages) in parts.items():
        # CKA, which takes longest, is of the test part alone
        answers = {who: net if stages else _logits_of(net) for who, net in nets.items()}
        pair, control_net = (answers["teacher"], answers["student"]), answers.get("control")
        observed = observe(*pair, batches, control=control_net, seed=seed)
        measures[part] = fidelity_measures(observed, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "fidelity.json", json.dumps(measures, indent=1).encode())
    flat = {f"{part}/{k}": v for part, numbers in measures.items() for k, v in numbers.items()}
    return clock.result({k: v for k, v in flat.items() if not k.endswith(("/low", "/high"))})


def _at(file: Path, depth: str | None) -> str:
    """A network's name as `open_teacher` takes it."""
    return f"{file}@{depth}" if depth else str(file)


def _logits_of(net: nn.Module) -> Network:
    return lambda images: net(images).logits


def _without_labels(train: Batches) -> Iterator[Batch]:
    """The first epoch's images without labels, because mixed images have no single class."""
    for images, labels in train:
        yield Batch(images, torch.full((len(labels),), -1))
