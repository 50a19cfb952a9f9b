"""Time by the clock."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Latency(NamedTuple):
    """Milliseconds a call: the median, and the 10 % and 90 % quantiles as its spread."""

    ms: float
    low: float
    high: float


def measure_latency(
    call: Callable[[], object], *, seconds: float = 0.5, warmup: int = 5, least: int = 10
) -> Latency:
    """Time `call` again and again for about `seconds`, after a warm-up, at least `least` times.

    On a GPU `call` must end with a synchronisation.
    """
    for _ in range(warmup):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < end and len(times) < 10_000):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    low, middle, high = torch.tensor(times, dtype=torch.float64).quantile(
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    )
    return Latency(*(1000 * float(t) for t in (middle, low, high)))
