"""A study's measures as a picture."""

import io
from collections.abc import Sequence
from typing import Any

from stepwell.claims.kit.columns import Arms, Column, panels_by_depth, rows

#: Of points, lines and text (Okabe & Ito's blue and orange, which the colour-blind can tell apart).
POINT, MEAN, GREY = "#0072B2", "#D55E00", "#666666"


def draw(arms: Arms, panels: Sequence[Column] = ()) -> bytes:
    """Every arm's measures: a panel for each, a point a seed, a bar for the mean.

    Args:
        arms: of claims.json: measures by arm. Those that have none of the panels' are left out.
        panels: by default the test accuracy of every depth ("DEPTH/accuracy").

    Returns:
        An SVG file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = panels or panels_by_depth(arms)
    arms = rows(arms, panels)
    names = list(arms)
    style: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "stepwell", "svg.fonttype": "none"}
    with mpl.rc_context(style):
        size = (3.0 + 2.4 * len(panels), 0.9 + 0.27 * len(names))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, column in zip(axes, panels, strict=True):
            for row, name in enumerate(names):
                measured = arms[name].get(column.key)
                if measured is None:
                    continue
                values = [column.scale * value for value in measured["values"]]
                panel.plot(values, [row] * len(values), "o", color=POINT, alpha=0.6, markersize=4)
                mean = column.scale * measured["mean"]
                panel.plot([mean], [row], "|", color=MEAN, markersize=12, mew=2)
            panel.set_title(column.title, fontsize=10)
            panel.set_xlabel(column.unit)
            panel.grid(axis="x", color="#e4e4e4", linewidth=0.7)
            panel.set_axisbelow(True)
            panel.tick_params(colors=GREY, labelcolor="#222222")
            for side in ("top", "right", "left"):
                panel.spines[side].set_visible(False)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].invert_yaxis()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
