"""Arms that measure networks which other arms trained."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepwell.data import Batches
from stepwell.data.tokens import TextBatches
from stepwell.files import config_of
from stepwell.measure.data_parts import Parts, parts_of
from stepwell.measure.text import KIND, load_text, text_parts
from stepwell.nets import NestedNet
from stepwell.nets.files.container import kind_of
from stepwell.nets.files.nested import load


class Clock:
    """The time since it was made, on the wall and of the processor, without its pauses."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what runs inside."""
        before, start = self._now(), self._start
        yield
        now = self._now()
        self._start = start[0] + now[0] - before[0], start[1] + now[1] - before[1]

    def result(self, test: Mapping[str, float]) -> dict[str, Any]:
        """The result of an arm: its numbers under "test", and the seconds that they took."""
        (wall, processor), now = self._start, self._now()
        return {"test": dict(test), "seconds": now[0] - wall, "cpu_seconds": now[1] - processor}


def validated_parts(net: NestedNet, file: Path, data: str) -> Parts:
    """The parts of the data as the run of `file` had them; ValueError without a validation part."""
    parts = parts_of(net, file, config_of(file, "train it again"), data)
    if parts.validation is None:
        raise ValueError(f"{file} has no validation part, to find thresholds and cost penalties on")
    return parts


def open_nested(
    file: Path, data: str
) -> tuple[NestedNet, Batches | TextBatches, Batches | TextBatches]:
    """The network of a run on images or texts in eval mode, and its validation and test part.

    ValueError without a validation part.
    """
    if kind_of(file) != KIND:
        net = load(file)
        images = validated_parts(net, file, data)
        assert images.validation is not None
        return net.eval(), images.validation, images.test
    text = load_text(file)
    texts = text_parts(text, file, config_of(file, "train it again"))
    if texts.validation is None:
        raise ValueError(f"{file} has no validation part, which thresholds are found on")
    return text.net.eval(), texts.validation, texts.test
