"""The page's section about a detector: images with boxes, curves by class, labels from teachers."""

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from stepwell.colours import OKABE_ITO
from stepwell.files import read_json
from stepwell.measures import of_row
from stepwell.report.figures import Figure, legend_text, svg
from stepwell.report.markup import ABSENT, Html, as_decimal, as_percent, figure, table
from stepwell.report.run_record import RunRecord, as_mapping, finite, number
from stepwell.results import BOXES

#: Most classes of a figure or a table: those with the least precision.
CLASSES = 12
#: The true boxes of an image, beside those that others found.
TRUTH = "truth"
#: Recalls of a curve.
RECALLS = np.linspace(0, 1, 101)


def boxes_section(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Show test images with boxes, precision by class, and what teachers' labels were made of."""
    file = record.path / BOXES
    page = read_json(file, "train the run again") if file.is_file() else {}
    parts = [*_teacher_labels(record), *_by_class(record, page), *_images(page, record)]
    return "\n".join(parts)


def _teacher_labels(record: RunRecord) -> list[str]:
    """Say what thresholds and fusion did; nothing for a run without teachers."""
    results = record.system_results("pseudo")
    classes = as_mapping(results.get("classes"))
    if not classes:
        return []
    teachers = as_mapping(results.get("teachers"))
    names = " and ".join(map(str, teachers))
    total = sum(int(finite(as_mapping(t).get("boxes"))) for t in teachers.values())
    images, boxes, fused = (number(results.get(key)) for key in ("images", "boxes", "fused"))
    steps = [f"{names} found {total:,} boxes of any score in {images:,.0f} images"]
    if len(teachers) > 1:
        steps.append(f"together they gave {fused:,.0f}")
    steps.append(f"{boxes:,.0f} reached their thresholds")
    if ignored := number(results.get("ignored")):
        steps.append(f"{ignored:,.0f} below them were left open")
    text = f"{'; '.join(steps)}."
    test = of_row(as_mapping(results.get("teacher_test")), "teachers")
    if _by_teachers(record):
        text += " There are no labels: all numbers compare the student with the teachers' boxes."
    elif (ap := number(test.get("ap"))) is not None:
        text += f" The teachers' AP on the test images is {as_percent(ap)}."
    head = ["class", "threshold", "boxes", "teachers", "precision", "recall", "labelled an image"]
    keys = ("precision", "recall")
    rows = [
        [
            name, as_decimal(number(row.get("threshold"))), f"{finite(row.get('boxes')):,.0f}",
            str(row.get("teachers", ABSENT)), *(as_percent(number(row.get(key))) for key in keys),
            as_decimal(number(row.get("prior"))),
        ]
        for name, row in ((str(k), as_mapping(v)) for k, v in classes.items())
    ]  # fmt: skip
    note = (
        "Precision and recall of labels above the threshold, on the labelled images that decided it. "
        "Boxes: labels of the training images."
    )
    return ["<h3>Labels from teachers</h3>", f"<p>{escape(text)}</p>", table(head, rows, note)]


def _by_class(record: RunRecord, page: Mapping[str, Any]) -> list[str]:
    """Average precision of each class, and curves of precision over recall."""
    counts = as_mapping(record.system_results("detect").get("boxes"))
    if not record.rows or not counts:
        return []
    last = of_row(record.test, record.rows[-1])
    names = sorted(
        (name for name in counts if f"ap/{name}" in last), key=lambda name: finite(last[f"ap/{name}"])
    )
    head = ["class", "true boxes"]
    head += [f"{title}, {row}" for row in record.rows for title in ("AP", "AP50")]
    rows = [
        [name, f"{finite(counts[name]):,.0f}"]
        + [
            as_percent(number(record.score(row, f"{key}/{name}")))
            for row in record.rows
            for key in ("ap", "ap50")
        ]
        for name in names[:CLASSES]
    ]
    more = f" The {CLASSES} worst of {len(names)} classes." if len(names) > CLASSES else ""
    curves = as_mapping(page.get("curves"))
    shown = [
        figure(
            _curves(as_mapping(curves.get(row)), names),
            f"Precision over recall, {_title(row, record)}; IoU 0.5.",
        )
        for row in curves
    ]
    note = f"Worst first.{more}"
    if _by_teachers(record):
        note += " The true boxes are the teachers': there are no labels."
    parts = ["<h3>Every class</h3>", table(head, rows, note)]
    return [*parts, '<div class="figures">', *shown, "</div>"] if any(shown) else parts


def _curves(curves: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Draw precision over recall of some classes; None without a curve."""
    known = [name for name in names if isinstance(curves.get(name), list)][: len(OKABE_ITO)]
    known = [name for name in known if len(curves[name]) == len(RECALLS)]
    if not known:
        return None

    def paint(picture: Figure) -> None:
        axes = picture.add_subplot()
        for name, colour in zip(known, OKABE_ITO, strict=False):
            ys = [100 * finite(value) for value in curves[name]]
            axes.plot(100 * RECALLS, ys, color=colour, label=legend_text(name), lw=1.4)
        axes.set_xlabel("recall, %")
        axes.set_ylabel("precision, %")
        axes.set_ylim(0, 102)
        axes.legend()

    return svg(4.4, 3.2, paint)


def _images(page: Mapping[str, Any], record: RunRecord) -> list[str]:
    """Test images with boxes side by side, worst first; nothing without any."""
    images = page.get("images")
    if not isinstance(images, list) or not images:
        return []
    classes = [str(name) for name in page.get("classes") or ()]
    judged = str(page.get("judged", ""))
    key = hashlib.sha256(repr(images).encode()).hexdigest()[:8]  # runs share a page
    rows = []
    for k, image in enumerate(map(as_mapping, images)):
        boxes = as_mapping(image.get("boxes"))
        order = [name for name in (TRUTH, "teachers", judged) if name in boxes]
        id = f"photo-{key}-{k}"
        drawn = [
            _drawn(image, boxes[name], classes, id, first=name == order[0], scores=name != TRUTH)
            for name in order
        ]
        cells = [
            f"<figure>{picture}<figcaption>{escape(_title(name, record))}</figcaption></figure>"
            for name, picture in zip(order, drawn, strict=True)
        ]
        count = f"{finite(image.get('errors')):.0f} errors"
        label = f"<p><b>{escape(str(image.get('file', '')))}</b>: {count}</p>"
        rows.append(f'<div class="boxes">{label}{"".join(cells)}</div>')
    note = (
        f"<p>The {len(rows)} test images with most errors of {escape(_title(judged, record))}: missed "
        f"boxes, and wrong ones with a score of at least {finite(page.get('score')):g}. "
        f"{_legend(classes)}</p>"
    )
    return ["<h3>Worst images</h3>", note, *rows]


def _legend(classes: Sequence[str]) -> str:
    """The colours of some classes."""
    shown = zip(classes[: len(OKABE_ITO)], OKABE_ITO, strict=False)
    return ", ".join(f'<b style="color:{colour}">{escape(name)}</b>' for name, colour in shown)


def _by_teachers(record: RunRecord) -> bool:
    """Check whether the test part has boxes of teachers, because there are no labels."""
    return record.system_results("pseudo").get("truth") == "teacher"


def _title(name: str, record: RunRecord) -> str:
    if name == TRUTH and _by_teachers(record):
        return "the teachers' boxes, taken as the truth"
    return f"{record.row} {name}" if name in record.rows else name


def _drawn(
    image: Mapping[str, Any], boxes: Any, classes: Sequence[str], id: str, *, first: bool,
    scores: bool,
) -> Html:  # fmt: skip
    """An image with boxes as SVG; its pixels stand in the page once."""
    high, wide = (finite(side) for side in image.get("size") or (0, 0))
    pixels = f'<use href="#{id}"/>'
    if first:
        pixels = (
            f'<image id="{id}" width="{wide:.0f}" height="{high:.0f}" '
            f'href="data:image/jpeg;base64,{escape(str(image.get("jpeg", "")))}"/>'
        )
    marks = []
    for row in boxes if isinstance(boxes, list) else ():
        x1, y1, x2, y2, label, score = (finite(value) for value in row)
        colour = OKABE_ITO[int(label) % len(OKABE_ITO)]
        name = classes[int(label)] if 0 <= label < len(classes) else ABSENT
        marks.append(
            f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" '
            f'fill="none" stroke="{colour}" stroke-width="2">'
            f"<title>{escape(name)}{f' {score:.2f}' * scores}</title></rect>"
        )
    return Html(
        f'<svg viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" role="img" '
        f'aria-label="{len(marks)} boxes">{pixels}{"".join(marks)}</svg>'
    )
