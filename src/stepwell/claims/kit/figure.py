"""A study's picture: curves over its natural axes, and the intervals of its claims."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stepwell.colours import GREY, OKABE_ITO

if TYPE_CHECKING:  # matplotlib is imported when a picture is drawn
    from matplotlib.axes import Axes

MARKERS = "os^DvPX"
#: Of an interval, by verdict.
VERDICT_COLOURS = {"holds": OKABE_ITO[0], "refuted": OKABE_ITO[1], "not decided": GREY}
#: Claims that a forest plot shows where none is primary.
MOST_ROWS = 8


class Axis(NamedTuple):
    """An axis of a plot: its label, the factor of its values, and the ticks of a logarithmic one."""

    label: str
    scale: float = 1.0
    log: bool = False
    ticks: Sequence[float] = ()


class Point(NamedTuple):
    """A point of a curve: an arm, and its measures on both axes; x may be a number."""

    arm: str
    x: str | float
    y: str


class Plot(NamedTuple):
    """Curves over two axes, by title; means over seeds, with their sample standard deviation."""

    x: Axis
    y: Axis
    curves: Mapping[str, Sequence[Point]]


def draw(record: Mapping[str, Any], plot: Plot | None = None) -> bytes:
    """Draw a study's curves, and a row for each primary claim (else for the first claims); an SVG file.

    A row has the claim's interval, its margin as a dashed line, and the claimed side shaded.

    Args:
        record: the content of claims.json.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curves = _curves(record["arms"], plot) if plot else {}
    claims = [c for c in record["claims"] if c["primary"]] or record["claims"][:MOST_ROWS]
    heights = [4.6 + 0.2 * -(-len(curves) // 2)] * bool(curves) + [1.05] * len(claims)
    style: dict[Any, Any] = {
        "font.size": 9, "svg.hashsalt": "stepwell", "svg.fonttype": "none", "text.parse_math": False
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.0, sum(heights) or 1.0), layout="constrained")
        if heights:
            panels = figure.subplots(
                len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
            )[:, 0]
            if curves and plot:
                _draw_curves(panels[0], curves, plot)
            for panel, claim in zip(panels[len(panels) - len(claims) :], claims, strict=True):
                _draw_interval(panel, claim)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _curves(
    arms: Mapping[str, Mapping[str, Any]], plot: Plot
) -> dict[str, list[tuple[float, float, float]]]:
    """By title: x, y and the spread of y of every point whose arm was run."""
    curves = {}
    for title, points in plot.curves.items():
        values = []
        for point in points:
            measures = arms.get(point.arm, {})
            x: Any = measures.get(point.x) if isinstance(point.x, str) else {"mean": point.x}
            if x is not None and point.y in measures:
                y = measures[point.y]
                scaled = plot.x.scale * x["mean"], plot.y.scale * y["mean"], plot.y.scale * y["std"]
                values.append(scaled)
        if values:
            curves[title] = sorted(values)
    return curves


def _draw_curves(
    panel: "Axes", curves: Mapping[str, Sequence[tuple[float, float, float]]], plot: Plot
) -> None:
    for i, (title, points) in enumerate(curves.items()):
        xs, ys, spreads = zip(*points, strict=True)
        colour, marker = OKABE_ITO[i % len(OKABE_ITO)], MARKERS[i % len(MARKERS)]
        panel.errorbar(
            xs, ys, spreads, color=colour, marker=marker, ms=5, lw=1.4, elinewidth=0.9, capsize=2,
            label=title,
        )  # fmt: skip
    if plot.x.log:
        panel.set_xscale("log")
        if plot.x.ticks:
            panel.set_xticks(plot.x.ticks, minor=False)
            panel.set_xticks([], minor=True)
        panel.xaxis.set_major_formatter("{x:g}")
    panel.set(xlabel=plot.x.label, ylabel=plot.y.label)
    _plain(panel)
    panel.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, frameon=False, fontsize=8)


def _draw_interval(panel: "Axes", claim: Mapping[str, Any]) -> None:
    judged, colour = claim["difference"], VERDICT_COLOURS[claim["verdict"]]
    low, high = judged["low"], judged["high"]
    ends = [judged["mean"], claim["margin"], *(end for end in (low, high) if end is not None)]
    room = 0.15 * (max(ends) - min(ends)) or 1.0
    left, right = min(ends) - room, max(ends) + room
    side = (left, claim["margin"]) if claim["below"] else (claim["margin"], right)
    panel.axvspan(*side, color="#e8f1f8", lw=0)
    panel.axvline(claim["margin"], color="#222222", ls="--", lw=1)
    if low is not None:
        panel.plot([low, high], [0, 0], color=colour, lw=2.5, solid_capstyle="butt")
    panel.plot([judged["mean"]], [0], "o", color=colour, ms=6)
    sentence = claim["text"].rpartition(": ")[0]
    title = textwrap.shorten(sentence, 170, placeholder=" ...")
    panel.set_title(textwrap.fill(title, 92), fontsize=8.5, loc="left")
    panel.set(xlim=(left, right), ylim=(-1, 1), yticks=[], xlabel=judged["unit"])
    panel.text(1.01, 0.5, claim["verdict"], transform=panel.transAxes, va="center", color=colour)
    _plain(panel)
    panel.spines["left"].set_visible(False)


def _plain(panel: "Axes") -> None:
    """A light grid, and no frame at the top and on the right."""
    panel.grid(color="#e4e4e4", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.tick_params(colors=GREY, labelcolor="#222222")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
