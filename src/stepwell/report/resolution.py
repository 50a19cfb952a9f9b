"""The page's sections about resolutions and widths: the choices, their images, accuracy and speed."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.colours import OKABE_ITO
from stepwell.measures import CONTROLS, SPEED, WIDTHS_SPEED, Measure
from stepwell.report.classes import never_right_note
from stepwell.report.figures import Figure, legend_text, picture, svg
from stepwell.report.markup import as_count, as_percent, figure, table
from stepwell.report.run_record import RunRecord, as_mapping, finite, number, read_arrays
from stepwell.report.sections import balanced_words, grid, speed_table, tested_on

CHOSEN = "chosen"


def lead(run: RunRecord, colours: Mapping[str, str]) -> str:
    """Compare the network as a whole with its best single choice, in a sentence."""
    return f'<p class="lead">{escape(_summary(run))}</p>'


def _summary(run: RunRecord) -> str:
    start, of_examples = tested_on(run)
    if not run.rows:
        return f"{start}; nothing was tested."
    chosen, *fixed = run.rows
    text = f"{start}: {as_percent(run.score(chosen, 'accuracy'))}{of_examples} right as chosen"
    text += balanced_words(run, chosen)
    if not fixed:
        return f"{text}."
    best = max(fixed, key=lambda choice: finite(run.score(choice, "accuracy")))
    best_macs, macs = (finite(run.cost(row).get("macs")) for row in (best, chosen))
    times = f", at {best_macs / macs:.2f} × the MACs" if best_macs > 0 and macs > 0 else ""
    text += f"; always {best}: {as_percent(run.score(best, 'accuracy'))}{times}."
    return " ".join(filter(None, (text, never_right_note(run))))


def resolution_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show the choices of resolution; nothing for a run without a chooser."""
    return _choices(run, run.system_results("drnet"), SPEED)


def widths_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show the choices of width; nothing for a run without a gate."""
    return _choices(run, run.system_results("widths"), WIDTHS_SPEED)


def _choices(run: RunRecord, results: Mapping[str, Any], speed: Mapping[str, Measure]) -> str:
    shares = as_mapping(results.get("shares"))
    if not shares:
        return ""
    free = as_mapping(results.get("unpriced"))
    text = (
        f"An image costs {as_percent(number(results.get('cost')))} of the costliest choice in the "
        f"mean. Without the cost penalty: {as_percent(number(free.get('cost')))} of the cost, "
        f"{as_percent(number(free.get('accuracy')))} accuracy. The chooser takes "
        f"{as_count(results.get('chooser_macs'))} MACs."
    )
    rows = [
        [name, as_percent(number(share)), as_percent(run.score(name, "accuracy"))]
        for name, share in shares.items()
    ]
    head = ("choice", "chosen for", "accuracy, if for all")
    caption = (
        "Accuracy against MACs. On test images: each choice for all, and the chooser. On validation "
        "images, where it looks better: other cost penalties (--budget-macs)."
    )
    parts = ["<h3>Choices</h3>", f"<p>{escape(text)}</p>", table(head, rows)]
    parts += [_controls(as_mapping(results.get("controls"))), speed_table(results, speed)]
    bars = figure(_histogram(results), "How often each choice is made, of all images and by class.")
    parts += ['<div class="figures">', bars, figure(_front(run, results), caption), "</div>"]
    return "\n".join([*parts, _pictures(run, list(shares))])


def _controls(controls: Mapping[str, Any]) -> str:
    """Show the accuracy of other ways to choose; nothing where they were not measured."""
    rows = [
        [words, as_percent(number(controls[key]))] for key, words in CONTROLS.items() if key in controls
    ]
    cost = as_percent(number(controls.get("oracle cost")))
    note = f"The last has a mean cost of {cost} of the costliest choice's."
    text = "<p>Other ways to choose, at the same mean cost:</p>"
    return f"{text}\n{table(('choice', 'accuracy'), rows, note)}" if rows else ""


def _histogram(results: Mapping[str, Any]) -> str | None:
    shares = as_mapping(results.get("shares"))
    groups = {"all": shares} | {str(k): v for k, v in as_mapping(results.get("classes")).items()}
    groups = dict(list(groups.items())[:21])  # more could not be read

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        left = np.zeros(len(groups))
        for i, name in enumerate(shares):
            values = np.array([100 * finite(as_mapping(g).get(name)) for g in groups.values()])
            colour = OKABE_ITO[i % len(OKABE_ITO)]
            axes.barh(range(len(groups)), values, left=left, color=colour, label=legend_text(name))
            left = left + np.nan_to_num(values)
        axes.set_yticks(range(len(groups)), [legend_text(name) for name in groups])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel("% of the test images")
        figure.legend(loc="outside lower center", ncols=4)

    return svg(4.4, 1.6 + 0.24 * len(groups), paint)


def _front(run: RunRecord, results: Mapping[str, Any]) -> str | None:
    points = {
        name: (finite(run.cost(name).get("macs")) / 1e6, 100 * finite(run.score(name, "accuracy")))
        for name in run.rows
    }
    if CHOSEN not in points:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        fixed = sorted((x, y, name) for name, (x, y) in points.items() if name != CHOSEN)
        xs, ys = [x for x, *_ in fixed], [y for _, y, _ in fixed]
        axes.plot(xs, ys, "o--", color=OKABE_ITO[0], label="one choice for all images")
        for x, y, name in fixed:
            axes.annotate(name, (x, y), (5, -12), textcoords="offset points")
        budgets = [as_mapping(budget) for budget in results.get("budgets") or ()]
        macs = [finite(b.get("macs")) / 1e6 for b in budgets]
        right = [100 * finite(b.get("accuracy")) for b in budgets]
        label = "other cost penalties, validation"
        axes.plot(macs, right, "-", lw=1, color=OKABE_ITO[1], label=label)
        x, y = points[CHOSEN]
        axes.plot([x], [y], "*", ms=14, color=OKABE_ITO[1], label="as chosen")
        axes.margins(0.14)
        axes.set(xlabel="million MACs an image", ylabel="accuracy, %")
        figure.legend(loc="outside lower center", ncols=2)

    return svg(4.4, 3.4, paint)


def _pictures(run: RunRecord, names: list[str]) -> str:
    """Show images of every choice: easy ones at small resolutions, hard ones at large ones."""
    needed = ("choice", "choice_index", "choice_images", "labels")
    try:
        arrays = read_arrays(run.path / "predictions.npz", "", needed)
        logits = arrays["logits/" + (CHOSEN if f"logits/{CHOSEN}" in arrays else "dynamic")]
    except (ValueError, KeyError):
        return ""  # the rest of the page says what is wrong with the file
    choice, index, images, labels = (arrays[name] for name in needed)
    parts = []
    for i, name in enumerate(names):
        cards = grid(
            _card(run, images[k], int(labels[index[k]]), int(logits[index[k]].argmax()))
            for k in np.flatnonzero(choice[index] == i)
        )
        parts += [f"<h4>{escape(name)}</h4>", cards] if cards else []
    return "\n".join(["<h3>Images by choice</h3>", *parts]) if parts else ""


def _card(run: RunRecord, pixels: NDArray[np.uint8], label: int, answer: int) -> str:
    small = ' class="pixels"' if max(pixels.shape[:2]) < 96 else ""
    name = escape(run.class_name(label))
    if answer != label:
        name += f", taken for {escape(run.class_name(answer))}"
    return (
        f'<figure class="example"><img{small} src="{picture(pixels)}" alt="{name}">'
        f"<figcaption>{name}</figcaption></figure>"
    )
