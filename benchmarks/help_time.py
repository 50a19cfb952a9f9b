"""Seconds of the process `stepwell --help`, and of a recipe's help from the cache."""

import statistics
import subprocess
import sys
from typing import Any

from benchmarks.timing import side_by_side


def measure() -> dict[str, Any]:
    """Seconds of the process, beside a Python that starts and does nothing."""

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    calls = {
        "stepwell --help": lambda: run("-m", "stepwell", "--help"),
        "stepwell train bert --help": lambda: run("-m", "stepwell", "train", "bert", "--help"),
        "stepwell list": lambda: run("-m", "stepwell", "list"),
        "python -c pass": lambda: run("-c", "pass"),
    }
    calls["stepwell train bert --help"]()  # once for a version of the library
    times = side_by_side(calls, rounds=15)
    return {
        name: {"median s": statistics.median(t), "min s": min(t), "max s": max(t)}
        for name, t in times.items()
    } | {"goal s": 0.5}
