"""The networks of a fidelity comparison, opened and checked before any image is read.

Teacher and control may be anything that `stepwell.open_teacher` opens.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stepwell.files import config_of, writing
from stepwell.flags import naming
from stepwell.nets import NestedNet
from stepwell.nets.files.container import folder_of
from stepwell.nets.files.nested import fingerprint
from stepwell.nets.nested.interpolation import differing
from stepwell.teachers import OpenTeacher, open_teacher
from stepwell.teachers.opening import Source


class Pair(NamedTuple):
    """A student's depths, their teacher, and a control for each depth, if any.

    config: of the student's run; empty outside of a run.
    fingerprint: of the student's weights.
    """

    run: Path
    net: NestedNet
    config: Mapping[str, Any]
    fingerprint: str
    depths: tuple[str, ...]
    teacher: OpenTeacher
    controls: Mapping[str, OpenTeacher]


def open_pair(
    run: Path, net: NestedNet, config: Mapping[str, Any], teacher: Sequence[str],
    control: str | None = None, *, mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None, interpolate: int = 0,
) -> Pair:  # fmt: skip
    """Open teacher and control, and check what can be checked without images.

    If the teacher is a depth of `net` itself, the other depths are the students.

    Args:
        run: the run directory or file of `net`; config: of the run, empty outside of a run.
        teacher, mean, std: as for `open_teacher`.
        control: as `teacher`; each student is compared with the control's depth of the same name.
        interpolate: as for `measure_fidelity`.

    Raises:
        OSError: another process is writing to the run.
        FileNotFoundError, ImportError, ValueError: as for `open_teacher`.
        ValueError: a network would be compared with itself; `interpolate` needs two networks of one
            architecture, with weights.
    """
    if config:
        with writing(folder_of(run) / "net.safetensors"):
            pass
    opened = open_teacher(teacher, mean=mean, std=std)
    own_weights = fingerprint(run)
    themselves = {source.depth for source in opened.sources if source.weights == own_weights}
    depths = tuple(depth for depth in net.depths if depth not in themselves)
    if not depths:
        raise ValueError(
            f"{' '.join(teacher)} is the network {run} itself, and has no other depth: name its teacher"
        )
    for source in opened.sources:
        if source.weights != own_weights:
            _warn_of_doubts(run, config, source)
    _check_line(run, net, depths, opened, interpolate)
    controls: dict[str, OpenTeacher] = {}
    if control is not None:
        controls = _open_controls(run, depths, control, own_weights, opened.sources)
    return Pair(run, net, config, own_weights, depths, opened, controls)


def named(opened: OpenTeacher) -> str:
    """Name a teacher for messages, such as "runs/a@20" or "the ensemble of runs/a@20, b.onnx"."""
    names = ", ".join(map(str, opened.sources))
    return f"the ensemble of {names}" if len(opened.sources) > 1 else names


def _open_controls(
    run: Path, depths: tuple[str, ...], name: str, own_weights: str, taught_by: Sequence[Source]
) -> dict[str, OpenTeacher]:
    """Open a control for each of the student's depths: the depth of the same name, or the only one."""
    opened = open_teacher([name])
    (source,) = opened.sources
    if source.weights in {own_weights, *(other.weights for other in taught_by)}:
        raise ValueError(
            f"--control {name} is the network {run} itself, or its teacher: name a student of another "
            "teacher"
        )
    # all weights that the control's run was given: its teachers', or those that it began with
    given = config_of(source.file).get("teacher") if source.file else None
    if shared := [other.name for other in taught_by if other.weights in (given or "")]:
        raise ValueError(
            f"--control {name} was taught by {', '.join(shared)}, too, or began with its weights, so "
            "it is no control: name a student of another teacher"
        )
    if set(depths) <= set(source.depths):
        return {depth: open_teacher([f"{name}@{depth}"]) for depth in depths}
    if len(depths) > 1:
        available = ", ".join(source.depths) or "one depth"
        raise ValueError(
            f"--control {name} has {available}, and {run} has {', '.join(depths)}: the control needs "
            "the same depths"
        )
    return {depths[0]: opened}


def _warn_of_doubts(run: Path, config: Mapping[str, Any], source: Source) -> None:
    """Warn of other reasons for which the run may agree with this teacher, or look better."""
    teacher_config = config_of(source.file) if source.file else {}
    if not (config and teacher_config):
        return
    own_data, others_data = config["data"], teacher_config["data"]
    # texts have a fingerprint that the longest text's length does not change
    key = "content" if "content" in own_data and "content" in others_data else "fingerprint"
    if own_data[key] != others_data[key]:
        warnings.warn(
            f"{source.name} was trained on other data than {run}: if test examples of one were "
            "training examples of the other, it looks better on them than it is",
            stacklevel=3,
        )
    ours, others = (
        {"net": c["arguments"].get("student"), **c["arguments"]} for c in (config, teacher_config)
    )
    started = any(a.get("init") for a in (ours, others))
    if (ours["net"], ours["seed"]) == (others["net"], others["seed"]) and not started:
        warnings.warn(
            f"{run} has the --seed of its teacher {source.name}, so both began with the same weights: "
            "part of their agreement may be due to that",
            stacklevel=3,
        )


def _check_line(
    run: Path, net: NestedNet, depths: Sequence[str], teacher: OpenTeacher, points: int
) -> None:
    """Refuse to interpolate between networks that cannot be interpolated."""
    if points == 0:
        return
    if points < 2:
        raise ValueError(f"--interpolate {points}: a line has at least 2 points, its ends")
    with naming("--interpolate"):
        taught_by = teacher.module
    name = named(teacher)
    if teacher.normalisation not in (None, (net.card.mean, net.card.std)):
        raise ValueError(
            f"--interpolate: {name} normalises its images in another way than {run}, so no network "
            "between them suits either"
        )
    differences = {depth: differing(net.subnet(depth), taught_by) for depth in depths}
    if None not in differences.values():
        depth, tensor = next(iter(differences.items()))
        raise ValueError(
            f"--interpolate needs equal architectures, and depth {depth} of {run} differs from {name} "
            f"in {tensor}"
        )
