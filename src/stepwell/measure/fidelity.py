"""What `eval --fidelity` measures: a network's depths against a teacher, on train and test images."""

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stepwell.console import say, track
from stepwell.data import Batches
from stepwell.evaluation.calibration import reliability
from stepwell.evaluation.fidelity import agreement_matrix, fidelity_measures
from stepwell.evaluation.intervals import LEVEL, RESAMPLES
from stepwell.evaluation.side_by_side import Observed, observe
from stepwell.files import read_json, write_whole
from stepwell.measure.data_parts import Parts, changes_of, distill_data_of, fitted
from stepwell.measure.fidelity_networks import Pair, folder_of, named
from stepwell.nets import NestedNet
from stepwell.nets.nested.calibrate import estimate_all
from stepwell.nets.nested.interpolation import between, differing
from stepwell.teachers.stages import common_stages, pair_stages
from stepwell.teachers.teacher import Teacher, stages_of
from stepwell.training.run import writing
from stepwell.types import Exit

#: Training images compared on: at most so many, evenly spaced over all.
TRAIN_IMAGES = 50_000
#: Images of each part that the line between two networks is measured on.
LINE_IMAGES = 5_000
#: Changes of whole batches, beside `mix`, that the augmented images can be shown with.
DRAWN_ANEW = ("noise", "composites")


class Fitted(NamedTuple):
    """A pair that answers the images of some data.

    stages: that are compared, by name: those of student and teacher, and of the controls if they have
        them; the exits hold just these features, in this order.
    """

    pair: Pair
    student: Callable[[Tensor], dict[str, Exit]]
    teacher: Teacher
    control: Callable[[Tensor], dict[str, Exit]] | None
    stages: tuple[str, ...]


def fit_pair(pair: Pair, test: Batches) -> Fitted:
    """The networks for images as `test` has them, tried out on a few.

    Each gets the pixels that the student gets, normalised in its own way and scaled to its own size.

    Raises:
        ValueError: a network knows other classes, in number, names or order, or does not run on the
            images; as for `OpenTeacher.for_data`.
    """
    net, depths = pair.net, pair.depths
    teacher = fitted(pair.teacher, test, resize=True)
    controls = {d: fitted(opened, test, resize=True) for d, opened in pair.controls.items()}
    names = common_stages(net, teacher)
    if not names:
        say(
            f"note: no CKA: {named(pair.teacher)} gives no features of stages that {pair.run} has, too"
        )
    size = test.images.size
    pairs = pair_stages(net, teacher, names, (3, size, size)) if names else []
    ours = [p.student for p in pairs]
    control = None
    if controls:
        of_controls = {d: _places(net, ours, other) for d, other in controls.items()}

        def control(images: Tensor) -> dict[str, Exit]:
            return {d: _picked(other(images), of_controls[d]) for d, other in controls.items()}

    def student(images: Tensor) -> dict[str, Exit]:
        return {d: _picked(exit, ours) for d, exit in net.forward_all(images, depths).items()}

    return Fitted(
        pair,
        student,
        lambda images: _picked(teacher(images), [p.teacher for p in pairs]),
        control,
        tuple(names),
    )


def measure_pair(
    networks: Fitted, parts: Parts, *, interpolate: int = 0
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fidelity on the training images as they are, augmented, and on the test images.

    On other data than the network was trained on, on test images only.

    Args:
        interpolate: points on the line between student and teacher, both ends included; 0: none.

    Returns:
        What fidelity.json holds, and the arrays of fidelity.npz: for each part the matrix of
        agreement, "PART/DEPTH/matrix" (teacher's class, student's class), and reliability curves,
        "PART/DEPTH/reliability" and "PART/teacher/reliability" (3, bins): examples, confidence,
        accuracy. Mixed images have no one class, so their part has no curves.
    """
    pair = networks.pair
    card = pair.net.card
    compared: dict[str, Batches] = {}
    policy = ""
    if parts.known:
        train = _some(parts.train, TRAIN_IMAGES)
        compared = {"train": train}
        policy, augmented = _as_taught(train, parts.flip, pair.config.get("arguments", {}))
        if policy:
            compared["augmented"] = augmented
        else:
            say(f"note: {pair.run} was taught on images as they are, so none are augmented here")
    else:
        say(
            "note: compared on test images only, as this is not surely the data that the network was "
            "trained on"
        )
    compared["test"] = parts.test
    found: dict[str, Any] = {
        "data": {"name": parts.name, "fingerprint": parts.fingerprint},
        "student": {
            "name": str(pair.run),
            "fingerprint": pair.fingerprint,
            "trained": _trained(pair),
        },
        "teacher": {"name": named(pair.teacher), "fingerprint": pair.teacher.fingerprint},
        "controls": {
            depth: {"name": named(opened), "fingerprint": opened.fingerprint}
            for depth, opened in pair.controls.items()
        },
        "depths": [*pair.depths],
        "stages": [*networks.stages],
        "classes": [*card.classes],
        "level": LEVEL,
        "resamples": RESAMPLES,
        "augmentation": policy,
        "parts": {},
    }
    arrays: dict[str, np.ndarray] = {}
    for part, batches in compared.items():
        seen = observe(
            networks.teacher,
            networks.student,
            track(batches, f"{part} images", len(batches)),
            control=networks.control,
        )
        numbers = fidelity_measures(seen, card.classes, stages=networks.stages)
        found["parts"][part] = {"images": len(seen.labels), "numbers": numbers}
        arrays |= {f"{part}/{name}": value for name, value in _arrays(seen).items()}
    if interpolate:
        found["interpolation"] = _lines(networks, parts, interpolate)
    return found | {"finished": time.strftime("%Y-%m-%d %H:%M:%S")}, arrays


def keep(folder: Path, found: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write fidelity.json and fidelity.npz to a run directory, for its report.

    Raises:
        OSError: another process is writing to it; the disk is full.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    with writing(folder / "net.safetensors"):
        # The report looks for fidelity.json, so it must never stand beside another's arrays.
        (folder / "fidelity.json").unlink(missing_ok=True)
        write_whole(folder / "fidelity.npz", buffer.getvalue())
        write_whole(folder / "fidelity.json", json.dumps(found, indent=1).encode())


def _trained(pair: Pair) -> str | None:
    """When the student's run ended; none where it is of no run."""
    results = folder_of(pair.run) / "results.json"
    if not pair.config or not results.exists():
        return None
    return read_json(results, "put it right").get("finished")


def _places(net: NestedNet, stages: Sequence[int], other: nn.Module) -> list[int]:
    """Where another network has features of these stages of `net` by name; none if it lacks any."""
    theirs = stages_of(other)
    names = [net.stages[i] for i in stages]
    return [theirs.index(name) for name in names] if set(names) <= set(theirs) else []


def _picked(exit: Exit, places: Sequence[int]) -> Exit:
    return Exit(exit.logits, tuple(exit.features[i] for i in places))


def _some(batches: Batches, count: int) -> Batches:
    """At most `count` of the images, evenly spaced over all."""
    images = batches.images
    if len(images) <= count:
        return batches
    return batches.with_images(images.subset(torch.linspace(0, len(images) - 1, count).long()))


def _as_taught(batches: Batches, flip: bool, arguments: Mapping[str, Any]) -> tuple[str, Batches]:
    """The images changed at random as in the run's training, and in words how: one draw of each.

    Empty words: they were not changed. Images that joined the batches (unlabeled ones, or those of a
    generator) are not among them.
    """
    data = distill_data_of(arguments)
    words = [data.augment, data.mix, data.synthetic if data.synthetic in DRAWN_ANEW else "none"]
    augmented = Batches(
        batches.images,
        batches.batch_size,
        mean=batches.mean,
        std=batches.std,
        **changes_of(arguments, batches.images, flip),
        seed=arguments.get("seed", 0),
    )
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


def _lines(networks: Fitted, parts: Parts, points: int) -> dict[str, list[dict[str, float]]]:
    """For each depth of the teacher's architecture, the points from the student to the teacher.

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
