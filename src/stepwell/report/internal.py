"""The page's section about a shallow text encoder and its teacher: layers, answers, attention maps."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.colours import GREY, OKABE_ITO
from stepwell.measures import BUSY, share_interval
from stepwell.report.figures import Figure, legend_text, svg
from stepwell.report.markup import ABSENT, as_decimal, as_percent, figure, table
from stepwell.report.run_record import RunRecord, as_mapping, finite, number, read_arrays
from stepwell.results import MAPS

#: The colour and the marker of the teacher.
TEACHER = {"color": "#222222", "marker": "s"}
#: Distances by layer, by their key in the results.
DISTANCES = {"attention_kl": "attention, KL in nats", "cls_cosine": "[CLS] state, 1 − cosine"}
#: Characters of a token on an axis, at most; tokens up to which the axes are written large.
LETTERS, FEW = 12, 16


def internal_section(run: RunRecord, colours: Mapping[str, str]) -> str:
    """Show how far student and teacher are apart; nothing for a run without layers to learn."""
    results = run.system_results("bert")
    layers = results.get("layers") or ()
    if not layers:
        return ""
    rows = [
        [str(i), str(source or ABSENT), *(as_decimal(_at(results, key, i)) for key in DISTANCES)]
        for i, source in enumerate(layers, 1)
    ]
    head = ("layer", "of the teacher", "attention, KL", "[CLS], 1 − cosine")
    note = "Means over the test texts, KL in nats; 0: equal. A dash: nothing to compare."
    parts = [
        "<h3>Teacher and student</h3>", f"<p>{escape(_answers(run, results))}</p>",
        table(head, rows, note), '<div class="figures">',
        figure(_by_layer(results, layers), "Distance from the teacher by layer of the student."),
        *_costs(run, results, colours), "</div>", *_maps(run, results, layers),
    ]  # fmt: skip
    return "\n".join(parts)


def _at(results: Mapping[str, Any], key: str, layer: int) -> float | None:
    values = results.get(key) or ()
    return number(values[layer - 1]) if layer <= len(values) else None


def _answers(run: RunRecord, results: Mapping[str, Any]) -> str:
    """Say how often the teacher is right, and how often the student answers as it does."""
    depth = as_mapping(results.get("teacher")).get("depth")
    deep = f"The teacher, with {depth} layers," if depth else "The teacher"
    accuracy = number(results.get("teacher_accuracy"))
    agreement = number(results.get("agreement"))
    if accuracy is None:  # numbers, not classes
        return f"{deep} and the student correlate with r = {as_decimal(agreement)} on the test texts."
    text = (
        f"{deep} has {as_percent(accuracy)} of the test texts right, the student "
        f"{as_percent(run.score(run.rows[-1], 'accuracy'))}. They agree on {as_percent(agreement)}"
    )
    among = number(results.get("agreement_on_errors"))
    if among is None:
        return f"{text}; the teacher makes no error."
    errors = f"{round((1 - accuracy) * run.examples):,} " if run.examples else ""
    return f"{text}, and on {as_percent(among)} of the {errors}texts where the teacher is wrong."


def _by_layer(results: Mapping[str, Any], layers: Sequence[int]) -> str | None:
    """Draw the divergence of attention and the distance of [CLS] states by layer."""
    values = {
        key: [finite(_at(results, key, i)) for i in range(1, len(layers) + 1)] for key in DISTANCES
    }
    values = {key: ys for key, ys in values.items() if np.isfinite(ys).any()}
    if not values:
        return None
    names = [f"{i} ← {source}" if source else str(i) for i, source in enumerate(layers, 1)]

    def paint(picture: Figure) -> None:
        panels = picture.subplots(len(values), sharex=True, squeeze=False)[:, 0]
        for axes, (key, ys), colour in zip(panels, values.items(), OKABE_ITO, strict=False):
            axes.bar(range(len(ys)), ys, 0.55, color=colour)
            axes.set_ylabel(DISTANCES[key].replace(", ", ",\n"))
            axes.grid(False, axis="x")
        panels[-1].set_xticks(range(len(names)), names)
        panels[-1].set_xlabel("student's layer ← teacher's")
        picture.align_ylabels(panels)

    return svg(4.4, 1.0 + 1.4 * len(values), paint)


def _costs(run: RunRecord, results: Mapping[str, Any], colours: Mapping[str, str]) -> Iterable[str]:
    """Draw accuracy against the number of layers and against time, the teacher beside the student."""
    teacher = as_mapping(results.get("teacher"))
    accuracy = finite(results.get("teacher_accuracy"))
    points = [
        (row, run.cost(row), finite(run.score(row, "accuracy")), {"color": colours.get(row, GREY)})
        for row in run.rows
    ]
    points.append(("teacher", teacher, accuracy, TEACHER))
    unsure = f" {BUSY[0].upper()}{BUSY[1:]}." if any("unsure" in cost for _, cost, *_ in points) else ""
    for key, title, caption in (
        ("depth", "layers", "Accuracy against depth; whiskers: 95% intervals."),
        ("ms", "ms per text", f"Accuracy against time; whiskers: 95% intervals.{unsure}"),
    ):
        xs = [
            finite(cost.get("ms")) if key == "ms" else float(sum(cost.get("blocks") or ()))
            for _, cost, *_ in points
        ]
        if np.isfinite([accuracy, *xs]).all():
            yield figure(_beside(run, points, xs, title), caption)


def _beside(run: RunRecord, points: Sequence[tuple[Any, ...]], xs: Sequence[float], title: str) -> str:
    """Draw the accuracy of rows and teacher at `xs`."""

    def paint(picture: Figure) -> None:
        axes = picture.add_subplot()
        for x, (name, _, value, look) in zip(xs, points, strict=True):
            ends = share_interval(value, run.examples) if run.examples else (value, value)
            error = [[100 * (value - ends[0])], [100 * (ends[1] - value)]]
            axes.errorbar(x, 100 * value, error, **{"marker": "o", **look}, ms=8, lw=1.4, capsize=3)
            label = name if name == "teacher" else f"{run.row} {name}"
            axes.annotate(
                legend_text(label), (x, 100 * value), (8, 5), textcoords="offset points", weight="bold",
                color="#222222",
            )  # fmt: skip
        axes.margins(x=0.3)
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))
        if title == "layers":
            axes.set_xticks(sorted({*xs}), [f"{x:.0f}" for x in sorted({*xs})])
        axes.set(xlabel=title, ylabel="test accuracy, %")

    return svg(4.4, 3.4, paint)


def _maps(run: RunRecord, results: Mapping[str, Any], layers: Sequence[int]) -> Iterable[str]:
    """Show attention maps of a few texts: those of the last layer, and the others folded."""
    file, examples = run.path / MAPS, results.get("examples") or ()
    if not file.is_file() or not examples:
        return
    arrays = read_arrays(file, "delete it to report without attention maps")
    pairs = [(i, source) for i, source in enumerate(layers, 1) if source]
    yield "<h3>Attention of teacher and student</h3>"
    yield (
        "<p>A row is a token, and its cells are the shares of its attention to the tokens of the "
        "columns: the mean over the heads of a layer. Stronger blue is more.</p>"
    )
    for index, example in enumerate(examples):
        tokens = [str(token) for token in example.get("tokens") or ()]
        maps = [arrays.get(f"{index}/{whose}", np.empty(0)) for whose in ("teacher", "student")]
        if not pairs or any(m.shape != (len(pairs), len(tokens), len(tokens)) for m in maps):
            continue
        answers = ", ".join(
            f"{whose}: {example.get(whose)}" for whose in ("truth", "teacher", "student")
        )
        cut = f"; the first {len(tokens)} tokens" if example.get("cut") else ""
        yield f"<h4>{escape(str(example.get('text')))}</h4><p>{escape(answers + cut)}</p>"
        tops = np.maximum(*(m.max((1, 2)) for m in maps))
        images = [
            [
                figure(
                    _map(stack[k], tokens, f"{whose}, layer {pair[1 - side]}", float(tops[k])),
                    f"Layer {pair[1 - side]} of the {whose}, mean over heads.",
                )
                for side, (whose, stack) in enumerate(zip(("teacher", "student"), maps, strict=True))
            ]
            for k, pair in enumerate(pairs)
        ]  # fmt: skip
        yield _side_by_side(images[-1:])
        if images[:-1]:
            yield f"<details><summary>The layers below</summary>{_side_by_side(images[:-1])}</details>"


def _side_by_side(pairs: Sequence[Sequence[str]]) -> str:
    return f'<div class="figures large">{"".join(image for pair in pairs for image in pair)}</div>'


def _map(shares: NDArray[np.float32], tokens: Sequence[str], title: str, top: float) -> str:
    """Draw the attention of each token (rows) to each token (columns), in colours up to `top`."""
    names = [
        legend_text(token if len(token) <= LETTERS else f"{token[: LETTERS - 1]}…") for token in tokens
    ]

    def paint(picture: Figure) -> None:
        from matplotlib.colors import PowerNorm

        axes = picture.add_subplot()
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, top))
        size = 9 if len(names) <= FEW else 7.5
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        axes.set_title(title, fontsize=10)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        bar = picture.colorbar(image, shrink=0.7)
        bar.outline.set_visible(False)

    return svg(4.8, 4.4, paint)
