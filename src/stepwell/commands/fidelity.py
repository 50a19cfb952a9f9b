"""What `eval --fidelity` does: the depths of a network against a teacher, on training and test images.

Teacher and control are whatever `stepwell.methods.open_teacher` opens.
"""

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stepwell.commands.runs import file_of
from stepwell.console import say, track
from stepwell.data import Batches
from stepwell.evaluation.calibration import reliability
from stepwell.evaluation.fidelity import agreement_matrix, fidelity_measures
from stepwell.evaluation.intervals import LEVEL, RESAMPLES
from stepwell.evaluation.side_by_side import Observed, observe
from stepwell.files import config_of, read_json, write_whole
from stepwell.methods import OpenTeacher, open_teacher
from stepwell.methods.objective import Teacher, stages_of
from stepwell.methods.stages import common_stages, pair_stages
from stepwell.methods.teachers import Source
from stepwell.nets import NestedNet
from stepwell.nets.between import between, differing
from stepwell.nets.calibrate import estimate_all
from stepwell.nets.file import fingerprint
from stepwell.recipes.parts import Parts, changes_of, distill_data_of, fitted
from stepwell.training.run import writing
from stepwell.types import Exit

#: Training images compared on: at most so many, evenly spaced over all.
TRAIN_IMAGES = 50_000
#: Images of each part that the line between two networks is measured on.
LINE_IMAGES = 5_000
#: Changes of whole batches, beside `mix`, that the augmented images can be shown with.
DRAWN_ANEW = ("noise", "composites")


class Pair(NamedTuple):
    """A student's depths, their teacher, and for each depth a student of another teacher, if any.

    config: of the student's run; empty where it is of no run.
    fingerprint: of the student's weights.
    """

    run: Path
    net: NestedNet
    config: Mapping[str, Any]
    fingerprint: str
    depths: tuple[str, ...]
    teacher: OpenTeacher
    controls: Mapping[str, OpenTeacher]


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


def open_pair(
    run: Path,
    net: NestedNet,
    config: Mapping[str, Any],
    teacher: Sequence[str],
    control: str | None = None,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    interpolate: int = 0,
) -> Pair:
    """Open teacher and control, and check what can be checked of them without any image.

    Where the teacher is a depth of `net` itself, its other depths are the students.

    Args:
        run: where `net` is from; if that is a run (it has a `config`), the results can be kept there.
        teacher, mean, std: as for `open_teacher`.
        control: as `teacher`; of a network of several depths, for each student the one of its name.
        interpolate: as for `measure_pair`.

    Raises:
        OSError: another process is writing to the run.
        FileNotFoundError, ImportError: as for `open_teacher`.
        ValueError: as for `open_teacher`; a network would be compared with itself; `interpolate` is
            asked for between unlike architectures, or of a teacher that gives no weights.
    """
    if config:
        with writing(folder_of(run) / "net.safetensors"):
            pass
    opened = open_teacher(teacher, mean=mean, std=std)
    own = fingerprint(file_of(run))
    themselves = {source.depth for source in opened.sources if source.weights == own}
    depths = tuple(depth for depth in net.depths if depth not in themselves)
    if not depths:
        raise ValueError(
            f"{' '.join(teacher)} is the network {run} itself, and has no other depth: name its teacher"
        )
    for source in opened.sources:
        if source.weights != own:
            _tell_of_doubts(run, config, source)
    _check_line(run, net, depths, opened, interpolate)
    controls: dict[str, OpenTeacher] = {}
    if control is not None:
        controls = _open_controls(run, depths, control, own, opened.sources)
    return Pair(run, net, config, own, depths, opened, controls)


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
            f"note: no CKA: {_named(pair.teacher)} gives no features of stages that {pair.run} has, too"
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
        "teacher": {"name": _named(pair.teacher), "fingerprint": pair.teacher.fingerprint},
        "controls": {
            depth: {"name": _named(opened), "fingerprint": opened.fingerprint}
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


def folder_of(run: Path) -> Path:
    """The run directory of a run, which may be named by the file of its network."""
    return run if run.is_dir() else run.parent


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


def _named(opened: OpenTeacher) -> str:
    """A teacher as it is told of, such as "runs/a@20" or "the ensemble of runs/a@20, b.onnx"."""
    names = ", ".join(map(str, opened.sources))
    return f"the ensemble of {names}" if len(opened.sources) > 1 else names


def _open_controls(
    run: Path, depths: tuple[str, ...], name: str, own: str, taught_by: Sequence[Source]
) -> dict[str, OpenTeacher]:
    """A control for each of the student's depths: the one of its name; of a lone student, else any.

    Args:
        own: hash of the student's weights; taught_by: its teacher, or the members of an ensemble.

    Raises:
        ValueError: the control is student or teacher itself, has the same teacher, or has not the
            student's depths.
    """
    opened = open_teacher([name])
    (source,) = opened.sources
    if source.weights in {own, *(other.weights for other in taught_by)}:
        raise ValueError(
            f"--control {name} is the network {run} itself, or its teacher: name a student of another "
            "teacher"
        )
    # all weights that the control's run was given: its teachers', or those that it began with
    given = config_of(source.file).get("teacher") if source.file else None
    if same := [other.name for other in taught_by if other.weights in (given or "")]:
        raise ValueError(
            f"--control {name} was taught by {', '.join(same)}, too, or began with its weights, so it "
            "is no control: name a student of another teacher"
        )
    if set(depths) <= set(source.depths):
        return {depth: open_teacher([f"{name}@{depth}"]) for depth in depths}
    if len(depths) > 1:
        theirs = ", ".join(source.depths) or "one depth"
        raise ValueError(
            f"--control {name} has {theirs}, and {run} has {', '.join(depths)}: the control needs the "
            "same depths"
        )
    return {depths[0]: opened}


def _tell_of_doubts(run: Path, config: Mapping[str, Any], source: Source) -> None:
    """Say what may make the run agree with this teacher, or look better, for other reasons."""
    theirs = config_of(source.file) if source.file else {}
    if not (config and theirs):
        return
    if config["data"]["fingerprint"] != theirs["data"]["fingerprint"]:
        say(
            f"note: {source.name} was trained on other data than {run}: if test images of one were "
            "training images of the other, it looks better on them than it is"
        )
    ours, others = (
        {"net": c["arguments"].get("student"), **c["arguments"]} for c in (config, theirs)
    )
    started = any(a.get("init") for a in (ours, others))
    if (ours["net"], ours["seed"]) == (others["net"], others["seed"]) and not started:
        say(
            f"note: {run} has the --seed of its teacher {source.name}, so it began with the same "
            "weights: part of what they agree on may be due to that"
        )


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


def _check_line(
    run: Path, net: NestedNet, depths: Sequence[str], teacher: OpenTeacher, points: int
) -> None:
    """Refuse a line between networks that have none.

    Raises:
        ValueError: too few points; the teacher gives no weights, or is normalised in another way; no
            depth has its architecture.
    """
    if points == 0:
        return
    if points < 2:
        raise ValueError(f"--interpolate {points}: a line has at least 2 points, its ends")
    try:
        taught_by = teacher.module
    except ValueError as error:
        raise ValueError(f"--interpolate: {error}") from error
    name = _named(teacher)
    if teacher.normalisation not in (None, (net.card.mean, net.card.std)):
        raise ValueError(
            f"--interpolate: {name} normalises its images in another way than {run}, so no network "
            "between them suits either"
        )
    odd = {depth: differing(net.subnet(depth), taught_by) for depth in depths}
    if None not in odd.values():
        depth, tensor = next(iter(odd.items()))
        raise ValueError(
            f"--interpolate needs equal architectures, and depth {depth} of {run} differs from {name} "
            f"in {tensor}"
        )


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
