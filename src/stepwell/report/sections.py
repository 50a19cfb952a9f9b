"""Sections of the page as HTML, shared by kinds of networks; text from a run is escaped here."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stepwell.report.figures as figures
from stepwell.colours import OKABE_ITO
from stepwell.kinds import sections_of, size_in_words
from stepwell.measures import BUSY, MEASURES, OF_CLASSES, OF_NUMBERS, Measure, share_interval
from stepwell.report.classes import never_right_note
from stepwell.report.markup import (
    ABSENT,
    as_decimal,
    as_duration,
    as_ms,
    as_percent,
    figure,
    table,
    written,
)
from stepwell.report.run_record import Predictions, RunRecord, as_mapping, finite, number

Colours = Mapping[str, str]
#: Columns of the table of rows.
COLUMNS = (
    "blocks", "params", "macs", "accuracy", "balanced_accuracy", "mcc", "f1", "pearson", "spearman",
    "rmse", "nll", "ece", "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "agreement", "ms",
)  # fmt: skip

#: Said below figures of accuracy, and of time.
WHISKERS = "whiskers: 95% intervals"
TIMES = f"{WHISKERS} of {{}}, 10 to 90% of the times"


def run_section(record: RunRecord, anchor: str, colours: Colours) -> str:
    """Join the sections of the run's kind; `anchor` is their id, `colours` are by row."""
    parts = [section(record, colours) for section in sections_of(record.kind)]
    start = f'<section class="run" id="{anchor}">\n<h2>{escape(record.name)}</h2>'
    return "\n".join([start, *parts, "</section>"])


def tested_on(record: RunRecord) -> tuple[str, str]:
    """Begin a run's sentence, and say on how many examples it was tested."""
    data = str(record.data.get("name", "unnamed data"))
    start = f"{record.recipe}{', tested' if record.unlabeled else ''} on {data}"
    count = f"{record.examples:,} " if record.examples else "the "
    return start, f" of {count}test examples"


def balanced_words(record: RunRecord, row: str) -> str:
    """The mean accuracy over classes, as an end of a sentence; empty if it was not measured."""
    balanced = record.score(row, "balanced_accuracy")
    if balanced is None:
        return ""
    return f", {as_percent(balanced)} in the mean over the classes, which differ in size"


def lead(record: RunRecord, colours: Colours) -> str:
    """Describe a run with depths in a sentence."""
    return f'<p class="lead">{escape(_summary(record))}</p>'


def _summary(record: RunRecord) -> str:
    depths = record.rows
    start, of_examples = tested_on(record)
    if not depths:
        return f"{start}; nothing was tested."
    full, first = depths[-1], depths[0]
    start += f": {as_percent(record.score(full, 'accuracy'))}{of_examples} right"
    start += f" at the full depth {full}" if len(depths) > 1 else ""
    start += balanced_words(record, full)
    if len(depths) > 1 and (compared := _compared(record, first, full)):
        start += f"; depth {first} {compared}"
    return " ".join(filter(None, (f"{start}.", never_right_note(record))))


def _compared(record: RunRecord, first: str, full: str) -> str:
    """Say what a depth saves and loses; no factor in time where the times are not clearly apart."""
    low, high = (finite(record.score(depth, "accuracy")) for depth in (first, full))
    points = 100 * (low - high)
    if math.isnan(points):
        return ""
    change = f"{abs(points):.1f} points {'less' if points < 0 else 'more'} accurate"
    change = f"is {change if abs(points) >= 0.05 else 'as accurate'}"
    few, many = (finite(record.cost(depth).get("macs")) for depth in (first, full))
    savings = [f"takes {many / few:.1f}× fewer MACs"] if 0 < few < many else []
    slow, fast = (finite(record.cost(depth).get("ms")) for depth in (full, first))
    doubt = ""
    if slow > 0 and fast > 0:
        quicker, slower = (first, full) if fast <= slow else (full, first)
        ends = (record.cost(quicker).get("ms_high", 0), record.cost(slower).get("ms_low", math.inf))
        if any("unsure" in record.cost(depth) for depth in (first, full)):
            doubt = f" ({BUSY})"
        elif finite(ends[0]) >= finite(ends[1]):
            doubt = " (not measurably faster)"
        else:
            factor = f"{slow / fast:.1f}× faster" if slow >= fast else f"{fast / slow:.1f}× slower"
            savings.append(f"is {factor}")
    return f"{', '.join(savings)} and {change}{doubt}" if savings else f"{change}{doubt}"


def facts(record: RunRecord, colours: Colours) -> str:
    """List data, seed, time, device and versions."""
    data, versions = record.data, as_mapping(record.config.get("versions"))
    sizes = {part: number(data.get(part)) for part in ("train", "validation", "test")}
    size = data.get("size")
    images = sizes.pop("train") if record.unlabeled else None
    entries = {
        "data": data.get("name"),
        "trained on": f"{images:,.0f} images of {record.unlabeled}" if images is not None else None,
        "examples": ", ".join(f"{n:,.0f} {part}" for part, n in sizes.items() if n is not None),
        "classes": len(record.classes) if len(record.classes) > 1 else None,
        "predicts": record.classes[0] if len(record.classes) == 1 else None,
        f"{record.noun} size": size_in_words(record.kind, size) if isinstance(size, int) else size,
        "seed": record.seed,
        "run time": as_duration(record.results.get("seconds")),
        "device": record.config.get("device"),
        "threads": record.config.get("threads"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": str(record.config.get("commit") or "")[:16],
        "data fingerprint": str(data.get("fingerprint") or "")[:12],
    }
    known = ((name, str(value)) for name, value in entries.items() if value not in (None, ""))
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in known)
    return f'<dl class="facts">{items}</dl>'


def row_table(record: RunRecord, colours: Colours) -> str:
    """Show test results and costs of every row; a column without any value is left out."""
    title = f"<h3>Every {record.row}, tested and measured</h3>"
    if not record.rows:
        return f"{title}\n<p>The run tested no {record.row}.</p>"
    cells = {key: [_cell(record, row, key) for row in record.rows] for key in COLUMNS}
    cells = {key: values for key, values in cells.items() if set(values) != {ABSENT}}
    names = [*record.rows]
    if record.row == "depth" and len(names) > 1:
        names[-1] += " (full)"
    head = [record.row, *(MEASURES[key].of(record.noun) for key in cells)]
    rows = [list(row) for row in zip(names, *cells.values(), strict=True)]
    return f"{title}\n{table(head, rows, _note(record))}"


def _cell(record: RunRecord, row: str, key: str) -> str:
    """Write a cost or test result of a row, a time with its spread."""
    cost = record.cost(row)
    text = written(MEASURES[key], cost.get(key, record.test.get(f"{row}/{key}")))
    low, high = as_ms(cost.get(f"{key}_low")), as_ms(cost.get(f"{key}_high"))
    return text if ABSENT in (low, high) else f"{text} ({low}–{high})"


def _note(record: RunRecord) -> str:
    """Say how the table's numbers were measured, and how uncertain the accuracy is."""
    full, several = record.rows[-1], len(record.rows) > 1
    last = "the full net" if record.row == "depth" else f"{record.row} {full}"
    agree = several and record.score(full, "agreement") is not None
    notes = [f"Agreement is with the answers of {last}."] if agree else []
    legends = {"f1": OF_CLASSES, "rmse": OF_NUMBERS}
    notes += [f"{words}." for key, words in legends.items() if record.score(full, key) is not None]
    cost = record.cost(full)
    if number(cost.get("ms")) is not None:
        threads = cost.get("threads", record.config.get("threads", ABSENT))
        notes.append(
            "Time is the median, with its spread; batch of "
            f"{cost.get('batch', ABSENT)}, threads: {threads}."
        )
        if any("unsure" in record.cost(row) for row in record.rows):
            notes.append(f"{BUSY.capitalize()}.")
    accuracy, examples = finite(record.score(full, "accuracy")), record.examples
    if examples and math.isfinite(accuracy):
        low, high = share_interval(accuracy, examples)
        notes.append(
            f"{examples:,} examples: the 95% interval of {100 * accuracy:.1f}% is "
            f"{100 * low:.1f}–{100 * high:.1f}%."
        )
    if any(record.measured):
        notes.append("Measured {} on {}.".format(*record.measured))
    return " ".join(notes)


def cost_figures(record: RunRecord, colours: Colours) -> str:
    """Draw accuracy against MACs and against time, large."""
    return cost_pair([record], colours)


def cost_pair(records: Sequence[RunRecord], colours: Colours) -> str:
    """Draw the accuracy of all rows of some runs against MACs and against time; empty without any."""
    titles = " or ".join(dict.fromkeys(MEASURES[record.measure].title for record in records))
    title, times = f"{titles[0].upper()}{titles[1:]}", TIMES.format(titles)
    dots = "; dotted: cascades within budgets" * any(map(figures.cascades_of, records))
    by_macs = f"{title} against MACs; {WHISKERS}{dots}."
    shown = [
        figure(figures.accuracy_cost(records, colours, "macs"), by_macs),
        figure(figures.accuracy_cost(records, colours, "ms"), f"{title} against time; {times}."),
    ]
    return "\n".join(['<div class="figures large">', *shown, "</div>"]) if any(shown) else ""


def churn(record: RunRecord, colours: Colours) -> str:
    """Show the predictions that flip from row to row as a matrix; nothing for a single row."""
    names, word = record.rows, record.row
    if not record.results.get("churn"):
        return ""
    rows = []
    for a in names:
        pairs = [ABSENT if a == b else as_percent(record.churn(a, b)) for b in names]
        flips = [None, None] if a == names[-1] else record.flips(a)
        rows.append([a, *pairs, *map(as_percent, flips)])
    note = (
        f"Each cell is the share of test examples that two {word}s give different classes. Made wrong: "
        f"{names[-1]} is right and this {word} is not; made right: the reverse."
    )
    flip_titles = (MEASURES[f"{kind}_flips"].title for kind in ("negative", "positive"))
    head = (word, *names, *flip_titles)
    return f"<h3>Predictions that flip between {word}s</h3>{table(head, rows, note)}"


def run_figures(record: RunRecord, colours: Colours) -> str:
    """Draw training curves, and the reliability of every row."""
    row = record.row
    title = MEASURES[record.measure].title
    curves = (record.phases, colours, row)
    shown = [
        figure(figures.losses(*curves), "Training loss, by term."),
        figure(figures.validation(*curves), f"Validation {title} of each {row}."),
    ]
    predictions = record.predictions
    parts = ["<h3>Figures</h3>", '<div class="figures">', *shown, "</div>"] if any(shown) else []
    if predictions is not None and len(predictions.labels):
        parts += [
            "<h3>Reliability</h3>",
            f"<p>A {row} whose bars end on the dashed line is right as often as it claims.</p>",
            '<div class="figures narrow">',
        ]
        for depth in predictions.probabilities:
            image = figures.reliability(
                predictions.confidence(depth), predictions.classes(depth) == predictions.labels,
                colour=colours.get(depth, OKABE_ITO[0]), title=f"{row} {depth}",
            )  # fmt: skip
            error = as_decimal(record.score(depth, "ece"))
            parts.append(figure(image, f"Reliability of {row} {depth}; ECE {error}."))
        parts.append("</div>")
    return "\n".join(parts)


def examples(record: RunRecord, colours: Colours) -> str:
    """Show test examples: first those to which two rows give different classes."""
    predictions = record.predictions
    if predictions is None:
        return ""
    differ = predictions.disagree()
    chosen = differ[predictions.image_index]
    cards = [_card(record, predictions, i) for i in range(len(predictions.shown))]
    parts = []
    if len(predictions.probabilities) > 1:
        count = f"{int(differ.sum()):,} of {len(differ):,}"
        parts.append(f"<h3>Where the {record.row}s disagree</h3>")
        parts.append(f"<p>The {record.row}s disagree on {count} test examples.</p>")
        parts.append(grid(card for card, shown in zip(cards, chosen, strict=True) if shown))
    others = grid(card for card, shown in zip(cards, chosen, strict=True) if not shown)
    if others:
        title = "Other examples" if len(predictions.probabilities) > 1 else "Examples"
        parts += [f"<h3>{title}</h3>", others]
    return "\n".join(parts)


def grid(cards: Iterable[str]) -> str:
    """Arrange the cards of example images; nothing without a card."""
    inside = "\n".join(cards)
    return f'<div class="examples">{inside}</div>' if inside else ""


def _card(record: RunRecord, predictions: Predictions, i: int) -> str:
    example = int(predictions.image_index[i])
    truth = int(predictions.labels[example])
    rows = []
    for depth in predictions.probabilities:
        guess = int(predictions.classes(depth)[example])
        kind, mark = ("right", "✓") if guess == truth else ("wrong", "✗")
        rows.append(
            f'<tr class="{kind}"><th scope="row">{escape(depth)}</th>'
            f'<td class="guess">{escape(record.class_name(guess))}</td>'
            f"<td>{100 * predictions.confidence(depth)[example]:.0f}%</td>"
            f'<td><span role="img" aria-label="{kind}">{mark}</span></td></tr>'
        )
    name = escape(record.class_name(truth))
    return (
        f'<figure class="example">{_shown(predictions.shown[i], example)}<figcaption>'
        f'<span class="truth">truth: <b>{name}</b></span>'
        f"<table>{''.join(rows)}</table></figcaption></figure>"
    )


def _shown(content: NDArray[np.uint8] | str, example: int) -> str:
    """Show a picture or a text."""
    if isinstance(content, str):
        return f"<blockquote>{escape(content)}</blockquote>"
    small = ' class="pixels"' if max(content.shape[:2]) < 96 else ""
    return f'<img{small} src="{figures.picture(content)}" alt="test example {example}">'


def arguments(record: RunRecord, colours: Colours) -> str:
    """List the arguments of the run, folded."""
    rows = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for name, value in record.arguments.items()
    ]
    body = table(("argument", "value"), rows, words=2)
    place = f"<p>Read from <code>{escape(str(record.path))}</code></p>"
    return f"<details><summary>Arguments of the run</summary>{place}{body}</details>"


def speed_table(results: Mapping[str, Any], measures: Mapping[str, Measure]) -> str:
    """Show images per second, in batches and one by one; nothing where they were not measured."""
    speed = [as_mapping(row) for row in results.get("speed") or ()]
    rows = [[written(measure, row.get(k)) for k, measure in measures.items()] for row in speed]
    head = [measure.title for measure in measures.values()]
    note = f"{BUSY.capitalize()}." if any("unsure" in row for row in speed) else ""
    return f"<p>Speed:</p>\n{table(head, rows, note)}" if rows else ""
