"""Arms that measure networks which other arms trained."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwell.files import config_of
from stepwell.measure.data_parts import Parts, parts_of
from stepwell.nets import NestedNet


class Clock:
    """The time since it was made, on the wall and of the processor."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def result(self, test: Mapping[str, float]) -> dict[str, Any]:
        """The result of an arm: its numbers under "test", and the seconds that they took."""
        wall, processor = self._start
        return {
            "test": dict(test),
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - processor,
        }


def validated_parts(net: NestedNet, file: Path, data: str) -> Parts:
    """The parts of the data as the run of `file` had them; ValueError without a validation part."""
    parts = parts_of(net, file, config_of(file, "train it again"), data)
    if parts.validation is None:
        raise ValueError(f"{file} has no validation part, which thresholds and prices are found on")
    return parts
