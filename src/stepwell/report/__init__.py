"""One self-contained page about finished runs: `stepwell report`."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import stepwell.report.figures as figures
from stepwell.files import write_whole
from stepwell.measures import MEASURES
from stepwell.report.markup import ABSENT, Html, table, warning, written
from stepwell.report.run_record import RunRecord, read_run
from stepwell.report.sections import cost_pair, run_section
from stepwell.report.systems import comparisons

__all__ = ["write_report"]

#: Measures of the table that compares runs.
COMPARED = ("ms", "macs")


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one HTML page about the run directories `runs` to `out`, and return `out`.

    The page needs no other file and no network: style and pictures are inside it. Several runs are
    compared first. `out` is replaced in one step, so a reader never sees half a page.

    Raises:
        ValueError: no run is given; one of them is no run directory, is not finished or holds a
            damaged file; or `out` is a folder.
    """
    if not runs:
        raise ValueError("no run to report on: give one or several run directories")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; give a file name, such as {out / 'report.html'}")
    if out.is_file() and out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out} exists and is no page (.html): name another file, or remove it")
    records = [read_run(path, name) for path, name in zip(runs, _names(runs), strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    # A file name may hold bytes that are no UTF-8; Python keeps them as lone surrogates.
    write_whole(out, _page(records).encode("utf-8", errors="replace"))
    return out


def _names(runs: Sequence[Path]) -> list[str]:
    """Name the runs by their folders, or by their paths if folders have the same name."""
    short = [path.resolve().name for path in runs]
    return short if len(set(short)) == len(short) else [str(path) for path in runs]


def _page(records: Sequence[RunRecord]) -> str:
    colours = figures.row_colours(records)
    title = "Stepwell report: " + ", ".join(record.name for record in records)
    parts = [_comparison(records, colours)] if len(records) > 1 else []
    parts += [run_section(record, f"run-{i}", colours) for i, record in enumerate(records, start=1)]
    # The page's policy has the browser enforce its promise: it fetches nothing and runs nothing.
    shell, style = (
        files(__name__).joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css")
    )
    return Template(shell).substitute(title=escape(title), style=style, sections="\n".join(parts))


def _comparison(records: Sequence[RunRecord], colours: Mapping[str, str]) -> str:
    """Compare several runs: one table, one figure, and reasons against the comparison."""
    rows: list[list[str]] = []
    scores = list(dict.fromkeys(record.measure for record in records))
    compared = [*scores, *COMPARED]
    nouns = {record.noun for record in records}
    noun = nouns.pop() if len(nouns) == 1 else "input"
    for i, record in enumerate(records, start=1):
        name: str = Html(f'<a href="#run-{i}">{escape(record.name)}</a>')
        seed = ABSENT if record.seed is None else str(record.seed)
        about = [record.recipe, str(record.data.get("name", ABSENT)), seed]
        for row in record.rows:
            values = {score: record.score(row, score) for score in scores} | {**record.cost(row)}
            numbers = [written(MEASURES[key], values.get(key)) for key in compared]
            rows.append([name, row, *numbers, *about])
            name, about = "", ["", "", ""]  # the run is described once, at its first row
    words = dict.fromkeys(record.row for record in records if record.rows)
    titles = [MEASURES[key].of(noun) for key in compared]
    head = ("run", " or ".join(words), *titles, "recipe", "data", "seed")
    parts = ["<section><h2>Comparison</h2>", *_unlike(records), table(head, rows, words=2)]
    parts += [cost_pair(records, colours), '<div class="figures">', *comparisons(records)]
    return "\n".join([*parts, "</div></section>"])


def _unlike(records: Sequence[RunRecord]) -> list[str]:
    data = {(r.data.get("name"), r.data.get("fingerprint"), r.examples) for r in records}
    rows = [(r.config.get("device"), r.cost(d)) for r in records for d in r.rows]
    places = {(device, cost.get("threads"), cost.get("batch")) for device, cost in rows}
    notes = {
        "tested on different data: their accuracies": data,
        "timed with different devices, threads or batches: their times": places,
    }
    unlike = [note for note, kinds in notes.items() if len(kinds) > 1]
    return [warning(f"These runs were {note} do not compare.") for note in unlike]
