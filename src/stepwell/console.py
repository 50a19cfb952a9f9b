"""Output of the command line: tables for a person, JSON for a machine, one line for an error."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import track as bar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from stepwell.measures import BUSY, MEASURES, Measure, big, duration, number_in, of_row

#: Control characters that a file's name or a class may hold.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: Width of output that is no terminal's, in characters: no table is wider.
WIDTH = 160
#: Seconds between two lines about progress, where there is no terminal for a bar.
EVERY = 30.0


def show(value: Any, *, style: str | None = None) -> None:
    """Print a table or a line as it is, as wide as the terminal; `WIDTH` in a file or a pipe."""
    _console().print(_plain(value) if isinstance(value, str) else value, style=style, highlight=False)


def _plain(text: str) -> Text:
    return Text(_escaped(text))


def _escaped(text: str) -> str:
    """Escape control characters, which could change the terminal, except for tabs and line ends."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def track(steps: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """Pass `steps` on, with a progress bar on standard error, or now and then a line in a file.

    STEPWELL_QUIET hides both.
    """
    console = _console(stderr=True)
    hidden = bool(os.environ.get("STEPWELL_QUIET"))
    if not (hidden or console.is_terminal):
        return _with_lines(steps, title, total)
    return bar(steps, title, total, console=console, transient=True, disable=hidden)


def _with_lines(steps: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    start = last = time.monotonic()
    for done, step in enumerate(steps, start=1):
        yield step
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            left = duration((now - start) * (total - done) / done)
            say(f"{title}: {done:,} of {total:,}, about {left} left")


def print_json(value: Any) -> None:
    """One JSON document on standard output; numbers that are not finite are null."""
    value = _finite(value)
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a file's name of other bytes, or a terminal of few characters
        text = json.dumps(value, indent=1, allow_nan=False)
    text = CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    sys.stdout.write(text + "\n")


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite, which JSON lacks, by None."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1
) -> Group:
    """A table whose first `words` columns are text and whose others are numbers, under its title."""
    made = Table(box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(_plain, row))
    # rich would wrap a table's own title at the table's width
    return Group(Text(_escaped(title), style="bold"), made)


def tree(title: str, branches: Mapping[str, Iterable[str]]) -> Tree:
    """A title, its branches, and the leaves of each."""
    made = Tree(_plain(title))
    for name, leaves in branches.items():
        branch = made.add(_plain(name))
        for leaf in leaves:
            branch.add(_plain(leaf))
    return made


def row_table(
    title: str, columns: Sequence[str], costs: Mapping[str, Mapping[str, Any]],
    test: Mapping[str, float] | None = None, *, row: str = "depth", noun: str = "image",
) -> Group:  # fmt: skip
    """A line for each row of a network (a depth, a choice), with its costs and test results.

    `columns` are keys of `MEASURES`; a column that some row lacks is left out. `noun` is a word for one
    input.
    """
    numbers = {name: {**cost, **of_row(test or {}, name)} for name, cost in costs.items()}
    known = [c for c in columns if all(c in values for values in numbers.values())]
    rows = [
        [name, *(written(MEASURES[c], values[c]) for c in known)] for name, values in numbers.items()
    ]
    return table(title, [row, *(MEASURES[c].of(noun) for c in known)], rows)


def written(measure: Measure, value: Any) -> str:
    """A measured value as the terminal shows it, with its unit where the title does not say it."""
    forms: dict[str, Callable[[Any], str]] = {
        "blocks": lambda counts: "-".join(map(str, counts)), "count": big, "bytes": size,
        "ms": "{:.2f}".format, "times": "{:.2f} ×".format,
    }  # fmt: skip
    if measure.unit in forms:
        return forms[measure.unit](value)
    return number_in(measure.unit, value, measure.digits) + " %" * (measure.unit == "percent")


def sized(unit: str, *values: float) -> list[str]:
    """Format numbers of one unit with the same number of decimals.

    Points and percent have two decimals. Other units have enough for three significant digits of the
    largest number.
    """
    largest = max(map(abs, values))
    decimals = 2
    if not unit.startswith(("points", "%")) and 0 < largest < math.inf:
        decimals = max(0, 2 - math.floor(math.log10(largest)))
    form = "z.2e" if decimals > 6 else f"z.{decimals}f"
    return [format(value, form) for value in values]


def say(text: str) -> None:
    """A line for the person, on standard error."""
    _console(stderr=True).print(_escaped(text), highlight=False, markup=False, soft_wrap=True)


def fail(message: str) -> None:
    """An error as one line; "error:" is red on a terminal."""
    line = Text.assemble(("error:", "bold red"), f" {_escaped(' '.join(message.split()))}")
    _console(stderr=True).print(line, highlight=False, soft_wrap=True)


def show_conditions(costs: Mapping[str, Mapping[str, Any]]) -> None:
    """Print how times were measured."""
    cost = next(iter(costs.values()))
    threads = f"{cost['threads']} thread{'s' * (cost['threads'] != 1)}"
    unsure = f"; {BUSY}" if any("unsure" in row for row in costs.values()) else ""
    show(f"ms: median at batch {cost['batch']} on {threads}{unsure}", style="bold" if unsure else "dim")


def size(count: int) -> str:
    """Bytes as a person reads them: 1.23 MiB, 15.4 KiB."""
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def show_claims(result: Mapping[str, Any]) -> None:
    """Print every claim of a study: its arms, paper, judged number, verdict and plan."""
    for claim in result["claims"]:
        rows = [
            [name, *sized(claim["unit"], m["mean"], m["std"]), str(m["n"])]
            for name, m in claim["measured"].items()
        ]
        show(table(claim["text"], ["arm", claim["unit"], "±", "seeds"], rows))
        difference = claim["difference"]
        ends = [] if difference["low"] is None else [difference["low"], difference["high"]]
        mean, *ends = sized(difference["unit"], difference["mean"], *ends)
        span = f" ({100 * difference['level']:.3g} %: {' to '.join(ends)})" if ends else ""
        judged = f"{mean} {difference['unit']}".strip()
        lines = f"paper: {claim['paper']}\nmeasured: {judged}{span}, margin {claim['margin']:g}: "
        note = f"\nnote: {claim['note']}" if claim["note"] else ""
        show(Text.assemble(lines, (claim["verdict"], "bold"), f"{_plan(claim)}{note}\n"))
    if count := sum(bool(claim["primary"]) for claim in result["not_run"]):
        note = "not run, as arms, seeds or measures are missing"
        show(f"{note}: {count} primary claims", style="dim")
    show(f"{big(result['seconds'])} s of training in all")


def _plan(claim: Mapping[str, Any]) -> str:
    """The seeds that would decide a claim that is not decided."""
    if claim["verdict"] != "not decided" or claim["planned"]["power"] is None:
        return ""
    seeds = claim["planned"]["to_decide"]
    count = f"{seeds} seeds" if seeds else "more seeds than a plan allows"
    return f"; {count} would decide with 80 % power, if the measured value is the true one"
