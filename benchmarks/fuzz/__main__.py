"""`python -m benchmarks.fuzz [PART ...]`: run the fuzz, and write its table and what failed."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.__main__ import RESULTS, hardware
from benchmarks.fuzz import crafted, damaged, kills, lines, threads
from benchmarks.fuzz.process import warm
from benchmarks.fuzz.subjects import Subjects, make
from benchmarks.fuzz.tally import Tally

#: By part: its title, how often it tries, and its tries.
PARTS: dict[str, tuple[str, int, Callable[[Subjects, int], Iterator[Tally]]]] = {
    "damaged": ("Damaged files", 600, damaged.tries),
    "crafted": ("Crafted files with a right checksum", 400, crafted.tries),
    "lines": ("Command lines of nonsense", 500, lines.tries),
    "kills": ("Kills", 50, kills.tries),
    "threads": ("Threads", 10_000, threads.tries),
}
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: make fuzz -->", "<!-- end -->"


def run(parts: list[str], share: float, folder: Path) -> list[Tally]:
    """Run parts of the fuzz with a share of their tries; says each line as it comes."""
    warm()
    subjects = make(folder)
    tallies = []
    for part in parts:
        _, count, tries = PARTS[part]
        for tally in tries(subjects, max(1, round(count * share))):
            sys.stderr.write(f"{part}: {' | '.join(tally.row())}\n")
            for example in tally.examples:
                sys.stderr.write(f"    {example['fault']}: {example['about']}\n")
            tallies.append(tally)
    return tallies


def table(tallies: list[Tally], seconds: float) -> str:
    """The table in Markdown, and a line on how it came about."""
    rows = ["| what | tries | refused in one line | ended well | faults |", "|---|---|---|---|---|"]
    for part, (title, _, _) in PARTS.items():
        group = [tally for tally in tallies if tally.part == part]
        if group:
            rows.append(f"| **{title}** | **{sum(t.tries for t in group)}** | | | |")
            rows += [f"| {' | '.join(tally.row())} |" for tally in group]
    when = time.strftime("%Y-%m-%d")
    return "\n".join([*rows, "", f"Measured {when} on {hardware()}, in {seconds:.0f} s.", ""])


def main() -> None:
    """Run the fuzz from the command line; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--share", type=float, default=1.0, help="part of the tries to make")
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.name}")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"no part {min(unknown)!r}; there are {', '.join(PARTS)}")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tallies = run(arguments.parts or [*PARTS], arguments.share, Path(folder))
    text = table(tallies, time.monotonic() - begin)
    sys.stdout.write(text)
    if arguments.write:
        before, _, after = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{after.partition(END)[2]}", encoding="utf-8")
        faults = [e | {"part": t.part, "what": t.what} for t in tallies for e in t.examples]
        (RESULTS / "fuzz.json").write_text(json.dumps(faults, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(int(any(tally.faults for tally in tallies)))


if __name__ == "__main__":
    main()
