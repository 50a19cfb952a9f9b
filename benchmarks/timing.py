"""Timing side by side, so that a machine that drifts drifts for all."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


def side_by_side(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call in each round; within a round every call runs once, in turn.

    Args:
        clock: `time.process_time` counts the processor's time, which a busy machine disturbs less.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warmup + rounds):
        for name, call in calls.items():
            start = clock()
            call()
            if i >= warmup:
                times[name].append(clock() - start)
    return times


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Run torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ratio(times: Mapping[str, list[float]], a: str, b: str) -> dict[str, float]:
    """The ratio a / b, round by round: median, least and greatest."""
    ratios = [x / y for x, y in zip(times[a], times[b], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
