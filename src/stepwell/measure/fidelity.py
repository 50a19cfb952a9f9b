"""Fidelity: compare the depths of a network with a teacher, on training and test images."""

import io
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from stepwell.data import Batches
from stepwell.evaluation.calibration import reliability
from stepwell.evaluation.fidelity import agreement_matrix, fidelity_measures
from stepwell.evaluation.intervals import LEVEL, RESAMPLES
from stepwell.evaluation.side_by_side import Observed, observe
from stepwell.files import config_of, read_json, write_whole, writing
from stepwell.measure.data_parts import Parts, RunImages, fitted, parts_of
from stepwell.measure.fidelity_networks import Pair, folder_of, named, open_pair
from stepwell.nets import NestedNet
from stepwell.nets.files.container import network_file
from stepwell.nets.files.nested import load
from stepwell.nets.nested.calibrate import estimate_all
from stepwell.nets.nested.interpolation import between, differing
from stepwell.teachers.stages import common_stages, pair_stages
from stepwell.teachers.teacher import Teacher, stages_of
from stepwell.types import Exit, Images

#: Training images to compare on, at most; evenly spaced over all.
TRAIN_IMAGES = 50_000
#: Images of each part to measure the line between two networks on.
LINE_IMAGES = 5_000
#: Synthetic images that are drawn again in each epoch, as part of the augmentation.
DRAWN_ANEW = ("noise", "composites")
#: Passes batches on, in order, and shows progress: (steps, title, number of steps).
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def untracked(steps: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """Pass the steps on without showing progress."""
    return steps


def measure_fidelity(
    student: str | Path, teacher: str | Sequence[str], *, control: str | None = None,
    data: str | None = None, mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None, interpolate: int = 0, keep: bool = False,
    track: Track = untracked,
) -> dict[str, Any]:  # fmt: skip
    """Compare every depth of a trained network with a teacher, as `stepwell eval --fidelity` does.

    >>> stepwell.measure.measure_fidelity("runs/student", "runs/teacher")  # doctest: +SKIP

    Args:
        student: a run directory, or the file of a network.
        teacher: one name, or several for an ensemble, as for `stepwell.open_teacher`.
        control: a student of another teacher, trained in the same way.
        data: a folder or a name; its test part is used. None: the data of the run.
        mean, std: as for `stepwell.open_teacher`.
        interpolate: points on the line from student to teacher, both ends included; 0: none.
        keep: write the numbers into the run for its report.
        track: shows progress.

    Returns:
        The content of fidelity.json, as `measure_pair` gives it.

    Raises:
        ValueError, FileNotFoundError, ImportError: as for `open_pair`, `parts_of` and `fit_pair`.
        OSError: another process is writing to the run.
    """
    path, file = Path(student), network_file(student)
    net, config = load(file), config_of(file)
    names = [teacher] if isinstance(teacher, str) else teacher
    pair = open_pair(path, net, config, names, control, mean=mean, std=std, interpolate=interpolate)
    parts = parts_of(net, path, config, data)
    networks = fit_pair(pair, parts.test)
    found, arrays = measure_pair(networks, parts, interpolate=interpolate, track=track)
    if keep:
        write_fidelity(folder_of(path), found, arrays)
    return found


class Fitted(NamedTuple):
    """A pair of networks adapted to the images of some data.

    stages: names of the compared stages. The exits hold the features of these stages alone, in this
        order; a control without these stages gives none.
    """

    pair: Pair
    student: Callable[[Images], dict[str, Exit]]
    teacher: Teacher
    control: Callable[[Images], dict[str, Exit]] | None
    stages: tuple[str, ...]


def fit_pair(pair: Pair, test: Batches) -> Fitted:
    """Adapt the networks to the images of `test`, and try them on a few.

    All networks see the student's pixels, in their own normalisation and size.

    Raises:
        ValueError: a network has other classes, in number, names or order, or does not run on the
            images; as for `OpenTeacher.for_data`.
    """
    net, depths = pair.net, pair.depths
    teacher = fitted(pair.teacher, test, resize=True)
    controls = {d: fitted(opened, test, resize=True) for d, opened in pair.controls.items()}
    names = common_stages(net, teacher)
    if not names:
        warnings.warn(
            f"no CKA: {named(pair.teacher)} gives no features of stages that {pair.run} has, too",
            stacklevel=2,
        )
    size = test.images.size
    pairs = pair_stages(net, teacher, names, (3, size, size)) if names else []
    ours = [p.student for p in pairs]
    control = None
    if controls:
        of_controls = {d: _places(net, ours, other) for d, other in controls.items()}

        def control(images: Images) -> dict[str, Exit]:
            return {d: _picked(other(images), of_controls[d]) for d, other in controls.items()}

    def student(images: Images) -> dict[str, Exit]:
        return {d: _picked(exit, ours) for d, exit in net.forward_all(images, depths).items()}

    return Fitted(
        pair, student, lambda images: _picked(teacher(images), [p.teacher for p in pairs]), control,
        tuple(names),
    )  # fmt: skip


def measure_pair(
    networks: Fitted, parts: Parts, *, interpolate: int = 0, track: Track = untracked
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measure fidelity on plain and augmented training images, and on test images.

    On data other than the training's: on test images alone. Arguments as for `measure_fidelity`.

    Returns:
        The content of fidelity.json, and the arrays of fidelity.npz. For each part these are the
        matrix of agreement, "PART/DEPTH/matrix" (teacher's class, student's class), and reliability
        curves, "PART/DEPTH/reliability" and "PART/teacher/reliability" (3, bins): examples,
        confidence, accuracy. Mixed images have no single class, so their part has no curves.
    """
    pair = networks.pair
    card, file = pair.net.card, folder_of(pair.run) / "results.json"
    results = read_json(file, "put it right") if pair.config and file.exists() else {}
    compared: dict[str, Batches] = {}
    policy = ""
    if parts.known:
        train = _some(parts.train, TRAIN_IMAGES)
        compared = {"train": train}
        policy, augmented = _as_taught(train, parts.flip, RunImages.of(pair.config))
        if policy:
            compared["augmented"] = augmented
        else:
            note = "was trained without augmentation, so no augmented images are compared"
            warnings.warn(f"{pair.run} {note}", stacklevel=2)
    else:
        note = "compared on test images only: the network may have been trained on other data"
        warnings.warn(note, stacklevel=2)
    compared["test"] = parts.test
    found: dict[str, Any] = {
        "data": {"name": parts.name, "fingerprint": parts.fingerprint},
        "student": {
            "name": str(pair.run), "fingerprint": pair.fingerprint, "trained": results.get("finished")
        },
        "teacher": {"name": named(pair.teacher), "fingerprint": pair.teacher.fingerprint},
        "controls": {
            depth: {"name": named(opened), "fingerprint": opened.fingerprint}
            for depth, opened in pair.controls.items()
        },
        "depths": [*pair.depths], "stages": [*networks.stages], "classes": [*card.classes],
        "level": LEVEL, "resamples": RESAMPLES, "augmentation": policy, "parts": {},
    }  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    for part, batches in compared.items():
        seen = observe(
            networks.teacher, networks.student, track(batches, f"{part} images", len(batches)),
            control=networks.control,
        )  # fmt: skip
        numbers = fidelity_measures(seen, card.classes, stages=networks.stages)
        found["parts"][part] = {"images": len(seen.labels), "numbers": numbers}
        arrays |= {f"{part}/{name}": value for name, value in _arrays(seen).items()}
    if interpolate:
        found["interpolation"] = _lines(networks, parts, interpolate, track)
    return found | {"finished": time.strftime("%Y-%m-%d %H:%M:%S")}, arrays


def write_fidelity(folder: Path, found: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write fidelity.json and fidelity.npz to a run; OSError if another process writes to it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    with writing(folder / "net.safetensors"):
        # The report looks for fidelity.json, so it must never stand beside another's arrays.
        (folder / "fidelity.json").unlink(missing_ok=True)
        write_whole(folder / "fidelity.npz", buffer.getvalue())
        write_whole(folder / "fidelity.json", json.dumps(found, indent=1).encode())


def _places(net: NestedNet, stages: Sequence[int], other: nn.Module) -> list[int]:
    """Find these stages of `net` among another network's, by name; empty if any is missing."""
    theirs = stages_of(other)
    names = [net.stages[i] for i in stages]
    return [theirs.index(name) for name in names] if set(names) <= set(theirs) else []


def _picked(exit: Exit, places: Sequence[int]) -> Exit:
    return Exit(exit.logits, tuple(exit.features[i] for i in places))


def _some(batches: Batches, count: int) -> Batches:
    """Take at most `count` of the images, evenly spaced over all."""
    images = batches.images
    if len(images) <= count:
        return batches
    return batches.with_images(images.subset(torch.linspace(0, len(images) - 1, count).long()))


def _as_taught(batches: Batches, flip: bool, run: RunImages) -> tuple[str, Batches]:
    """Augment the images as the run's training did, one draw each, and name the augmentation.

    The name is empty if the training used none. Unlabeled or generated images that joined the batches
    are not included.
    """
    data = run.distill_data
    words = [data.augment, data.mix, data.synthetic if data.synthetic in DRAWN_ANEW else "none"]
    augmented = Batches(
        batches.images, batches.batch_size, mean=batches.mean, std=batches.std,
        **run.changes(batches.images, flip), seed=run.seed,
    )  # fmt: skip
    return " + ".join(word for word in words if word != "none"), augmented


def _arrays(seen: Observed) -> dict[str, np.ndarray]:
    teacher, labels = seen.teacher, seen.labels
    known = labels >= 0
    arrays = {
        f"{name}/matrix": agreement_matrix(teacher.top, student.top, seen.classes).numpy()
        for name, student in seen.students.items()
    }
    if not known.any():
        return arrays
    for name, network in {"teacher": teacher, **seen.students}.items():
        curve = reliability(network.confidence[known], (network.top == labels)[known])
        arrays[f"{name}/reliability"] = torch.stack(curve).numpy()
    return arrays


def _lines(
    networks: Fitted, parts: Parts, points: int, track: Track
) -> dict[str, list[dict[str, float]]]:
    """Measure points on the line from student to teacher, for each depth of the same architecture.

    BatchNorm statistics are measured again at every point, both ends included, in one pass over
    training images without augmentation.
    """
    pair = networks.pair
    taught_by = pair.teacher.module
    train = _some(parts.train, LINE_IMAGES)
    compared = {"test": _some(parts.test, LINE_IMAGES)}
    if parts.known:
        compared = {"train": train, **compared}
    lines: dict[str, list[dict[str, float]]] = {}
    for depth in pair.depths:
        student = pair.net.subnet(depth)
        if differing(student, taught_by) is not None:
            continue
        lines[depth] = []
        for i in track(range(points), f"line of depth {depth}", points):
            mixed = between(student, taught_by, i / (points - 1)).eval()
            estimate_all(mixed, train)
            point = {"share": i / (points - 1)}
            for part, batches in compared.items():
                seen = observe(networks.teacher, mixed, batches)
                found = seen.students[""]
                point |= {
                    f"{part}/accuracy": (found.top == seen.labels).double().mean().item(),
                    f"{part}/nll": found.nll.mean().item(),
                    f"{part}/agreement": (found.top == seen.teacher.top).double().mean().item(),
                    f"{part}/kl": found.kl.mean().item(),
                }
            lines[depth].append(point)
    return lines
