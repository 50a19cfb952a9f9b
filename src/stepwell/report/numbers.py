"""The page's sections about networks that predict numbers: true against predicted, largest errors."""

from collections.abc import Mapping
from html import escape

import numpy as np

import stepwell.report.figures as figures
from stepwell.colours import GREY
from stepwell.report.markup import as_decimal, figure
from stepwell.report.run_record import RunRecord, read_arrays
from stepwell.report.sections import grid, tested_on

#: Largest errors to show.
SHOWN = 12


def lead(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Describe a run in a sentence."""
    start, of_examples = tested_on(record)
    if not record.rows:
        return f'<p class="lead">{escape(start)}; nothing was tested.</p>'
    full = record.rows[-1]
    scores = [as_decimal(record.score(full, key)) for key in ("pearson", "rmse")]
    text = (
        f"{start}: Pearson correlation {scores[0]}, RMSE {scores[1]}"
        f"{of_examples.replace(' of', ' on', 1)}"
    )
    text += f" at the full depth {full}." if len(record.rows) > 1 else "."
    return f'<p class="lead">{escape(text)}</p>'


def scatter(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Draw predicted against true numbers at each row, and show the last row's largest errors."""
    file = record.path / "predictions.npz"
    if not file.is_file():
        return ""
    arrays = read_arrays(file, "delete it to report without examples", ["labels"])
    truth = np.asarray(arrays["labels"], dtype=np.float64)
    rows = {row: arrays[f"numbers/{row}"][:, 0] for row in record.rows if f"numbers/{row}" in arrays}
    if not rows:
        return ""
    name = " ".join(record.classes) or "number"
    parts = ["<h3>Predicted and true numbers</h3>", '<div class="figures narrow">']
    for row, predicted in rows.items():
        colour = colours.get(row, GREY)
        image = figures.against_truth(truth, predicted, colour=colour, name=name)
        parts.append(figure(image, f"{record.row} {row}: on the dashed line, both are equal."))
    places = [int(i) for i in arrays.get("image_index", ())][:SHOWN]
    cards = []
    for text, i in zip(arrays.get("texts", ()), places, strict=False):
        lines = "".join(
            f'<tr><th scope="row">{escape(row)}</th><td>{predicted[i]:.4g}</td></tr>'
            for row, predicted in rows.items()
        )
        cards.append(
            f'<figure class="example"><blockquote>{escape(str(text))}</blockquote><figcaption>'
            f'<span class="truth">truth: <b>{truth[i]:.4g}</b></span><table>{lines}</table>'
            "</figcaption></figure>"
        )
    largest = [f"<h3>Largest errors of {record.row} {record.rows[-1]}</h3>", grid(cards)]
    return "\n".join([*parts, "</div>", *largest])
