"""The page's part about grafting: accuracy after each block, and against the images a class."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from stepwell.report.figures import GREY, MARKERS, OKABE_ITO, legend_text, svg
from stepwell.report.markup import ABSENT, as_count, as_percent, figure, table
from stepwell.report.reading import RunRecord, as_mapping, finite, number

if TYPE_CHECKING:  # matplotlib takes longer to import than the rest of the page takes to write
    from matplotlib.figure import Figure


def grafting_section(run: RunRecord) -> str:
    """What each block does in the teacher; nothing where the run is of another recipe."""
    found = _found(run)
    if not found:
        return ""
    grafted, joined = (as_mapping(found.get(kind)) for kind in ("grafted", "joined"))
    blocks = _blocks(found)
    parts = ["<h3>Block by block</h3>", f"<p>{escape(_about(run, found))}</p>"]
    if blocks:
        rows = [
            [name, as_percent(number(grafted.get(name))), as_percent(number(joined.get(name)))]
            for name in blocks
        ]
        rows.append(["all, before they were joined", as_percent(number(found.get("untuned"))), ""])
        head = ("block that ends with", "alone in the teacher", "joined up to here")
        note = (
            f"Test accuracy; the teacher has {as_percent(number(found.get('teacher')))}. Nothing was "
            "chosen by it."
        )
        parts += [table(head, rows, note), '<div class="figures">']
        parts.append(
            figure(_curve(found, blocks), "Accuracy with each block of the student in it.")
        )
        parts.append("</div>")
    adaptions = as_mapping(found.get("adaptions"))
    for name, cost in adaptions.items():
        channels, macs = (as_count(as_mapping(cost).get(key)) for key in ("channels", "macs"))
        text = (
            f"A 1×1 convolution of {channels} channels stayed behind {name}: {macs} MACs an image."
        )
        parts.append(f"<p>{escape(text)}</p>")
    return "\n".join(parts)


def against_shots(records: Sequence[RunRecord]) -> str | None:
    """Accuracy of each grafted block, and of the students, by images a class; None below two."""
    lines: dict[str, list[tuple[float, float]]] = {}
    teachers = []
    for record in records:
        found, shots = _found(record), number(record.arguments.get("shots"))
        if not found or shots is None:
            continue
        teachers.append(finite(found.get("teacher")))
        for name, value in as_mapping(found.get("grafted")).items():
            lines.setdefault(f"{name} grafted", []).append((shots, finite(value)))
        for depth in record.depths[-1:]:
            score = finite(record.score(depth, "accuracy"))
            lines.setdefault("student", []).append((shots, score))
    if len({shots for points in lines.values() for shots, _ in points}) < 2:
        return None

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        axes.axhline(
            100 * sum(teachers) / len(teachers), color=GREY, ls="--", lw=1, label="teacher"
        )
        for i, (name, points) in enumerate(lines.items()):
            xs, ys = zip(*sorted(points), strict=True)
            dashes = "-" if name == "student" else ":"
            axes.plot(
                xs, [100 * y for y in ys], dashes, marker=MARKERS[i % len(MARKERS)],
                color=OKABE_ITO[i % len(OKABE_ITO)], label=legend_text(name),
            )  # fmt: skip
        ticks = sorted({shots for points in lines.values() for shots, _ in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="images a class", ylabel="test accuracy, %")
        figure.legend(loc="outside lower center", ncols=3)

    return svg(4.4, 3.4, paint)


def _curve(found: Mapping[str, Any], blocks: Sequence[str]) -> str | None:
    kinds = (("grafted", "o", "alone"), ("joined", "s", "joined"))

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot()
        teacher = number(found.get("teacher"))
        if teacher is not None:
            axes.axhline(100 * teacher, color=GREY, ls="--", lw=1, label="teacher")
        for (kind, marker, label), colour in zip(kinds, OKABE_ITO, strict=False):
            values = as_mapping(found.get(kind))
            at = [i for i, name in enumerate(blocks) if name in values]
            axes.plot(
                at, [100 * finite(values[blocks[i]]) for i in at], marker=marker, color=colour,
                label=label,
            )  # fmt: skip
        axes.set_xticks(range(len(blocks)), [legend_text(name) for name in blocks])
        axes.set_ylabel("test accuracy, %")
        axes.grid(False, axis="x")
        figure.legend(loc="outside lower center", ncols=3)

    return svg(4.4, 3.2, paint)


def _found(run: RunRecord) -> Mapping[str, Any]:
    return as_mapping(run.results.get("netgraft"))


def _blocks(found: Mapping[str, Any]) -> list[str]:
    """The blocks that trained, in order."""
    kinds = (as_mapping(found.get(kind)) for kind in ("grafted", "joined"))
    return list(dict.fromkeys(name for kind in kinds for name in kind))


def _about(run: RunRecord, found: Mapping[str, Any]) -> str:
    """The images, and what the student has of its teacher."""
    teacher = run.arguments.get("teacher", "unknown")
    images = as_count(found.get("images"))
    copied = ", ".join(map(str, found.get("copied") or ())) or "none"
    shots = run.arguments.get("shots", ABSENT)
    return (
        f"Taught by {teacher} on {images} images without labels ({shots} a class). Blocks copied from "
        f"the teacher: {copied}."
    )
