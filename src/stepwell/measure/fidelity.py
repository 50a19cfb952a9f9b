"""Fidelity: compare the depths of a network with a teacher, on training and test examples."""

import io
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from stepwell.data import Batches
from stepwell.data.tokens import TextBatches
from stepwell.evaluation.calibration import reliability
from stepwell.evaluation.fidelity import agreement_matrix, fidelity_measures
from stepwell.evaluation.intervals import LEVEL, RESAMPLES
from stepwell.evaluation.side_by_side import Observed, observe
from stepwell.files import config_of, read_json, write_whole, writing
from stepwell.measure.data_parts import Parts, RunImages, parts_of
from stepwell.measure.fidelity_fit import Fitted, fit_pair, fit_texts
from stepwell.measure.fidelity_networks import named, open_pair
from stepwell.measure.text import TextBatchParts, load_text, text_parts
from stepwell.nets.files.container import folder_of, network_file
from stepwell.nets.files.nested import load
from stepwell.nets.nested.calibrate import estimate_all
from stepwell.nets.nested.interpolation import differing, interpolate

#: Training examples to compare on, at most; evenly spaced over all.
TRAIN_EXAMPLES = 50_000
#: Images of each part to measure the line between two networks on.
LINE_IMAGES = 5_000
#: Synthetic images that are drawn again in each epoch, as part of the augmentation.
DRAWN_ANEW = ("noise", "composites")
#: Passes batches on, in order, and shows progress: (steps, title, number of steps).
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
#: Batches of any kind.
B = TypeVar("B", Batches, TextBatches)


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
    parts: Parts | TextBatchParts
    if net.card.input == "text":
        texts = text_parts(load_text(file), path, config, data)
        parts, networks = texts, fit_texts(pair, texts.test)
    else:
        images = parts_of(net, path, config, data)
        parts, networks = images, fit_pair(pair, images.test)
    record, arrays = measure_pair(networks, parts, interpolate=interpolate, track=track)
    if keep:
        write_fidelity(folder_of(path), record, arrays)
    return record


def measure_pair(
    networks: Fitted, parts: Parts | TextBatchParts, *, interpolate: int = 0, track: Track = untracked
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measure fidelity on the training examples, on images augmented as in training, and on the test's.

    On data other than the training's: on test examples alone. Arguments as for `measure_fidelity`.

    Returns:
        The content of fidelity.json, and the arrays of fidelity.npz. For each part these are the
        matrix of agreement, "PART/DEPTH/matrix" (teacher's class, student's class), and reliability
        curves, "PART/DEPTH/reliability" and "PART/teacher/reliability" (3, bins): examples,
        confidence, accuracy. Mixed images have no single class, so their part has no curves.
    """
    pair = networks.pair
    card, file = pair.net.card, folder_of(pair.run) / "results.json"
    results = read_json(file, "put it right") if pair.config and file.exists() else {}
    compared, policy = _compared(networks, parts)
    noun = parts.test.examples.NOUN
    record: dict[str, Any] = {
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
        "level": LEVEL, "resamples": RESAMPLES, "augmentation": policy, "noun": noun,
        "parts": {},
    }  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    for part, batches in compared.items():
        seen = observe(
            networks.teacher, networks.student, track(batches, f"{part} {noun}", len(batches)),
            control=networks.control,
        )  # fmt: skip
        numbers = fidelity_measures(seen, card.classes, stages=networks.stages)
        record["parts"][part] = {"images": len(seen.labels), "numbers": numbers}
        arrays |= {f"{part}/{name}": value for name, value in _arrays(seen).items()}
    if interpolate and isinstance(parts, Parts):
        record["interpolation"] = _lines(networks, parts, interpolate, track)
    return record | {"finished": time.strftime("%Y-%m-%d %H:%M:%S")}, arrays


def write_fidelity(folder: Path, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write fidelity.json and fidelity.npz to a run; OSError if another process writes to it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    with writing(folder / "net.safetensors"):
        # The report looks for fidelity.json, so it must never stand beside another's arrays.
        (folder / "fidelity.json").unlink(missing_ok=True)
        write_whole(folder / "fidelity.npz", buffer.getvalue())
        write_whole(folder / "fidelity.json", json.dumps(record, indent=1).encode())


def _compared(
    networks: Fitted, parts: Parts | TextBatchParts
) -> tuple[dict[str, Batches | TextBatches], str]:
    """The parts to compare on, by name, and the name of the augmentation."""
    pair, policy = networks.pair, ""
    if not parts.known:
        warnings.warn(
            f"compared on test {parts.test.examples.NOUN} only: the network may have been trained on "
            "other data",
            stacklevel=3,
        )
        return {"test": parts.test}, policy
    if isinstance(parts, TextBatchParts):
        assert parts.train is not None
        return {"train": _some(parts.train, TRAIN_EXAMPLES), "test": parts.test}, policy
    train = _some(parts.train, TRAIN_EXAMPLES)
    compared: dict[str, Batches | TextBatches] = {"train": train}
    policy, augmented = _as_taught(train, parts.flip, RunImages.of(pair.config))
    if policy:
        compared["augmented"] = augmented
    else:
        note = "was trained without augmentation, so no augmented images are compared"
        warnings.warn(f"{pair.run} {note}", stacklevel=3)
    return compared | {"test": parts.test}, policy


def _some(batches: B, count: int) -> B:
    """Take at most `count` of the examples, evenly spaced over all."""
    examples = batches.examples
    if len(examples) <= count:
        return batches
    chosen = torch.linspace(0, len(examples) - 1, count).long()
    return batches.with_examples(examples.subset(chosen))


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
            mixed = interpolate(student, taught_by, i / (points - 1)).eval()
            estimate_all(mixed, train)
            point = {"share": i / (points - 1)}
            for part, batches in compared.items():
                seen = observe(networks.teacher, mixed, batches)
                predictions = seen.students[""]
                point |= {
                    f"{part}/accuracy": (predictions.top == seen.labels).double().mean().item(),
                    f"{part}/nll": predictions.nll.mean().item(),
                    f"{part}/agreement": (predictions.top == seen.teacher.top).double().mean().item(),
                    f"{part}/kl": predictions.kl.mean().item(),
                }
            lines[depth].append(point)
    return lines
