"""The parts of the page as HTML. Everything that comes from a run is escaped here."""

import json
import math
from collections.abc import Iterable, Mapping
from html import escape

import numpy as np
from numpy.typing import NDArray

from stepwell.report import figures
from stepwell.report.fidelity import fidelity_section
from stepwell.report.grafting import grafting_section
from stepwell.report.kg import graph_section
from stepwell.report.markup import (
    ABSENT,
    as_blocks,
    as_count,
    as_decimal,
    as_duration,
    as_ms,
    as_percent,
    figure,
    table,
    warning,
)
from stepwell.report.resolution import resolution_section
from stepwell.report.run_record import Predictions, RunRecord, as_mapping, finite, number


def run_section(record: RunRecord, anchor: str, colours: Mapping[str, str]) -> str:
    """Everything about one run."""
    if record.recipe == "dkge":
        return graph_section(record, anchor)
    return "\n".join(
        (
            f'<section class="run" id="{anchor}">',
            f"<h2>{escape(record.name)}</h2>",
            f'<p class="lead">{escape(summary(record))}</p>',
            full_net_note(record),
            _facts(record),
            f"<h3>Every {record.row}, tested and measured</h3>",
            _depth_table(record),
            _churn(record),
            _run_figures(record, colours),
            fidelity_section(record, colours),
            grafting_section(record),
            resolution_section(record),
            _examples(record),
            _classes_table(record),
            _arguments(record),
            "</section>",
        )
    )


def summary(record: RunRecord) -> str:
    """The run in one sentence."""
    data, depths = str(record.data.get("name", "unnamed data")), record.depths
    start = f"{record.recipe}{', tested' if record.unlabeled else ''} on {data}"
    if not depths:
        return f"{start}; nothing was tested."
    full, first = depths[-1], depths[0]
    of = f" of {record.examples:,} test examples" if record.examples else " of the test examples"
    if record.row == "choice":
        return f"{start}: {_chosen(record, of)}."
    start += f": {as_percent(record.score(full, 'accuracy'))}{of} right"
    if len(depths) == 1:
        return f"{start}."
    start += f" at the full depth {full}"
    slow, fast = (finite(record.cost(depth).get("ms")) for depth in (full, first))
    low, high = (finite(record.score(depth, "accuracy")) for depth in (first, full))
    points = 100 * (low - high)
    if math.isnan(points) or not (slow > 0 and fast > 0):
        return f"{start}."
    speed = f"{slow / fast:.1f}× faster" if slow >= fast else f"{fast / slow:.1f}× slower"
    change = f"{abs(points):.1f} points {'less' if points < 0 else 'more'} accurate"
    change = change if abs(points) >= 0.05 else "as accurate"
    return f"{start}; depth {first} is {speed} and {change}."


def _chosen(record: RunRecord, of: str) -> str:
    """How right the choices are, and the best single choice for all images."""
    dynamic, *fixed = record.depths
    told = f"{as_percent(record.score(dynamic, 'accuracy'))}{of} right as chosen"
    if not fixed:
        return told
    best = max(fixed, key=lambda choice: finite(record.score(choice, "accuracy")))
    macs, own = (finite(record.cost(row).get("macs")) for row in (best, dynamic))
    times = f", at {macs / own:.2f} × the MACs" if macs > 0 and own > 0 else ""
    return f"{told}; always {best}: {as_percent(record.score(best, 'accuracy'))}{times}"


def full_net_note(record: RunRecord) -> str:
    """What teaching the sub-nets did to the full net; nothing where a run did not watch it."""
    found = as_mapping(as_mapping(record.results.get("ekd")).get("full_net"))
    before, after = number(found.get("before")), number(found.get("after"))
    if before is None or after is None:
        return ""
    limit = number(record.arguments.get("max_drop"))
    may = f"{0.0 if limit is None else limit:g} points"
    if found.get("rolled_back"):
        return warning(
            f"The full net lost more than {may} of validation accuracy while its sub-nets trained. It "
            f"was rolled back to what it was ({as_percent(before)}), and only the sub-nets' own norms "
            "were trained."
        )
    change = f"{as_percent(before)} before its sub-nets trained, {as_percent(after)} after"
    if limit is not None and 100 * (before - after) > limit:
        return warning(
            f"The full net lost more than {may} of validation accuracy: {change}. --on-drop rollback "
            "keeps it as it was."
        )
    return f'<p class="note">Validation accuracy of the full net: {change}.</p>'


def _facts(record: RunRecord) -> str:
    data, versions = record.data, as_mapping(record.config.get("versions"))
    sizes = {part: number(data.get(part)) for part in ("train", "validation", "test")}
    size = data.get("size")
    own = sizes.pop("train") if record.unlabeled else None
    facts = {
        "data": data.get("name"),
        "trained on": f"{own:,.0f} images of {record.unlabeled}" if own is not None else None,
        "examples": ", ".join(f"{n:,.0f} {part}" for part, n in sizes.items() if n is not None),
        "classes": len(data.get("classes") or ()) or None,
        "image size": f"{size}×{size}" if isinstance(size, int) else size,
        "seed": record.seed,
        "run time": as_duration(record.results.get("seconds")),
        "device": record.config.get("device"),
        "threads": record.config.get("threads"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": str(record.config.get("commit") or "")[:16],
        "data fingerprint": str(data.get("fingerprint") or "")[:12],
    }
    told = ((name, str(value)) for name, value in facts.items() if value not in (None, ""))
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in told)
    return f'<dl class="facts">{items}</dl>'


def _depth_table(record: RunRecord) -> str:
    several = len(record.depths) > 1
    rows = []
    for depth in record.depths:
        cost = record.cost(depth)
        low, high = as_ms(cost.get("ms_low")), as_ms(cost.get("ms_high"))
        spread = "" if ABSENT in (low, high) else f" ({low}–{high})"
        cells = {
            record.row: f"{depth} (full)" if several and depth == record.depths[-1] else depth,
            "blocks": as_blocks(cost.get("blocks")),
            "params": as_count(cost.get("params")),
            "MACs": as_count(cost.get("macs")),
            "accuracy": as_percent(record.score(depth, "accuracy")),
            "NLL": as_decimal(record.score(depth, "nll")),
            "ECE": as_decimal(record.score(depth, "ece")),
            "agreement": as_percent(record.score(depth, "agreement")),
            "ms per image": f"{as_ms(cost.get('ms'))}{spread}",
        }
        rows.append(cells)
    if not rows:
        return "<p>The run tested no depth.</p>"
    # A column in which no depth has a value only takes room on a phone.
    head = [name for name in rows[0] if any(row[name] != ABSENT for row in rows)]
    return table(head, [[row[name] for name in head] for row in rows], _note(record))


def _note(record: RunRecord) -> str:
    full, several = record.depths[-1], len(record.depths) > 1
    notes = ["Agreement is with the answers of the full net."] if several else []
    cost = record.cost(full)
    if number(cost.get("ms")) is not None:
        threads = cost.get("threads", record.config.get("threads", ABSENT))
        notes.append(
            "Time is the median, with its spread; batch of "
            f"{cost.get('batch', ABSENT)}, threads: {threads}."
        )
    accuracy, examples = finite(record.score(full, "accuracy")), record.examples
    if examples and math.isfinite(accuracy):
        # Agresti & Coull's interval: the plain one is empty when every answer is right.
        share = (accuracy * examples + 2) / (examples + 4)
        half = 196 * math.sqrt(share * (1 - share) / (examples + 4))
        notes.append(f"{examples:,} examples: accuracy is uncertain by ±{half:.1f} points (95%).")
    return " ".join(notes)


def _churn(record: RunRecord) -> str:
    """A matrix of the predictions that flip from depth to depth; nothing for a lone depth."""
    depths = record.depths
    if not record.results.get("churn"):
        return ""
    rows = []
    for a in depths:
        pairs = [ABSENT if a == b else as_percent(record.churn(a, b)) for b in depths]
        last = a == depths[-1]
        flips = [ABSENT, ABSENT] if last else [as_percent(share) for share in record.flips(a)]
        rows.append([a, *pairs, *flips])
    note = (
        f"Each cell is the share of test examples that two {record.row}s give different classes. Made "
        f"wrong: {depths[-1]} is right and this {record.row} is not; made right: the reverse."
    )
    head = (record.row, *depths, "made wrong", "made right")
    return f"<h3>Predictions that flip between {record.row}s</h3>{table(head, rows, note)}"


def _run_figures(record: RunRecord, colours: Mapping[str, str]) -> str:
    row = record.row
    shown = [
        figure(figures.accuracy_latency([record], colours), "Accuracy against measured latency."),
        figure(figures.losses(record.phases, colours), "Training loss, by term."),
        figure(figures.validation(record.phases, colours), f"Validation accuracy of each {row}."),
    ]
    found = record.predictions
    parts = ["<h3>Figures</h3>", '<div class="figures">', *shown, "</div>"] if any(shown) else []
    if found is not None and len(found.labels):
        parts += [
            "<h3>Reliability</h3>",
            f"<p>A {row} whose bars end on the dashed line is right as often as it claims.</p>",
            '<div class="figures narrow">',
        ]
        for depth in found.probabilities:
            image = figures.reliability(
                found.confidence(depth),
                found.classes(depth) == found.labels,
                colour=colours.get(depth, figures.OKABE_ITO[0]),
                title=f"{row} {depth}",
            )
            error = as_decimal(record.score(depth, "ece"))
            parts.append(figure(image, f"Reliability of {row} {depth}; ECE {error}."))
        parts.append("</div>")
    return "\n".join(parts)


def _examples(record: RunRecord) -> str:
    found = record.predictions
    if found is None:
        return ""
    differ = found.disagree()
    chosen = differ[found.image_index]
    cards = [_card(record, found, i) for i in range(len(found.images))]
    parts = []
    if len(found.probabilities) > 1:
        count = f"{int(differ.sum()):,} of {len(differ):,}"
        parts.append(f"<h3>Where the {record.row}s disagree</h3>")
        parts.append(f"<p>The {record.row}s disagree on {count} test examples.</p>")
        parts.append(_grid(card for card, shown in zip(cards, chosen, strict=True) if shown))
    others = _grid(card for card, shown in zip(cards, chosen, strict=True) if not shown)
    if others:
        title = "Other examples" if len(found.probabilities) > 1 else "Examples"
        parts += [f"<h3>{title}</h3>", others]
    return "\n".join(parts)


def _grid(cards: Iterable[str]) -> str:
    inside = "\n".join(cards)
    return f'<div class="examples">{inside}</div>' if inside else ""


def _card(record: RunRecord, found: Predictions, i: int) -> str:
    pixels: NDArray[np.uint8] = found.images[i]
    example = int(found.image_index[i])
    truth = int(found.labels[example])
    rows = []
    for depth in found.probabilities:
        guess = int(found.classes(depth)[example])
        kind, mark = ("right", "✓") if guess == truth else ("wrong", "✗")
        rows.append(
            f'<tr class="{kind}"><th scope="row">{escape(depth)}</th>'
            f'<td class="guess">{escape(record.class_name(guess))}</td>'
            f"<td>{100 * found.confidence(depth)[example]:.0f}%</td>"
            f'<td><span role="img" aria-label="{kind}">{mark}</span></td></tr>'
        )
    name = escape(record.class_name(truth))
    small = ' class="pixels"' if max(pixels.shape[:2]) < 96 else ""
    return (
        f'<figure class="example"><img{small} src="{figures.picture(pixels)}" '
        f'alt="test example {example}"><figcaption><span class="truth">truth: <b>{name}</b></span>'
        f"<table>{''.join(rows)}</table></figcaption></figure>"
    )


def _classes_table(record: RunRecord) -> str:
    by_class: dict[str, dict[str, float | None]] = {}
    for key, value in record.test.items():
        depth, metric, name = (*key.split("/", 2), "", "")[:3]
        if metric == "accuracy" and name:
            by_class.setdefault(name, {})[depth] = number(value)
    if not by_class:
        return ""
    depths = [d for d in record.depths if any(d in scores for scores in by_class.values())]
    rows = [[name, *(as_percent(row.get(d)) for d in depths)] for name, row in by_class.items()]
    body = table(["class", *(f"{record.row} {depth}" for depth in depths)], rows)
    return f"<details><summary>Accuracy of each class</summary>{body}</details>"


def _arguments(record: RunRecord) -> str:
    rows = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for name, value in record.arguments.items()
    ]
    body = table(("argument", "value"), rows, words=2)
    place = f"<p>Read from <code>{escape(str(record.path))}</code></p>"
    return f"<details><summary>Arguments of the run</summary>{place}{body}</details>"
