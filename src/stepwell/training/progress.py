"""Progress of a run on standard error: a bar, or one line per epoch without a terminal."""

import math
import os
from collections.abc import Mapping
from typing import Any

from rich import progress as rich
from rich.console import Console


class Progress:
    """A progress bar on standard error over all `total` steps of a phase, `epoch` in each epoch.

    The environment variable STEPWELL_QUIET hides it.
    """

    def __init__(self, phase: str, done: int, total: int, epoch: int, *, quiet: bool = False) -> None:
        self.console = _console(quiet)
        self.phase, self.epochs, self.steps = phase, math.ceil(total / epoch), epoch
        self.done = done
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

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Show the losses and accuracies of an epoch."""
        named = [n for n in line if n.startswith("val/") and n.endswith("accuracy")]
        parts = [f"loss {line['loss']:.3f}"]
        parts += [f"{name.split('/')[1]}: {100 * line[name]:.1f} %" for name in named]
        self._bar.update(self._task, description=self._title("  ".join(parts)))
        if not self.console.is_terminal:
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
