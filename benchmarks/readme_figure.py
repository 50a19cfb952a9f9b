"""Draw README's figure and print its table: `python -m benchmarks.readme_figure`.

Accuracy over MACs of networks distilled one by one, and of nested networks on labels and by the default
recipe. The numbers come from the units of `results/claims/units/ekd`.
"""

import io
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.judge import ABOUT, PUBLISHED
from stepwell.claims.kit.study import slug
from stepwell.files import write_whole
from stepwell.report.figures import OKABE_ITO

FOLDER = PUBLISHED / "units" / "ekd"
OUT = Path(__file__).parents[1] / "docs" / "accuracy-macs.svg"
DEPTHS = ("8", "14", "20", "32")
TEACHER = "32 alone"
NESTED = "8 < 14 < 20 < 32, nested"

#: Arm of each depth, by the line it belongs to.
LINES = {
    "distilled one by one": {depth: f"{depth}, offline KD" for depth in DEPTHS},
    "one nested network, labels only": dict.fromkeys(DEPTHS, f"{NESTED}, labels only"),
    "one nested network": dict.fromkeys(DEPTHS, NESTED),
}


def results(arm: str) -> list[dict[str, Any]]:
    """Results of every seed of an arm.

    Raises:
        ValueError: the arm was trained on another machine, or no unit has its name.
    """
    if f'"{arm}"' in (FOLDER / ABOUT).read_text().partition('"elsewhere"')[2]:
        raise ValueError(f"{arm!r} was trained on another machine: leave it out of this figure")
    files = [f for f in FOLDER.glob("*.json") if f.name.rsplit("-", 2)[0] == slug(arm)]
    if not files:
        raise ValueError(f"no unit of {arm!r} in {FOLDER}")
    return [json.loads(file.read_text()) for file in sorted(files)]


def accuracies(arm: str, depth: str) -> list[float]:
    """Test accuracy of a depth, in percent, a seed each."""
    return [100 * result["test"][f"{depth}/accuracy"] for result in results(arm)]


def seconds(line: str) -> float:
    """Mean processor seconds to train a line's networks, their teacher included."""
    arms = dict.fromkeys(LINES[line].values()) | {TEACHER: None}
    return sum(mean(result["cpu_seconds"] for result in results(arm)) for arm in arms)


def table() -> str:
    """The table in markdown: a row a depth, then seconds and files."""
    rows = [["depth", *LINES], ["---"] * (1 + len(LINES))]
    for depth in DEPTHS:
        cells = [accuracies(arms[depth], depth) if depth in arms else [] for arms in LINES.values()]
        rows.append([depth, *(f"{mean(v):.1f} ± {stdev(v):.1f}" if v else "–" for v in cells)])
    rows.append(["seconds", *(f"{seconds(line):.0f}" for line in LINES)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Draw the figure and print the table."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 10, "svg.hashsalt": "stepwell", "svg.fonttype": "none"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        macs = {depth: results(NESTED)[0]["costs"][depth]["macs"] / 1e6 for depth in DEPTHS}
        # Each line stands a little aside, so that error bars do not overlap.
        styles = zip(OKABE_ITO, "so^", (-0.08, 0, 0.08), strict=False)
        for (line, arms), (colour, marker, aside) in zip(LINES.items(), styles, strict=True):
            values = [accuracies(arm, depth) for depth, arm in arms.items()]
            axes.errorbar(
                [macs[depth] + aside for depth in arms],
                [mean(v) for v in values],
                [stdev(v) for v in values],
                marker=marker, color=colour, label=line, capsize=3, linewidth=1.6, elinewidth=0.9,
            )  # fmt: skip
        axes.set_xticks([macs[depth] for depth in DEPTHS])
        axes.set_xticklabels([f"{macs[d]:.1f} M\nResNet-{d}" for d in DEPTHS])
        axes.set(xlabel="multiply-accumulates (MACs) per image", ylabel="test accuracy, %")
        full = accuracies(TEACHER, DEPTHS[-1])
        axes.errorbar(
            macs[DEPTHS[-1]], mean(full), stdev(full), marker="D", color="#555555",
            label="ResNet-32 trained alone", capsize=3, linewidth=0, elinewidth=0.9,
        )  # fmt: skip
        seeds = len(results(NESTED))
        axes.set_title(f"CIFAR-10 at 16×16 pixels, {seeds} seeds, mean ± std", fontsize=10)
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.legend(loc="lower right", frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_whole(OUT, buffer.getvalue())
    print(table())


if __name__ == "__main__":
    main()
