"""Pictures of a student beside its teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.colours import GREY, OKABE_ITO
from stepwell.report.figures import Figure, legend_text, svg
from stepwell.report.run_record import FidelityRecord, finite

STUDENT = OKABE_ITO[0]
TEACHER = "#222222"
#: Classes up to which the cells of a matrix are written in numbers, and the axes name every class.
NUMBERED, NAMED = 12, 30
#: Examples from which on a bin of a reliability curve is joined to the others by a line.
JOINED = 10


def agreement_points(record: FidelityRecord, colours: Mapping[str, str]) -> str | None:
    """Draw the top-1 agreement of student and control on every part, with intervals."""
    parts, several = [*record.parts], len(record.depths) > 1
    marks = []  # x, interval, colour, marker, label
    for i, depth in enumerate(record.depths):
        shift = 0.24 * (i - (len(record.depths) - 1) / 2)
        kinds = (("agreement", "o", "student"), ("control/agreement", "s", "control"))
        for key, marker, network in kinds:
            offset = shift + (0.09 if network == "control" else -0.03)
            for position, part in enumerate(parts):
                if (interval := record.interval(part, depth, key)) is not None:
                    colour = colours.get(depth, STUDENT) if network == "student" else GREY
                    label = f"depth {depth}" if network == "student" and several else network
                    marks.append((position + offset, interval, colour, marker, label))
    if not marks:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        labels: set[str] = set()
        for x, (value, low, high), colour, marker, label in marks:
            axes.errorbar(
                x, 100 * value, [[100 * (value - low)], [100 * (high - value)]], color=colour,
                marker=marker, ms=6.5, mfc="white" if marker == "s" else colour, capsize=3, lw=1.4,
                ls="", label=None if label in labels else legend_text(label),
            )  # fmt: skip
            labels.add(label)
        axes.set_xticks(range(len(parts)), [f"{part} {record.noun}" for part in parts])
        axes.set_xlim(-0.5, len(parts) - 0.5)
        axes.set_ylabel("agreement with the teacher, %")
        axes.grid(False, axis="x")
        figure.legend(loc="outside lower center", ncols=3)

    return svg(4.4, 3.2, paint)


def reliability_pair(student: NDArray[Any], teacher: NDArray[Any], *, colour: str, depth: str) -> str:
    """Draw the accuracy of both by their confidence; (3, bins) of counts and means each."""
    bins = student.shape[1]
    middle = (np.arange(bins) + 0.5) / bins

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(4, 1.3))
        upper.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
        theirs = (teacher, TEACHER, "s", "--", "teacher", 0.2)
        ours = (student, colour, "o", "-", f"depth {depth}", -0.2)
        for curve, paint_in, marker, dashes, label, side in (theirs, ours):
            counts, confidence, accuracy = curve
            filled = counts > 0
            # of few examples the share right is mostly chance: small points, and no line to them
            sizes = 10 + 60 * np.sqrt(counts[filled] / counts.max())
            many = counts >= JOINED
            upper.plot(confidence[many], accuracy[many], dashes, color=paint_in, lw=1.1, alpha=0.8)
            upper.scatter(
                confidence[filled], accuracy[filled], sizes, color=paint_in, marker=marker,
                alpha=0.75, linewidths=0, label=legend_text(label), zorder=3,
            )  # fmt: skip
            lower.bar(middle + side / bins, counts, 0.38 / bins, color=paint_in)
        upper.set(xlim=(0, 1), ylim=(0, 1.03), ylabel="share right")
        lower.set(xlabel="confidence", ylabel="examples", yscale="symlog")
        largest = max(student[0].max(), teacher[0].max())
        ticks = [0, *(10**power for power in range(1, 1 + int(np.log10(max(10, largest)))))]
        lower.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        lower.minorticks_off()
        legend = figure.legend(loc="outside lower center", ncols=2)
        for handle in legend.legend_handles:
            handle.set_sizes([40])  # type: ignore[union-attr]

    return svg(4.4, 4.3, paint)


def matrix(
    counts: NDArray[Any], classes: Sequence[str], answer: str, truth: str = "class by the teacher"
) -> str:
    """Draw which class is the answer (columns) to which truth (rows), in shares of the rows."""
    n = len(counts)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)

    def paint(figure: Figure) -> None:
        from matplotlib.colors import PowerNorm

        axes = figure.add_subplot()
        # The diagonal is near 1 and the rest near 0: the root makes the rest visible.
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        if n <= NUMBERED:
            for (i, j), count in np.ndenumerate(counts):
                if count:
                    dark = shares[i, j] > 0.35
                    axes.text(
                        j, i, f"{int(count)}", ha="center", va="center", fontsize=7.5,
                        color="white" if dark else "#222222",
                    )  # fmt: skip
        if n <= NAMED:
            names = [legend_text(str(name)[:14]) for name in classes]
            upright = max(map(len, names)) > 3
            size = 9 if n <= NUMBERED else 6.5
            axes.set_xticks(range(n), names, rotation=90 if upright else 0, fontsize=size)
            axes.set_yticks(range(n), names, fontsize=size)
        axes.set(xlabel=legend_text(answer), ylabel=truth)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, shrink=0.75, label="share of the row", ticks=[0, 0.1, 0.5, 1])
        bar.outline.set_visible(False)

    return svg(4.4, 3.9, paint)


def line(points: Sequence[Mapping[str, Any]], *, colour: str) -> str:
    """Draw accuracy, agreement and loss from the student's weights (0) to the teacher's (1)."""
    shares = [finite(point.get("share")) for point in points]
    rows = (
        ("accuracy", 100.0, "accuracy, %"),
        ("agreement", 100.0, "agreement, %"),
        ("nll", 1.0, "NLL"),
    )
    kinds = (("train", "-", "train images"), ("test", "--", "test images"))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(len(rows), sharex=True)
        for axes, (key, scale, title) in zip(panels, rows, strict=True):
            for part, dashes, label in kinds:
                ys = [scale * finite(point.get(f"{part}/{key}")) for point in points]
                if np.isfinite(ys).any():
                    name = label if key == "accuracy" else None
                    axes.plot(
                        shares, ys, dashes, color=colour if part == "test" else TEACHER,
                        marker="o", ms=3.5, label=name,
                    )  # fmt: skip
            axes.set_ylabel(title)
        panels[0].set_title("BatchNorm statistics measured again at every point", fontsize=9)
        panels[-1].set_xlabel("share of the teacher's weights")
        figure.align_ylabels(panels)
        figure.legend(loc="outside lower center", ncols=2)

    return svg(4.4, 4.6, paint)
