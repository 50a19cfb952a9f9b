"""The page's section about grafting: accuracy after each block, and by images a class."""

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stepwell.colours import GREY, OKABE_ITO
from stepwell.report.figures import MARKERS, Figure, legend_text, svg, wrapped
from stepwell.report.markup import ABSENT, as_count, as_percent, figure, table
from stepwell.report.run_record import RunRecord, as_mapping, finite, number

#: Follows a block's name in the legend, for its accuracy in the teacher.
GRAFTED = " grafted"
#: Arguments that tell runs with the same data and teacher apart.
SETTINGS = ("student", "keep", "unlabeled", "schedule", "loss")


def grafting_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show the accuracy of each block in the teacher; nothing for a run without grafting."""
    results = run.system_results("netgraft")
    if not results:
        return ""
    grafted, joined = (as_mapping(results.get(kind)) for kind in ("grafted", "joined"))
    blocks = _blocks(results)
    parts = ["<h3>Block by block</h3>", f"<p>{escape(_about(run, results))}</p>"]
    if blocks:
        kinds = (grafted, joined)
        rows = [[name, *(as_percent(number(k.get(name))) for k in kinds)] for name in blocks]
        rows.append(["all, before they were joined", as_percent(number(results.get("untuned"))), ""])
        head = ("block that ends with", "alone in the teacher", "joined up to here")
        note = (
            f"Test accuracy; the teacher has {as_percent(number(results.get('teacher')))}. Nothing was "
            "chosen by it."
        )
        curve = figure(_curve(results, blocks), "Accuracy with each block of the student in it.")
        parts += [table(head, rows, note), '<div class="figures">', curve, "</div>"]
    for name, cost in as_mapping(results.get("adaptions")).items():
        channels, macs = (as_count(as_mapping(cost).get(key)) for key in ("channels", "macs"))
        side = "before" if as_mapping(cost).get("before") else "behind"
        start = f"A 1×1 convolution of {channels} channels stayed {side}"
        parts.append(f"<p>{escape(f'{start} {name}: {macs} MACs an image.')}</p>")
    return "\n".join(parts)


def against_shots(records: Sequence[RunRecord]) -> list[str]:
    """Draw the accuracy of each grafted block, and of the students, by images a class.

    A figure needs two numbers of images for one data set and teacher. Runs that differ in an argument
    of `SETTINGS` have their own lines; a point is the mean over seeds.
    """
    together: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        if record.system_results("netgraft"):
            data, teacher = (str(record.arguments.get(name)) for name in ("data", "teacher"))
            together.setdefault((data, teacher), []).append(record)
    drawn = []
    for (data, teacher), runs in together.items():
        lines = _by_shots(runs)
        if any(len(points) > 1 for points in lines.values()):
            text = (
                "Accuracy after each grafted block alone, and of the students, by images a class; "
                f"teacher {teacher}, tested on {data}."
            )
            drawn.append(figure(_against_shots(lines, _teacher(runs)), text))
    return drawn


def _against_shots(lines: Mapping[str, Mapping[float, list[float]]], teacher: float) -> str:
    ticks = sorted({shots for points in lines.values() for shots in points})
    names = [wrapped(name) for name in lines]
    rows = 1 + sum(name.count("\n") + 1 for name in names)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        if math.isfinite(teacher):
            axes.axhline(100 * teacher, color=GREY, ls="--", lw=1, label="teacher")
        for i, ((name, points), label) in enumerate(zip(lines.items(), names, strict=True)):
            xs = sorted(points)
            axes.plot(
                xs, [100 * statistics.fmean(points[x]) for x in xs],
                ":" if name.endswith(GRAFTED) else "-", marker=MARKERS[i % len(MARKERS)],
                color=OKABE_ITO[i % len(OKABE_ITO)], label=label,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="images a class", ylabel="test accuracy, %")
        figure.legend(loc="outside lower center", ncols=1)

    return svg(4.4, 2.8 + 0.21 * rows, paint)


def _by_shots(runs: Sequence[RunRecord]) -> dict[str, dict[float, list[float]]]:
    """Collect each line's finite accuracies by shots, under the line's name."""
    values = {name: {_plain(run.arguments.get(name)) for run in runs} for name in SETTINGS}
    lines: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        shots = number(run.arguments.get("shots"))
        settings = [_plain(run.arguments.get(name)) for name in SETTINGS if len(values[name]) > 1]
        grafted = as_mapping(run.system_results("netgraft").get("grafted"))
        measured = {f"{name}{GRAFTED}": value for name, value in grafted.items()}
        if run.rows:
            measured["student"] = run.score(run.rows[-1], "accuracy")
        for name, value in measured.items():
            if shots is not None and math.isfinite(finite(value)):
                line = lines.setdefault(" ".join(text for text in (*settings, name) if text), {})
                line.setdefault(shots, []).append(finite(value))
    return lines


def _plain(value: Any) -> str:
    """Write an argument's value for a name; empty for None."""
    blocks = isinstance(value, list | tuple)
    return " ".join(map(str, value)) if blocks else "" if value is None else str(value)


def _teacher(runs: Sequence[RunRecord]) -> float:
    """Give the accuracy of their teacher; NaN if no run has measured it."""
    accuracies = [finite(run.system_results("netgraft").get("teacher")) for run in runs]
    return statistics.fmean([x for x in accuracies if math.isfinite(x)] or [math.nan])


def _curve(results: Mapping[str, Any], blocks: Sequence[str]) -> str | None:
    kinds = (("grafted", "o", "alone"), ("joined", "s", "joined"))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        teacher = number(results.get("teacher"))
        if teacher is not None:
            axes.axhline(100 * teacher, color=GREY, ls="--", lw=1, label="teacher")
        for (kind, marker, label), colour in zip(kinds, OKABE_ITO, strict=False):
            values = as_mapping(results.get(kind))
            places = [i for i, name in enumerate(blocks) if name in values]
            axes.plot(
                places, [100 * finite(values[blocks[i]]) for i in places], marker=marker, color=colour,
                label=label,
            )  # fmt: skip
        axes.set_xticks(range(len(blocks)), [legend_text(name) for name in blocks])
        axes.set_ylabel("test accuracy, %")
        axes.grid(False, axis="x")
        figure.legend(loc="outside lower center", ncols=3)

    return svg(4.4, 3.2, paint)


def _blocks(results: Mapping[str, Any]) -> list[str]:
    """List the trained blocks, in order."""
    kinds = (as_mapping(results.get(kind)) for kind in ("grafted", "joined"))
    return list(dict.fromkeys(name for kind in kinds for name in kind))


def _about(run: RunRecord, results: Mapping[str, Any]) -> str:
    """Describe the images, and the blocks copied from the teacher."""
    teacher = run.arguments.get("teacher", "unknown")
    images = as_count(results.get("images"))
    copied = ", ".join(map(str, results.get("copied") or ())) or "none"
    shots = run.arguments.get("shots", ABSENT)
    source = f" of {run.unlabeled}" if run.unlabeled else ""
    return (
        f"Taught by {teacher} on {images} images{source} without labels ({shots} a class). Blocks "
        f"copied from the teacher: {copied}."
    )
