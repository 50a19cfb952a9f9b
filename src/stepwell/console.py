"""What the command line prints: tables for a person, JSON for a machine, one line for an error."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.control import escape_control_codes
from rich.progress import track as bar
from rich.table import Table
from rich.text import Text


def show(what: Any, *, style: str | None = None) -> None:
    """Print a table or a line on standard output, as wide as the terminal.

    Into a file or a pipe it is wide enough for every table. Lines are printed as they are: brackets in
    them are no markup.
    """
    _console().print(_plain(what) if isinstance(what, str) else what, style=style, highlight=False)


def _plain(text: str) -> Text:
    """A text in which nothing is markup, and nothing moves the cursor."""
    return Text(escape_control_codes(text))


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=120)


def track(steps: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """`steps`, with a bar on standard error and the time left; STEPWELL_QUIET hides it."""
    console = _console(stderr=True)
    hidden = bool(os.environ.get("STEPWELL_QUIET")) or not console.is_terminal
    return bar(steps, title, total, console=console, transient=True, disable=hidden)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1
) -> Table:
    """A table whose first `words` columns are text and whose others are numbers."""
    made = Table(title=_plain(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(_plain, row))
    return made


#: Columns of the table of depths: title, and how to write a depth's number.
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "blocks": ("blocks", lambda v: "-".join(str(b) for b in v)),
    "params": ("params", lambda v: big(v)),
    "macs": ("MACs", lambda v: big(v)),
    "accuracy": ("accuracy", lambda v: f"{100 * v:.2f} %"),
    "nll": ("NLL", lambda v: f"{v:.3f}"),
    "ece": ("ECE", lambda v: f"{v:.3f}"),
    "agreement": ("agreement", lambda v: f"{100 * v:.1f} %"),
    "negative_flips": ("made wrong", lambda v: f"{100 * v:.1f} %"),
    "positive_flips": ("made right", lambda v: f"{100 * v:.1f} %"),
    "peak_bytes": ("peak memory", lambda v: f"{v / 2**20:.2f} MiB"),
    "ms": ("ms per image", lambda v: f"{v:.2f}"),
    "ms_low": ("10 %", lambda v: f"{v:.2f}"),
    "ms_high": ("90 %", lambda v: f"{v:.2f}"),
}


def depth_table(
    title: str,
    columns: Sequence[str],
    costs: Mapping[str, Mapping[str, Any]],
    test: Mapping[str, float] | None = None,
    *,
    what: str = "depth",
) -> Table:
    """A row a depth, shallow to deep: the chosen `COLUMNS` of its costs and of its test results.

    Args:
        what: the rows are, where they are no depths.
    """
    numbers = {
        depth: dict(cost)
        | {
            name.removeprefix(f"{depth}/"): value
            for name, value in (test or {}).items()
            if name.startswith(f"{depth}/")
        }
        for depth, cost in costs.items()
    }
    shown = [c for c in columns if all(c in values for values in numbers.values())]
    rows = [
        [depth, *(COLUMNS[c][1](values[c]) for c in shown)] for depth, values in numbers.items()
    ]
    return table(title, [what, *(COLUMNS[c][0] for c in shown)], rows)


def big(number: float) -> str:
    """A large number with its unit: 1.23 M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number:.0f}"


def sized(unit: str, *values: float) -> list[str]:
    """Numbers of one unit that are read together, all with as many decimals.

    Points and percent have two; others as many as leave the largest three significant digits.
    """
    largest = max(map(abs, values))
    decimals = 2
    if not unit.startswith(("points", "%")) and 0 < largest < math.inf:
        decimals = max(0, 2 - math.floor(math.log10(largest)))
    form = "z.2e" if decimals > 6 else f"z.{decimals}f"
    return [format(value, form) for value in values]


def say(text: str) -> None:
    """A line for the person, on standard error."""
    _console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def fail(message: str) -> None:
    """An error as one line."""
    say(f"error: {' '.join(message.split())}")


def show_conditions(costs: Mapping[str, Mapping[str, Any]]) -> None:
    cost = next(iter(costs.values()))
    threads = f"{cost['threads']} thread{'s' * (cost['threads'] != 1)}"
    show(f"ms: median at batch {cost['batch']} on {threads}", style="dim")


def show_churn(churn: Mapping[str, float]) -> None:
    """The share of predictions that flip between each two depths; two alone show it as agreement."""
    pairs = {tuple(name.split("/churn/")): v for name, v in churn.items() if "/churn/" in name}
    depths = list(dict.fromkeys(d for pair in pairs for d in pair))
    if len(depths) < 3:
        return
    rows = [
        [a, *(f"{100 * pairs.get((a, b), pairs.get((b, a), 0.0)):.1f} %" for b in depths)]
        for a in depths
    ]
    show(table("predictions that flip between depths", ["depth", *depths], rows))


def show_cascade(found: Mapping[str, Any], test: Mapping[str, Any]) -> None:
    """A cascade's thresholds, and what it does on validation and on test images."""
    thresholds = [*(f"{t:.4f}" for t in found["thresholds"]), "the rest"]
    rows = [
        [depth, threshold, f"{100 * seen:.1f} %", f"{100 * tested:.1f} %"]
        for depth, threshold, seen, tested in zip(
            found["depths"], thresholds, found["shares"], test["shares"], strict=True
        )
    ]
    columns = ["depth", "answers from", "answered, validation", "answered, test"]
    show(table(f"cascade: {found['goal']}", columns, rows))
    sigma = (found["accuracy"] * (1 - found["accuracy"]) / found["images"]) ** 0.5
    for line in (
        f"accuracy on {found['images']} validation images, where the thresholds were set: "
        f"{100 * found['accuracy']:.2f} % (±{196 * sigma:.1f} points)",
        f"accuracy on {test['images']} test images: {100 * test['accuracy']:.2f} % "
        f"(full net: {100 * test['full_accuracy']:.2f} %)",
        f"mean MACs an image: {big(found['macs'])} on validation, {big(test['macs'])} on test "
        f"(full net: {big(test['full_macs'])})",
        f"mean ms, one image at a time: {test['ms']:.2f} (full net: {test['full_ms']:.2f})",
    ):
        show(line)


def show_classes(test: Mapping[str, float]) -> None:
    """Accuracy of each class, where classes are uneven enough for it to be measured."""
    found: dict[str, dict[str, float]] = {}
    for name, value in test.items():
        depth, _, rest = name.partition("/accuracy/")
        if rest:
            found.setdefault(rest, {})[depth] = value
    if found:
        depths = list(next(iter(found.values())))
        rows = [[c, *(f"{100 * v[d]:.1f} %" for d in depths)] for c, v in found.items()]
        show(table("accuracy by class (classes are uneven)", ["class", *depths], rows))


def show_export(title: str, result: Mapping[str, Any]) -> None:
    """Exported files: size, check and, where measured, accuracy and time."""
    rows = result["files"]
    checked = next(row["parity"] for row in rows if "parity" in row)
    columns = ["depth", "file", "size", "largest difference", "same class"]
    measured = any("accuracy" in row for row in rows)
    columns += ["accuracy", "agreement", "ms per image"] if measured else []
    cells = []
    for row in rows:
        parity = row.get("parity")
        cell = [row["depth"], row["file"], size(row["bytes"])]
        cell += (
            [f"{parity['difference']:.1e}", f"{100 * parity['same_class']:.0f} %"]
            if parity
            else ["", ""]
        )
        if measured:
            agreement = f"{100 * row['agreement']:.1f} %" if "agreement" in row else ""
            cell += [f"{100 * row['accuracy']:.2f} %", agreement, f"{row['ms']:.2f}"]
        cells.append(cell)
    show(table(title, columns, cells, words=2))
    show(f"checked on {checked['images']} {checked['part']} images", style="dim")
    if "weights" in result:
        weights = result["weights"]
        share = weights["bytes"] / weights["full_net_bytes"]
        show(
            f"{weights['file']}: {size(weights['bytes'])}, the weights of all depths "
            f"({share:.3f} × the full net's alone)",
            style="dim",
        )
    if measured:
        threads = result["threads"]
        show(
            f"ms: onnxruntime, median at batch 1 on {threads} thread{'s' * (threads != 1)}",
            style="dim",
        )


def show_delta(depth: str, beyond: str, delta: Mapping[str, Any], *, json: bool) -> None:
    """Sizes of a delta and of the files that it leads from and to."""
    if json:
        print_json({"depth": depth, "beyond": beyond} | {**delta, "path": str(delta["path"])})
        return
    names = {"base_bytes": f"depth {beyond}", "bytes": "delta", "whole_bytes": f"depth {depth}"}
    rows = [
        [name, size(delta[key]), f"{100 * delta[key] / delta['whole_bytes']:.1f} %"]
        for key, name in names.items()
    ]
    show(table(f"wrote {delta['path']}", ["weights", "size", f"of depth {depth}"], rows))


def size(count: int) -> str:
    """Bytes as a person reads them: 1.23 MiB, 15.4 KiB."""
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def show_claims(result: Mapping[str, Any]) -> None:
    """Print every claim of a study: its arms, the paper, the judged number, the verdict and the
    plan."""
    for claim in result["claims"]:
        rows = [
            [name, *sized(claim["unit"], m["mean"], m["std"]), str(m["n"])]
            for name, m in claim["measured"].items()
        ]
        show(table(claim["text"], ["arm", claim["unit"], "±", "seeds"], rows))
        d = claim["difference"]
        ends = [] if d["low"] is None else [d["low"], d["high"]]
        mean, *ends = sized(d["unit"], d["mean"], *ends)
        span = f" ({100 * d['level']:.3g} %: {' to '.join(ends)})" if ends else ""
        judged = f"{mean} {d['unit']}".strip()
        lines = f"paper: {claim['paper']}\nmeasured: {judged}{span}, margin {claim['margin']:g}: "
        note = f"\nnote: {claim['note']}" if claim["note"] else ""
        show(Text.assemble(lines, (claim["verdict"], "bold"), f"{_plan(claim)}{note}\n"))
    if missing := [claim for claim in result["not_run"] if claim["primary"]]:
        show(
            f"not run, as arms, seeds or measures are missing: {len(missing)} primary claims",
            style="dim",
        )
    show(f"{big(result['seconds'])} s of training in all")


def _plan(claim: Mapping[str, Any]) -> str:
    """The seeds that would decide a claim that is not decided."""
    if claim["verdict"] != "not decided" or claim["planned"]["power"] is None:
        return ""
    seeds = claim["planned"]["to_decide"]
    count = f"{seeds} seeds" if seeds else "more seeds than a plan allows"
    return f"; {count} would decide with 80 % power, if the measured value is the true one"
