"""What `eval --fidelity` does: the depths of a network against a teacher, on training and test images.

A teacher and a control are `Opened`: anything that answers images, with a card that says which images
and which classes.
"""

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from stepwell.commands.runs import network_of
from stepwell.console import say, track
from stepwell.data import Augment, Batches
from stepwell.evaluation.calibration import reliability
from stepwell.evaluation.fidelity import agreement_matrix, fidelity_measures
from stepwell.evaluation.intervals import LEVEL, RESAMPLES
from stepwell.evaluation.side_by_side import Observed, observe
from stepwell.files import write_whole
from stepwell.nets import Card, NestedNet
from stepwell.nets.between import between, differing
from stepwell.nets.file import net_digest
from stepwell.recipes.classification import Parts
from stepwell.training.run import writing
from stepwell.types import Exit

#: Training images compared on: at most so many, evenly spaced over all.
TRAIN_IMAGES = 50_000
#: Images of each part that the line between two networks is measured on.
LINE_IMAGES = 5_000


class Opened(NamedTuple):
    """A network to compare with.

    path, depth, fingerprint: what it is.
    answer: images, sized and normalised as `card` says, to exits by name.
    card: classes, size, mean and std.
    modules: plain modules by name, where it is made of such.
    """

    path: str
    depth: str
    fingerprint: str
    answer: Callable[[Tensor], dict[str, Exit]]
    card: Card
    modules: Mapping[str, nn.Module]

    @property
    def about(self) -> dict[str, str]:
        return {"path": self.path, "depth": self.depth, "fingerprint": self.fingerprint}


class Pair(NamedTuple):
    """A student's depths, their teacher, and a student of another teacher, if there is one."""

    net: NestedNet
    depths: tuple[str, ...]
    teacher: Opened
    control: Opened | None


def open_pair(
    run: Path,
    net: NestedNet,
    config: Mapping[str, Any],
    teacher: Path,
    depth: str | None = None,
    control: Path | None = None,
    *,
    interpolate: int = 0,
) -> Pair:
    """Read teacher and control, and check that they can be compared with `net`.

    Where the teacher is `net` itself, its other depths are the students.

    Args:
        run: where `net` is from; if that is a run (it has a `config`), the results can be kept there.
        depth: the teacher's; its full net by default.
        interpolate: as for `measure_pair`.

    Raises:
        OSError: another process is writing to the run.
        ValueError: there is no such network or depth; classes or their order differ; a network would
            be compared with itself; `interpolate` is asked for between unlike architectures.
    """
    if config:
        with writing(folder_of(run) / "net.safetensors"):
            pass
    taught_by, theirs = network_of(teacher)
    depth = taught_by.full if depth is None else depth
    opened = _opened(teacher, taught_by, [depth])
    _check_classes(run, net.card, teacher, opened.card)
    depths = tuple(net.depths)
    if net_digest(net) == net_digest(taught_by):
        depths = tuple(d for d in depths if d != depth)
        if not depths:
            raise ValueError(
                f"{teacher} is the network {run} itself, and has no other depth: name its teacher"
            )
    elif config and theirs and config["data"]["fingerprint"] != theirs["data"]["fingerprint"]:
        say(
            f"note: {teacher} was trained on other data than {run}: if test images of one were "
            "training images of the other, it looks better on them than it is"
        )
    if _same_start(net, config, taught_by, theirs):
        say(
            f"note: {run} has the --seed of its teacher, so it began with the same weights: part of "
            "what they agree on may be due to that"
        )
    if opened.card.size != net.card.size:
        sizes = f"from {net.card.size} to {opened.card.size} pixels"
        say(f"note: images are scaled {sizes} for {teacher}")
    _check_line(run, net, depths, teacher, opened, interpolate)
    against = None if control is None else _open_control(run, net, depths, control, opened)
    return Pair(net, depths, opened, against)


def measure_pair(
    pair: Pair, parts: Parts, arguments: Mapping[str, Any], *, interpolate: int = 0
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fidelity on the training images as they are, augmented, and on the test images.

    On other data than the network was trained on, on test images only.

    Args:
        arguments: of the run; its seed and whether it flips images are those of the augmentation.
        interpolate: points on the line between student and teacher, both ends included; 0: none.

    Returns:
        What fidelity.json holds, and the arrays of fidelity.npz: for each part the matrix of
        agreement, "PART/DEPTH/matrix" (teacher's class, student's class), and reliability curves,
        "PART/DEPTH/reliability" and "PART/teacher/reliability" (3, bins): examples, confidence,
        accuracy.
    """
    net, card = pair.net, pair.net.card
    compared: dict[str, Batches] = {}
    if parts.known:
        train = _some(parts.train, TRAIN_IMAGES)
        compared = {"train": train, "augmented": _augmented(train, parts.flip, arguments)}
    else:
        say(
            "note: compared on test images only, as this is not surely the data that the network was "
            "trained on"
        )
    compared["test"] = parts.test
    stages = [*net.plan.stages]
    found: dict[str, Any] = {
        "teacher": pair.teacher.about,
        "control": pair.control.about if pair.control else None,
        "depths": [*pair.depths],
        "stages": stages,
        "classes": [*card.classes],
        "level": LEVEL,
        "resamples": RESAMPLES,
        "parts": {},
    }
    arrays: dict[str, np.ndarray] = {}
    for part, batches in compared.items():
        seen = observe(
            _for(card, pair.teacher),
            lambda images: net.forward_all(images, pair.depths),
            track(batches, f"{part} images", len(batches)),
            control=None if pair.control is None else _for(card, pair.control),
        )
        numbers = fidelity_measures(seen, card.classes, stages=stages)
        found["parts"][part] = {"images": len(seen.labels), "numbers": numbers}
        arrays |= {f"{part}/{name}": value for name, value in _arrays(seen).items()}
    if interpolate:
        found["interpolation"] = _lines(pair, parts, interpolate)
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


def _opened(path: Path, net: NestedNet, depths: Sequence[str]) -> Opened:
    net.require_ready(*depths)
    return Opened(
        str(path),
        ", ".join(depths),
        net_digest(net)[:16],
        lambda images: net.forward_all(images, depths),
        net.card,
        {depth: net.subnet(depth) for depth in depths},
    )


def _open_control(
    run: Path, net: NestedNet, depths: tuple[str, ...], path: Path, teacher: Opened
) -> Opened:
    """The control's depths of the student's names; of a lone student, else its full depth."""
    other, _ = network_of(path)
    _check_classes(run, net.card, path, other.card)
    if net_digest(other)[:16] in (net_digest(net)[:16], teacher.fingerprint):
        raise ValueError(
            f"--control {path} is the network {run} itself, or its teacher: name a student of another "
            "teacher"
        )
    if set(depths) <= other.depths.keys():
        return _opened(path, other, depths)
    if len(depths) > 1:
        raise ValueError(
            f"--control {path} has the depths {', '.join(other.depths)}, {run} has "
            f"{', '.join(depths)}: the control needs the same"
        )
    opened = _opened(path, other, [other.full])
    return opened._replace(answer=lambda images: {depths[0]: other.forward_all(images)[other.full]})


def _same_start(
    net: NestedNet, config: Mapping[str, Any], other: NestedNet, theirs: Mapping[str, Any]
) -> bool:
    """Whether two runs of one architecture drew the same initial weights."""
    if net_digest(net) == net_digest(other) or not (config and theirs):
        return False
    ours, others = (c["arguments"] for c in (config, theirs))
    started = any(a.get("init") for a in (ours, others))
    return net.builder == other.builder and ours["seed"] == others["seed"] and not started


def _check_classes(run: Path, ours: Card, path: Path, theirs: Card) -> None:
    """Refuse networks whose logits mean other things.

    Raises:
        ValueError: the classes or their order differ.
    """
    if ours.classes == theirs.classes:
        return
    if sorted(ours.classes) == sorted(theirs.classes):
        at = next(
            i for i, (a, b) in enumerate(zip(ours.classes, theirs.classes, strict=True)) if a != b
        )
        raise ValueError(
            f"{path} and {run} have the same classes in another order (class {at} is "
            f"{theirs.classes[at]!r} there and {ours.classes[at]!r} here): their logits do not compare"
        )
    odd = sorted(set(ours.classes) ^ set(theirs.classes))[0]
    raise ValueError(
        f"{path} has {len(theirs.classes)} classes, {run} {len(ours.classes)}, and they differ, such "
        f"as in {odd!r}: compare networks of the same classes"
    )


def _for(card: Card, network: Opened) -> Callable[[Tensor], dict[str, Exit]]:
    """`network` for images that are sized and normalised as `card` says, not its own card."""
    theirs = network.card
    same = (card.mean, card.std) == (theirs.mean, theirs.std)
    values = (card.mean, card.std, theirs.mean, theirs.std)
    mean, std, mean_, std_ = (torch.tensor(v)[:, None, None] for v in values)

    def answer(images: Tensor) -> dict[str, Exit]:
        if not same:
            images = (images * std + mean - mean_) / std_
        if theirs.size != card.size:
            images = F.interpolate(images, theirs.size, mode="bilinear", antialias=True)
        return network.answer(images)

    return answer


def _some(batches: Batches, count: int) -> Batches:
    """At most `count` of the images, evenly spaced over all."""
    images = batches.images
    if len(images) <= count:
        return batches
    return batches.with_images(images.subset(torch.linspace(0, len(images) - 1, count).long()))


def _augmented(batches: Batches, flip: bool, arguments: Mapping[str, Any]) -> Batches:
    """The images changed at random as in training: one draw of each."""
    asked = arguments.get("flip")
    return Batches(
        batches.images,
        batches.batch_size,
        mean=batches.mean,
        std=batches.std,
        augment=Augment.standard(batches.images.size, flip if asked is None else asked),
        seed=arguments.get("seed", 0),
    )


def _arrays(seen: Observed) -> dict[str, np.ndarray]:
    teacher, labels = seen.teacher, seen.labels
    arrays = {
        f"{name}/matrix": agreement_matrix(teacher.top, student.top, seen.classes).numpy()
        for name, student in seen.students.items()
    }
    for name, network in {"teacher": teacher, **seen.students}.items():
        curve = reliability(network.confidence, network.top == labels)
        arrays[f"{name}/reliability"] = torch.stack(curve).numpy()
    return arrays


def _check_line(
    run: Path,
    net: NestedNet,
    depths: Sequence[str],
    path: Path,
    teacher: Opened,
    points: int,
) -> None:
    """Refuse a line between networks that have none.

    Raises:
        ValueError: too few points; no depth has the teacher's architecture.
    """
    if points == 0:
        return
    if points < 2:
        raise ValueError(f"--interpolate {points}: a line has at least 2 points, its ends")
    odd = {depth: differing(net.subnet(depth), *teacher.modules.values()) for depth in depths}
    if None not in odd.values():
        depth, name = next(iter(odd.items()))
        raise ValueError(
            f"--interpolate needs equal architectures, and depth {depth} of {run} differs from {path}, "
            f"depth {teacher.depth}, in {name}"
        )


def _lines(pair: Pair, parts: Parts, points: int) -> dict[str, list[dict[str, float]]]:
    """For each depth of the teacher's architecture, the points from the student to the teacher.

    BatchNorm statistics are measured again at every point, both ends included, in one pass over
    training images without augmentation.
    """
    (taught_by,) = pair.teacher.modules.values()
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
            mixed = between(student, taught_by, i / (points - 1)).train()
            update_bn(train, mixed)
            mixed.eval()
            point = {"share": i / (points - 1)}
            for part, batches in compared.items():
                seen = observe(_for(pair.net.card, pair.teacher), mixed, batches)
                found = seen.students[""]
                point |= {
                    f"{part}/accuracy": (found.top == seen.labels).double().mean().item(),
                    f"{part}/nll": found.nll.mean().item(),
                    f"{part}/agreement": (found.top == seen.teacher.top).double().mean().item(),
                    f"{part}/kl": found.kl.mean().item(),
                }
            lines[depth].append(point)
    return lines
