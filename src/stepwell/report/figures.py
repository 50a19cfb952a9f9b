"""The page's pictures, each a `data:` address: figures as SVG, examples as PNG."""

import base64
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwell.colours import GREY, OKABE_ITO
from stepwell.measures import MEASURES, correlation_interval, score_among, share_interval
from stepwell.report.run_record import Phase, RunRecord, as_mapping, finite

if TYPE_CHECKING:  # matplotlib takes longer to import than the rest of the page takes to write
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Figure = Any

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.")

#: Intervals over examples of the scores that have a closed form.
INTERVALS = {"accuracy": share_interval, "pearson": correlation_interval}


def row_colours(records: Sequence[RunRecord]) -> dict[str, str]:
    """Give each row's name one colour for all figures of the page."""
    names = dict.fromkeys(row for record in records for row in record.rows)
    return dict(zip(names, cycle(OKABE_ITO), strict=False))


def accuracy_cost(
    records: Sequence[RunRecord], colours: Mapping[str, str], cost: Literal["ms", "macs"]
) -> str | None:
    """Draw accuracy (or Pearson) against ms or MACs, a point a row; None if nothing was measured."""
    points = {record.name: _operating_points(record, cost) for record in records}
    if not any(points.values()):
        return None
    several = len(records) > 1
    words = {row: record.row for record in records for row in record.rows}
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for i, (name, run_points) in enumerate(points.items()):
            if not run_points:
                continue
            marker, dashes = MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)]
            ordered = sorted((p for p in run_points if not p.star), key=lambda point: point.x)
            xs, ys = [p.x for p in ordered], [p.y for p in ordered]
            axes.plot(xs, ys, dashes, color="#9a9a9a", lw=1.1, marker=marker, label=legend_text(name))
            if cost == "macs" and (curve := cascades_of(records[i])):
                axes.plot(*zip(*curve, strict=True), ":", color=GREY, lw=1.1, marker=".", zorder=1)
            for p in run_points:
                colour = colours.get(p.row, GREY)
                axes.errorbar(
                    p.x, p.y, p.y_error, p.x_error, color=colour, marker="*" if p.star else marker,
                    ms=12 if p.star else 8, lw=1.4, capsize=3,
                )  # fmt: skip
                if not several:  # the points of one depth are close together: labels would collide
                    place: dict[str, Any] = {
                        "textcoords": "offset points",
                        "weight": "bold",
                        "color": "#222222",
                    }
                    aside = (7, -15) if p.star else (7, 5)
                    axes.annotate(legend_text(p.row), (p.x, p.y), aside, **place)
        if several:
            for row, colour in colours.items():
                axes.plot([], [], "o", color=colour, label=legend_text(f"{words[row]} {row}"))
        axes.margins(x=0.16)
        nouns = {record.noun for record in records}
        noun = nouns.pop() if len(nouns) == 1 else "input"
        unit = f"ms per {noun}" if cost == "ms" else f"million MACs per {noun}"
        titles = " or ".join(dict.fromkeys(MEASURES[record.measure].title for record in records))
        axes.set(xlabel=unit, ylabel=f"test {titles}, {'%' if titles == 'accuracy' else '× 100'}")
        ends = [p.x + p.x_error[1][0] for run_points in points.values() for p in run_points]
        xs = [p.x for run_points in points.values() for p in run_points]
        if max(ends) > 3 * max(xs):  # a whisker of a busy moment would push the points into a corner
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif axes.get_xlim()[0] < 0:
            axes.set_xlim(0)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -1), min(high, 100.5))
        if several:
            figure.legend(loc="outside lower center", ncols=2)

    return svg(5.6, 3.9 + (0.1 * (len(records) + len(colours)) if several else 0), paint)


def losses(phases: Sequence[Phase], colours: Mapping[str, str], word: str = "depth") -> str | None:
    """Draw every training loss term by epoch, in its row's colour and its term's dash pattern.

    The legend names rows and terms apart, which takes fewer lines; `word` stands for a row.
    """
    bookkeeping = {"phase", "epoch", "step", "lr", "seconds", "cpu_seconds"}
    keys = [key for key in _keys(phases) if key not in bookkeeping and not key.startswith("val/")]
    owner = {key: key.rpartition("/")[0] for key in keys}
    # terms with parts of their own, such as one a layer, have a colour as rows have
    parted = dict.fromkeys(name for name in owner.values() if name and name not in colours)
    palette = {
        **colours,
        **dict(zip(parted, cycle(OKABE_ITO[len(colours) :] or OKABE_ITO), strict=False)),
    }
    order = ["", *palette]  # the total, then the rows, then terms with parts
    keys.sort(key=lambda key: order.index(owner[key]))
    terms = list(dict.fromkeys(key.rpartition("/")[2] for key in keys if key != "loss"))

    dashes = {term: DASHES[i % len(DASHES)] for i, term in enumerate(terms)}
    total = {"color": "#000000", "lw": 2.6, "alpha": 0.5}
    styles: dict[str, dict[str, Any]] = {
        key: {"color": palette.get(owner[key], GREY), "ls": dashes.get(key.rpartition("/")[2], "-")}
        for key in keys
    }
    legend: list[dict[str, Any]] = [
        {"color": c, "label": d if d in parted else f"{word} {d}"}
        for d, c in palette.items() if d in owner.values()
    ]  # fmt: skip
    shares = {key.rpartition("/")[2] for key in keys if owner[key] == "share"}  # of the choices
    legend += [
        {
            "color": GREY, "ls": dashes[term],
            "label": f"{word} {term}" if term in shares
            else f"layer {term}" if term.isdecimal() else term,
        }
        for term in terms
    ]  # fmt: skip
    if "loss" in keys:
        styles["loss"] = total
        legend.insert(0, total | {"label": "total loss"})
    return _curves(phases, styles, "training loss", scale=1, legend=legend)


def validation(phases: Sequence[Phase], colours: Mapping[str, str], word: str = "depth") -> str | None:
    """Draw the validation accuracy (or Pearson) of every row by epoch; `word` stands for a row."""
    present = _keys(phases)
    score = score_among(key for key in present if key.startswith("val/"))
    keys = {depth: f"val/{depth}/{score}" for depth in colours}
    styles = {keys[depth]: {"color": colour} for depth, colour in colours.items()}
    known = {depth: colour for depth, colour in colours.items() if keys[depth] in present}
    legend = [{"color": colour, "label": f"{word} {depth}"} for depth, colour in known.items()]
    share = score == "accuracy"
    label = "validation accuracy, %" if share else f"validation {MEASURES[score].title}"
    return _curves(phases, styles, label, scale=100 if share else 1, legend=legend)


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], *, colour: str, title: str
) -> str:
    """Draw a row's accuracy by its confidence, and the number of examples in each bin."""
    bins = 15 if len(right) >= 1000 else 10
    width = 1 / bins
    index = np.clip((confidence * bins).astype(int), 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    accuracy = np.bincount(index, weights=right, minlength=bins)[filled] / counts[filled]
    claimed = np.bincount(index, weights=confidence, minlength=bins)[filled] / counts[filled]
    middle = (np.arange(bins)[filled] + 0.5) * width

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        upper.bar(middle, accuracy, width * 0.92, color=colour, label="share right")
        upper.bar(
            middle, claimed - accuracy, width * 0.92, bottom=accuracy, label="gap to confidence",
            facecolor="none", edgecolor="#555555", hatch="///", linewidth=0.8,
        )  # fmt: skip
        upper.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share right", title=title)
        lower.bar(middle, counts[filled], width * 0.92, color=GREY)
        lower.set(xlabel="confidence", ylabel="examples")
        figure.legend(loc="outside lower center", ncols=2)

    return svg(3.9, 4.3, paint)


def against_truth(
    truth: NDArray[np.float64], predicted: NDArray[Any], *, colour: str, name: str
) -> str:
    """Draw predicted against true numbers, a point an example."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
        axes.plot(ends, ends, "--", color=GREY, lw=1)
        axes.plot(truth, predicted, ".", color=colour, alpha=0.5, ms=5)
        axes.set(xlabel=f"true {legend_text(name)}", ylabel="predicted")

    return svg(3.9, 3.9, paint)


def picture(pixels: NDArray[np.uint8]) -> str:
    """Encode one example picture, (H, W, 3) bytes."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return _address("image/png", file.getvalue())


class Point(NamedTuple):
    """A row's cost and accuracy in percent, with the distances to the ends of both whiskers."""

    row: str
    x: float
    y: float
    x_error: list[list[float]]
    y_error: list[list[float]]
    star: bool = False


def _operating_points(record: RunRecord, cost: str) -> list[Point]:
    """Give the rows of a run that have this cost and an accuracy, and its cascade."""
    scale = 1.0 if cost == "ms" else 1e-6
    rows = [
        (row, record.cost(row), finite(record.score(row, record.measure)), False) for row in record.rows
    ]
    cascade = as_mapping(as_mapping(record.results.get("cascade")).get("test"))
    if cascade:
        rows.append(("cascade", cascade, finite(cascade.get("accuracy")), True))
    points = []
    for row, costs, accuracy, star in rows:
        x = scale * finite(costs.get(cost))
        if math.isfinite(x) and math.isfinite(accuracy):
            ends = (scale * finite(costs.get(f"{cost}_{end}")) for end in ("low", "high"))
            n = record.examples
            interval = INTERVALS.get(record.measure)
            shares = interval(accuracy, n) if n and interval else _resampled(record, row)
            points.append(Point(
                row, x, 100 * accuracy, _whiskers(x, *ends),
                _whiskers(100 * accuracy, *(100 * share for share in shares)), star,
            ))  # fmt: skip
    return points


def _resampled(record: RunRecord, row: str) -> tuple[float, float]:
    """The ends of the interval of a row's score that was measured with it; NaN without one."""
    low, high = (finite(record.score(row, f"{record.measure}_{end}")) for end in ("low", "high"))
    return low, high


def cascades_of(record: RunRecord) -> list[tuple[float, float]]:
    """Million MACs and accuracy in percent of the run's cascades within budgets."""
    curve = as_mapping(record.results.get("cascade")).get("curve")
    return [
        (1e-6 * finite(point.get("macs")), 100 * finite(point.get("accuracy")))
        for point in map(as_mapping, curve or ())
    ]


def _whiskers(value: float, low: float, high: float) -> list[list[float]]:
    # max() also turns an end that is NaN into no whisker, as NaN compares false
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _curves(
    phases: Sequence[Phase], styles: Mapping[str, dict[str, Any]], label: str, *, scale: float,
    legend: Sequence[dict[str, Any]],
) -> str | None:  # fmt: skip
    """Draw values of the phases' lines by key, each in its style; `legend` explains the styles."""
    xs = [phase.start + int(line["epoch"]) for phase in phases for line in phase.lines]
    values = {
        key: np.array([scale * finite(line.get(key)) for phase in phases for line in phase.lines])
        for key in styles
    }
    values = {key: ys for key, ys in values.items() if np.isfinite(ys).any()}
    if not values:
        return None
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for key, ys in values.items():
            # A lone value between absent ones draws no line, so short runs get dots as well.
            axes.plot(xs, ys, **styles[key], marker="." if len(xs) <= 40 else None)
        positive = np.concatenate([ys[ys > 0] for ys in values.values()])
        if scale == 1 and len(positive) and positive.max() > 30 * positive.min():
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        several = len(phases) > 1
        axes.set(xlabel="epoch, counted through the phases" if several else "epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if several:
            _mark_phases(axes, phases)
        lines = [Line2D([], [], **e | {"label": legend_text(e["label"])}) for e in legend]
        figure.legend(handles=lines, loc="outside lower center", ncols=3)

    return svg(4.4, 3.0 + 0.17 * math.ceil(len(legend) / 3), paint)


def _mark_phases(axes: "Axes", phases: Sequence[Phase]) -> None:
    for i, phase in enumerate(phases):
        if i:
            axes.axvline(phase.start + 0.5, color=GREY, lw=1, ls=(0, (2, 2)))
        axes.annotate(
            phase.name, ((phase.start + 0.5 + phase.end + 0.5) / 2, 1.02), ha="center",
            xycoords=axes.get_xaxis_transform(), fontsize=9, color="#333333",
        )  # fmt: skip
    axes.set_xlim(0.5, phases[-1].end + 0.5)


def _keys(phases: Sequence[Phase]) -> list[str]:
    return list(dict.fromkeys(key for phase in phases for line in phase.lines for key in line))


def legend_text(text: str) -> str:
    """Shorten `text` for a legend, and hide a first underscore from matplotlib, which omits such."""
    short = text if len(text) <= 32 else f"…{text[-31:]}"
    return f" {short}" if short.startswith("_") else short


def wrapped(text: str) -> str:
    """Wrap `text` for a legend of one column; see `legend_text`."""
    lines = "\n".join(textwrap.wrap(text, 44)) or text
    return f" {lines}" if lines.startswith("_") else lines


def svg(width: float, height: float, paint: Callable[[Figure], None]) -> str:
    """Give a figure as SVG, drawn by `paint`, of this size in inches, in the page's style."""
    from matplotlib import style
    from matplotlib.figure import Figure

    file, page = io.BytesIO(), Path(__file__).with_name("page.mplstyle")
    with style.context(page), warnings.catch_warnings():
        # The reader's browser chooses the face of a character that matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure((width, height), layout="constrained")
        paint(figure)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _address("image/svg+xml", file.getvalue())


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
