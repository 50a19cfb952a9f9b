"""The page's section about classes: accuracy by class, and which classes are taken for which."""

from collections.abc import Mapping

import numpy as np

import stepwell.report.fidelity_figures as fidelity_figures
from stepwell.report.markup import as_percent, figure, table
from stepwell.report.run_record import RunRecord
from stepwell.results import never_in_words, never_right

#: Classes in the open table, at most: the worst. The others are folded.
SHOWN = 12


def never_right_note(record: RunRecord) -> str:
    """Name the classes of which a row has no example right, as sentences; empty without any."""
    groups = never_right({row: record.confusion(row) for row in record.rows})
    sentences = (never_in_words(rows, names, record.row) for rows, names in groups.items())
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def classes_section(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Show the accuracy of each class, the worst first, and the confusion matrix of the last row."""
    rows = [row for row in record.rows if record.confusion(row)]
    if not rows:
        return ""
    last = rows[-1]
    counts = record.confusion(last)
    lines = []
    for name, answers in counts.items():
        by_row = [record.confusion(row).get(name, {}) for row in rows]
        shares = [answer.get(name, 0) / max(1, sum(answer.values())) for answer in by_row]
        wrong = {other: count for other, count in answers.items() if other != name}
        likeliest = max(wrong, key=lambda other: wrong[other], default="")
        taken = f"{likeliest} ({wrong[likeliest]})" if likeliest else ""
        cells = [name, f"{sum(answers.values()):,}", *map(as_percent, shares), taken]
        lines.append((shares[-1], cells))
    lines.sort(key=lambda line: line[0])
    head = ["class", "examples", *(f"{record.row} {row}" for row in rows), "taken for"]
    ordered = [line for _, line in lines]
    parts = ["<h3>Classes</h3>", '<div class="beside"><div>', table(head, ordered[:SHOWN])]
    if len(ordered) > SHOWN:
        rest = table(head, ordered[SHOWN:])
        count = f"The other {len(ordered) - SHOWN} classes"
        parts[1:1] = [f"<p>The {SHOWN} worst of {len(ordered)} classes at {record.row} {last}:</p>"]
        parts.append(f"<details><summary>{count}</summary>{rest}</details>")
    parts += ["</div>", '<div class="figures">', _matrix(record, last), "</div></div>"]
    return "\n".join(parts)


def _matrix(record: RunRecord, row: str) -> str:
    """Draw the confusion matrix of a row."""
    counts = record.confusion(row)
    seen = dict.fromkeys([*counts, *(other for answers in counts.values() for other in answers)])
    names = [name for name in record.classes if name in seen] or list(seen)
    numbers = np.array([[counts.get(true, {}).get(other, 0) for other in names] for true in names])
    image = fidelity_figures.matrix(
        numbers, names, answer=f"class by {record.row} {row}", truth="true class"
    )
    return figure(image, f"Confusion matrix of {record.row} {row}: a row is a true class.")
