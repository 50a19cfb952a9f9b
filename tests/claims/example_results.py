"""Results of a study that no training gave."""

from collections.abc import Collection
from itertools import count
from typing import Any


def distinct_results(
    arms: Collection[str], depths: Collection[str]
) -> dict[str, dict[int, dict[str, Any]]]:
    """One seed of every arm, with numbers that no other arm and no other depth has."""
    number = count(1)
    return {
        arm: {
            0: {
                "test": {f"{d}/accuracy": next(number) ** 0.5 / 100 for d in depths},
                "costs": {d: {"macs": next(number)} for d in depths},
                "seconds": 1.0,
                "cpu_seconds": next(number) ** 0.5,
            }
        }
        for arm in arms
    }
