"""The end of a run, whatever its task: what it has written already, and the time it took."""

import contextlib
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from stepwell.results import read_results
from stepwell.training import Run

Net = TypeVar("Net", bound=nn.Module)


def finished(
    run: Run, load: Callable[[Path], Net], *, predictions: bool = True
) -> tuple[Net | None, dict[str, Any] | None]:
    """The network in a run's file, if it is whole; and the results, if the run is finished.

    A finished run has `predictions` in a file, unless its kind makes none.
    """
    net = results = None
    with contextlib.suppress(ValueError, FileNotFoundError):
        net = load(run.path / "net.safetensors")
    with contextlib.suppress(ValueError, FileNotFoundError):
        results = read_results(run.path)
    whole = net is not None and (not predictions or zipfile.is_zipfile(run.path / "predictions.npz"))
    return net, results if whole else None


def seconds_of(run: Run) -> dict[str, float]:
    """Seconds of all phases together: of the clock, and of the processor."""
    last = {line["phase"]: line for line in run.metrics()}
    return {n: sum(line[n] for line in last.values()) for n in ("seconds", "cpu_seconds")}


def spent(run: Run) -> dict[str, Any]:
    """Seconds of all phases together, and the date at which the run finished."""
    return seconds_of(run) | {"finished": time.strftime("%Y-%m-%d %H:%M:%S")}
