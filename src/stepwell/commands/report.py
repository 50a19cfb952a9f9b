"""`stepwell report`."""

from pathlib import Path

from tyro.conf import Positional

from stepwell.commands.arguments import Json
from stepwell.console import print_json, say


def report(runs: Positional[tuple[Path, ...]], *, out: Path | None = None, json: Json = False) -> None:
    """Write a self-contained page about runs, with figures.

    Examples:
        stepwell report runs/digits
        stepwell report runs/a runs/b --out compare.html

    Args:
        runs: run directories.
        out: the page to write; by default report.html in the run's directory.
    """
    from stepwell.report import write_report

    if not runs:
        raise ValueError("name one run directory or more")
    if out is None and len(runs) > 1:
        raise ValueError("several runs need --out: the page to write")
    page = write_report(runs, out or runs[0] / "report.html")
    if json:
        print_json({"report": str(page)})
    else:
        say(f"wrote {page}")
