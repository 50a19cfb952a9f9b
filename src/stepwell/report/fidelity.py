"""The page's section about a run and its teacher, from `stepwell eval RUN --fidelity TEACHER`."""

from collections.abc import Iterable, Mapping
from html import escape

import stepwell.report.fidelity_figures as figures
from stepwell.measures import FIDELITY, Measure, number_in
from stepwell.report.markup import ABSENT, as_percent, figure, table
from stepwell.report.run_record import (
    FidelityRecord,
    RunRecord,
    as_mapping,
    number,
    read_fidelity,
)

CKA = Measure("CKA", "number", 3)
SHARE = Measure("agreement", "percent")


def fidelity_section(run: RunRecord, colours: Mapping[str, str]) -> str:
    """Show every depth beside the teacher; nothing if fidelity was not measured."""
    record = read_fidelity(run.path)
    if record is None or not record.depths or not record.parts:
        return ""
    if source := record.not_of(run):
        return (
            f"<h3>Fidelity to the teacher</h3><p>Not shown: fidelity.json is of {escape(source)}. "
            "Measure it again with stepwell eval --fidelity.</p>"
        )
    teacher = as_mapping(record.content.get("teacher"))
    controls = as_mapping(record.content.get("controls"))
    names = ", ".join(str(as_mapping(about).get("name", "unknown")) for about in controls.values())
    text = f"Teacher: {teacher.get('name', 'unknown')}. " + (
        f"Control, a student of another teacher: {names}. Only agreement beyond the control's can come "
        "from this teacher, and where the interval of the difference holds 0 that may be chance."
        if controls
        else "There is no control: two networks trained apart agree, too, so this agreement says "
        "little about the teaching (--control)."
    )
    parts = ["<h3>Fidelity to the teacher</h3>", f"<p>{escape(text)}</p>"]
    parts += [_table(record, depth) for depth in record.depths]
    parts += ['<div class="figures">', *_figures(record, colours), "</div>"]
    parts += [_classes(record, depth) for depth in record.depths]
    return "\n".join(parts)


def _figures(record: FidelityRecord, colours: Mapping[str, str]) -> Iterable[str]:
    caption = f"of the student and of the control, with {100 * record.level:.0f}% intervals"
    points = figures.agreement_points(record, colours)
    yield figure(points, f"Agreement with the teacher, {caption}.")
    for depth in record.depths:
        colour = colours.get(depth, figures.STUDENT)
        curves = [record.arrays.get(f"test/{network}/reliability") for network in (depth, "teacher")]
        if curves[0] is not None and curves[1] is not None:
            yield figure(
                figures.reliability_pair(curves[0], curves[1], colour=colour, depth=depth),
                f"Reliability of depth {depth} and of its teacher on test {record.noun}: on the dashed "
                "line a network is right as often as it claims. Small points stand for few "
                f"{record.noun}; bins of fewer than {figures.JOINED} are not joined.",
            )
        matrix = record.arrays.get(f"test/{depth}/matrix")
        if matrix is not None:
            yield figure(
                figures.matrix(matrix, record.classes, f"class by depth {depth}"),
                f"Which classes depth {depth} gives where its teacher gives each; test {record.noun}.",
            )
        points = as_mapping(record.content.get("interpolation")).get(depth)
        if points:
            yield figure(
                figures.line(points, colour=colour),
                f"On the straight line from depth {depth}'s weights to the teacher's. BatchNorm "
                "statistics are measured again at every point, both ends included.",
            )


def _table(record: FidelityRecord, depth: str) -> str:
    rows = [
        [_typeset(measure.title), *cells]
        for key, measure in FIDELITY.items()
        if any(cells := [_cell(record, part, depth, key, measure) for part in record.parts])
    ]
    rows += [
        [f"CKA of {stage}", *cells]
        for stage in record.content.get("stages") or ()
        if any(cells := [_cell(record, part, depth, f"cka/{stage}", CKA) for part in record.parts])
    ]
    head = [f"depth {depth}"] + [
        f"{part}, {int(number(values.get('images')) or 0):,} {record.noun}"
        for part, values in record.parts.items()
    ]
    note = (
        f"In brackets: {100 * record.level:.0f}% intervals over the {record.noun}, which do not cover "
        "another training of this pair. CKA is debiased linear."
    )
    if "augmented" in record.parts:
        note += (
            " Train: without augmentation; augmented: the same images, augmented as in training "
            f"({record.content.get('augmentation') or 'standard'})."
        )
    return table(head, rows, note)


def _typeset(title: str) -> str:
    """Typeset a measure's title for the page."""
    return title[0].upper() + title[1:].replace("||", "‖") if title[0] != "." else f"…{title[3:]}"


def _cell(record: FidelityRecord, part: str, depth: str, key: str, measure: Measure) -> str:
    interval = record.interval(part, depth, key)
    if interval is None:
        return ""
    value, low, high = (number_in(measure.unit, x, measure.digits) for x in interval)
    unit = "%" if measure.unit == "percent" else ""
    to = " to " if measure.unit == "points" else "–"
    return f"{value}{unit}" + (f" ({low}{to}{high})" if low != high else "")


def _classes(record: FidelityRecord, depth: str) -> str:
    def percent(key: str) -> str:
        return as_percent(record.number("test", depth, key))

    keys = ("control/class/{}/agreement", "class/{}/accuracy", "teacher/class/{}/accuracy")
    rows = []
    for name in record.classes:
        agreement = _cell(record, "test", depth, f"class/{name}/agreement", SHARE) or ABSENT
        rows.append([name, agreement, *(percent(key.format(name)) for key in keys)])
    body = table(("class", "agreement", "of the control", "accuracy", "of the teacher"), rows)
    title = escape(f"Agreement of depth {depth} by class, on test {record.noun}")
    return f"<details><summary>{title}</summary>{body}</details>"
