"""The page's sections about later evaluations: temperatures, a cascade, and other data."""

from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import Any

from stepwell.measures import (
    BUSY,
    CURVE,
    chance_in_words,
    curve_rows,
    share_interval,
    threshold_title,
    with_article,
)
from stepwell.report.classes import never_right_note
from stepwell.report.markup import as_count, as_ms, as_percent, table
from stepwell.report.run_record import RunRecord, as_mapping, number
from stepwell.report.sections import row_table


def cascade_section(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Show a cascade's thresholds, and its accuracy with its interval; nothing without one."""
    cascade = as_mapping(record.results.get("cascade"))
    validation, test = (as_mapping(cascade.get(part)) for part in ("validation", "test"))
    if not validation or not test:
        return ""
    thresholds = [*(f"{t:.4f}" for t in validation.get("thresholds") or ()), "the rest"]
    shares = ([as_percent(s) for s in part.get("shares") or ()] for part in (validation, test))
    rows = [list(row) for row in zip(validation.get("depths") or (), thresholds, *shares, strict=False)]
    head = (record.row, threshold_title(validation), "answered, validation", "answered, test")
    images, noun = as_count(validation.get("images")), record.noun
    full = {"accuracy": test.get("full_accuracy"), "images": test.get("images")}
    text = (
        f"Thresholds set on {images} validation {noun}s; goal: {validation.get('goal')}. Accuracy "
        f"there: {_interval(validation)}; on {as_count(test.get('images'))} test {noun}s: "
        f"{_interval(test)}, of the full net: {_interval(full)}. Mean MACs {with_article(noun)}: "
        f"{as_count(test.get('macs'))} (full net: {as_count(test.get('full_macs'))}); mean ms, one by "
        f"one: {as_ms(test.get('ms'))} (full net: {as_ms(test.get('full_ms'))})"
        f"{'; ' + BUSY if 'unsure' in test else ''}. In brackets: 95% intervals."
    )
    parts = [
        f"<h3>Cascade, set on {images} validation {noun}s</h3>", f"<p>{escape(text)}</p>",
        table(head, rows),
    ]  # fmt: skip
    if words := chance_in_words(test, noun):
        parts.append(f"<p>Chance and the best: {escape(words)}.</p>")
    if curve := curve_rows(cascade):
        parts += [f"<p>Cascades within budgets of MACs, on test {noun}s:</p>", table(CURVE, curve)]
    return "\n".join(parts)


def tempered_section(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Show likelihood and calibration after division by temperatures; nothing without any."""
    tempered = as_mapping(record.results.get("tempered"))
    if not tempered:
        return ""
    measures = ("temperature", "nll", "ece")
    values = {
        depth: [number(as_mapping(of).get(m)) for m in measures] for depth, of in tempered.items()
    }
    rows = [[d, *("–" if v is None else f"{v:.3f}" for v in row)] for d, row in values.items()]
    text = (
        f"Temperatures fitted on validation {record.noun}s divide the logits. The likelihood and the "
        f"calibration error of the probabilities on test {record.noun}s are then:"
    )
    head = (record.row, "temperature", "NLL", "ECE")
    return f"<h3>Tempered probabilities</h3>\n<p>{escape(text)}</p>\n{table(head, rows)}"


def _interval(part: Mapping[str, Any]) -> str:
    accuracy, images = number(part.get("accuracy")), number(part.get("images"))
    if accuracy is None or not images:
        return as_percent(accuracy)
    low, high = share_interval(accuracy, int(images))
    return f"{as_percent(accuracy)} ({100 * low:.1f}–{100 * high:.1f})"


def other_evaluations(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Show evaluations on other data, of other rows, or within a budget, each by itself."""
    parts = []
    for evaluation in record.evaluations:
        data = as_mapping(evaluation.get("data"))
        source = "the run's test part" if data.get("own") else str(data.get("name", "unnamed data"))
        budget = f", {evaluation['at']}" if evaluation.get("at") else ""
        other = replace(record, results=evaluation, evaluations=(), predictions=None)
        text = (
            f"Measured {evaluation.get('date', '')} on {evaluation.get('device', 'an unknown device')}."
        )
        parts += [
            f"<h4>On {escape(source + budget)}, by {escape(other.row)}</h4>",
            f"<p>{escape(' '.join(filter(None, (text, never_right_note(other)))))}</p>",
            row_table(other, colours).partition("</h3>")[2],
            *(
                section(other, colours).replace("h3>", "h4>")
                for section in (tempered_section, cascade_section)
            ),
        ]
    return "\n".join(["<h3>Evaluated on other data</h3>", *parts]) if parts else ""
