"""Progress of a run on standard error: a bar, or lines without a terminal."""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich import progress as rich
from rich.console import Console

from stepwell.measures import SCORES, duration

#: Seconds until the first line about steps, and between two of them, without a terminal.
FIRST, EVERY = 5.0, 30.0
#: Seconds between two lines about epochs, at least.
LINES = 1.0


class Progress:
    """A progress bar on standard error over all `total` steps of a phase, `epoch` in each epoch.

    Without a terminal it is a line per epoch (of short epochs, one a second), and between them a line
    with the time left, the first after a few seconds. The environment variable STEPWELL_QUIET hides it.

    Args:
        clock: gives seconds.
    """

    def __init__(
        self, phase: str, done: int, total: int, epoch: int, *, quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.console = _console(quiet)
        self.phase, self.epochs, self.steps = phase, math.ceil(total / epoch), epoch
        self.done, self.total, self.clock = done, total, clock
        self._first, self._begin, self._due = done, clock(), clock() + FIRST
        self._printed = -math.inf
        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=None),
            rich.MofNCompleteColumn(), rich.TimeElapsedColumn(), rich.TimeRemainingColumn(),
            console=self.console, disable=not self.console.is_terminal, expand=True,
        )  # fmt: skip
        self._task = self._bar.add_task(self._title(""), total=total, completed=done)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """Count one step."""
        self.done += 1
        self._bar.advance(self._task)
        now = self.clock()
        if now >= self._due and self.done < self.total and not self.console.is_terminal:
            self._due = now + EVERY
            left = (now - self._begin) / (self.done - self._first) * (self.total - self.done)
            text = f"{self.phase}: step {self.done:,} of {self.total:,}, about {duration(left)} left"
            self.console.print(text, highlight=False)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Show the losses of an epoch, and the accuracies, precisions or correlations."""
        named = [n for n in line if n.startswith("val/") and n.endswith(SCORES)]
        parts = [f"loss {line['loss']:.3f}"]
        for name in named:
            share = not name.endswith("pearson")
            value = f"{100 * line[name]:.1f} %" if share else f"{line[name]:.3f}"
            parts.append(f"{name.split('/')[1]}: {value}")
        self._bar.update(self._task, description=self._title("  ".join(parts)))
        now, last = self.clock(), line["epoch"] == self.epochs
        if not self.console.is_terminal and (last or now - self._printed >= LINES):
            self._printed = now
            start = f"{self.phase}: epoch {line['epoch']}/{self.epochs}"
            text = "  ".join([start, *parts, f"{line['seconds']:.0f} s"])
            self.console.print(text, highlight=False)

    def _title(self, news: str) -> str:
        epoch = min(self.epochs, self.done // self.steps + 1)
        return f"{self.phase} {epoch}/{self.epochs}  {news}"


def tell(text: str, *, quiet: bool = False) -> None:
    """Print a line on standard error about work outside of a phase; STEPWELL_QUIET hides it."""
    _console(quiet).print(text, highlight=False, markup=False, soft_wrap=True)


def _console(quiet: bool) -> Console:
    return Console(stderr=True, quiet=quiet or bool(os.environ.get("STEPWELL_QUIET")))
