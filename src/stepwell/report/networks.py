"""The page's section about pictures of complex networks: what decides, and what needs no picture."""

import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from stepwell.files import damaged, read_json
from stepwell.measures import share_interval
from stepwell.report.figures import Figure, svg
from stepwell.report.markup import as_decimal, as_percent, figure, table
from stepwell.report.run_record import RunRecord, as_mapping, finite, number

#: The file of the run with its examples.
FILE = "explained.json"
#: Percentile of the lit cells that gets full brightness.
BRIGHT = 95


def networks_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show baselines, pictures by class, filters, and the nodes that decide, with their edges."""
    results = run.system_results("cnc")
    baselines = {k: as_mapping(v) for k, v in as_mapping(results.get("baselines")).items()}
    if not baselines or not run.rows:
        return ""
    rows = [
        [name, *(as_percent(number(values.get(key))) for key in ("accuracy", "balanced_accuracy"))]
        for name, values in baselines.items()
    ]
    scores = [run.score(run.rows[-1], key) for key in ("accuracy", "balanced_accuracy")]
    rows.append(["the pictures", as_percent(scores[0]), as_percent(scores[1] or scores[0])])
    note = "Logistic regressions on a few numbers, with the same training and test networks."
    parts = [
        "<h3>Without a picture</h3>", table(("", "accuracy", "balanced"), rows, note),
        *_deletion(as_mapping(results.get("deletion"))),
    ]  # fmt: skip
    if (run.path / FILE).is_file():
        remedy = "train the run again"
        explained = read_json(run.path / FILE, remedy)
        try:
            parts += _what_decides(explained)
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # of another shape
            raise damaged(run.path / FILE, f"wrong content: {error}", remedy) from error
    return "\n".join(parts)


def _what_decides(explained: Mapping[str, Any]) -> list[str]:
    """Show the figures of explained.json."""
    means = f"The mean picture of each class{_colours(explained.get('channels') or ())}."
    return [
        "<h3>What decides</h3>", '<div class="figures">',
        figure(_means(as_mapping(explained.get("means"))), means),
        figure(_filters(explained.get("filters") or ()), "The filters of the first convolution."),
        *(figure(_example(entry), _caption(entry)) for entry in explained.get("examples") or ()),
        "</div>",
    ]  # fmt: skip


def _colours(channels: Sequence[str]) -> str:
    """Say which channel has which colour; older runs do not name them."""
    if len(channels) == 1:
        return f"; brightness shows {channels[0]}"
    named = zip(("red", "green", "blue"), channels, strict=False)
    words = ", ".join(f"{colour} shows {channel}" for colour, channel in named)
    return f": {words}, each brightened by itself" if words else ""


def _deletion(deletion: Mapping[str, Any]) -> list[str]:
    """Say what deleting the salient nodes changes, against others of equal degree."""
    if not number(deletion.get("n")) or "salient" not in deletion:
        return []
    salient, other = (as_decimal(number(deletion.get(k))) for k in ("salient", "equal degree"))
    text = (
        f"Without the most salient nodes, the margin of the predicted class falls by {salient} in the "
        f"mean over {deletion['n']} test networks; without as many nodes of equal degree, by {other}. "
        f"The first fall is the larger one in {as_percent(number(deletion.get('larger')))} of the "
        f"networks. {_verdict(number(deletion.get('larger')), int(finite(deletion['n'])))}"
    )
    return [f"<p>{escape(text)}</p>"]


def _verdict(larger: float | None, networks: int) -> str:
    """Say whether the salient nodes matter, by the share of the networks in which they matter more."""
    if larger is None:
        return ""
    low, high = share_interval(larger, networks)
    interval = f"(95 % interval of that share: {100 * low:.0f} to {100 * high:.0f} %)"
    if low > 0.5:
        return f"So the salient nodes matter more than their degrees explain {interval}."
    if high < 0.5:
        return f"So they matter less than others: do not trust the explanations below {interval}."
    return f"Whether they matter more than others is not decided {interval}."


def _caption(entry: Mapping[str, Any]) -> str:
    names = ", ".join(map(str, entry["nodes"][:5])) + ", …" * (len(entry["nodes"]) > 5)
    return (
        f"{entry['file']}, of class {entry['class']}, answered {entry['answer']}: its picture; the "
        "cells that speak for the answer (red) and against it (blue); the most salient nodes (named "
        f"{names}) and the edges to their neighbours."
    )


def _means(means: Mapping[str, Any]) -> str | None:
    return _row([(name, _bright(pixels)) for name, pixels in means.items()])


def _filters(filters: Sequence[Any]) -> str | None:
    kernels = np.array(filters)
    if kernels.ndim != 4:
        return None
    top = max(abs(kernels).max(), 1e-12)
    return _row([("", (kernel / top + 1) / 2) for kernel in kernels[:16]])


def _bright(pixels: Any) -> Any:
    """Scale each channel of a picture so that a few bright cells do not hide the others."""
    values = np.array(pixels, float)
    lit = np.where(values > 0, values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a channel without a bright cell
        top = np.nan_to_num(np.nanpercentile(lit, BRIGHT, (0, 1)), nan=1.0)
    return (255 * np.sqrt(np.clip(values / top, 0, 1))).astype(np.uint8)


def _row(pictures: Sequence[tuple[str, Any]]) -> str | None:
    """Draw pictures side by side, in rows of eight."""
    if not pictures:
        return None

    def paint(figure: Figure) -> None:
        columns = min(8, len(pictures))
        for i, (title, pixels) in enumerate(pictures):
            axes = figure.add_subplot(-(-len(pictures) // columns), columns, i + 1)
            axes.imshow(pixels, interpolation="nearest")
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()

    return svg(6.4, 1.0 + 1.0 * -(-len(pictures) // 8), paint)


def _example(entry: Mapping[str, Any]) -> str:
    """Draw a picture, its saliency, and the salient nodes with their edges."""
    pixels, cells = _bright(entry["pixels"]), np.array(entry["saliency"])
    nodes, edges = np.array(entry["cells"]).reshape(-1, 2), np.array(entry["edges"]).reshape(-1, 2, 2)

    def paint(figure: Figure) -> None:
        first, second, third = (figure.add_subplot(1, 3, i) for i in (1, 2, 3))
        first.imshow(pixels, interpolation="nearest")
        second.imshow(cells, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        third.imshow(255 - pixels // 3, interpolation="nearest")
        for (a, b), (c, d) in edges.tolist():
            third.plot([b, d], [a, c], color="#666666", linewidth=0.4)
        third.plot(nodes[:, 1], nodes[:, 0], "o", color="#D55E00", markersize=3)
        for axes in (first, second, third):
            axes.set_axis_off()

    return svg(6.4, 2.3, paint)
