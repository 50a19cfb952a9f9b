"""A study's accuracies as a picture."""

import io
from collections.abc import Mapping
from typing import Any

#: Of points, lines and text (Okabe & Ito's blue and orange, which the colour-blind can tell apart).
POINT, MEAN, GREY = "#0072B2", "#D55E00", "#666666"


def draw(arms: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The test accuracy of every arm in percent: a panel a depth, a point a seed, a bar for the mean.

    Args:
        arms: of claims.json: measures by arm, "DEPTH/accuracy" among them.

    Returns:
        An SVG file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    depths = depths_of(arms)
    names = list(arms)
    style: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "stepwell", "svg.fonttype": "none"}
    with mpl.rc_context(style):
        size = (3.0 + 2.4 * len(depths), 0.9 + 0.27 * len(names))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(depths), sharey=True, squeeze=False)[0]
        for panel, depth in zip(panels, depths, strict=True):
            for row, name in enumerate(names):
                measured = arms[name].get(f"{depth}/accuracy")
                if measured is None:
                    continue
                values = [100 * value for value in measured["values"]]
                panel.plot(values, [row] * len(values), "o", color=POINT, alpha=0.6, markersize=4)
                panel.plot([100 * measured["mean"]], [row], "|", color=MEAN, markersize=12, mew=2)
            panel.set_title(f"depth {depth}", fontsize=10)
            panel.set_xlabel("test accuracy, %")
            panel.grid(axis="x", color="#e4e4e4", linewidth=0.7)
            panel.set_axisbelow(True)
            panel.tick_params(colors=GREY, labelcolor="#222222")
            for side in ("top", "right", "left"):
                panel.spines[side].set_visible(False)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def depths_of(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The depths that any arm measured, shallow to deep."""
    found = {
        name.split("/")[0] for arm in arms.values() for name in arm if name.endswith("/accuracy")
    }
    return sorted(found, key=lambda depth: (len(depth), depth))
