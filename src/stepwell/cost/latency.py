"""Measured time."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor


class Latency(NamedTuple):
    """Milliseconds per call: the median, and the 10 % and 90 % quantiles as its spread."""

    ms: float
    low: float
    high: float


def measure_latencies(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = 0.5, warmup: int = 5,
    least: int = 10, rounds: int = 1,
) -> dict[str, Latency]:  # fmt: skip
    """Time calls in turns, each for about `seconds` and at least `least` times.

    Each of the `rounds` turns begins with a warm-up. Turns spread a temporary load of the machine over
    all calls. On a GPU a call must end with a synchronisation.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(1, rounds + 1):
        for name, call in calls.items():
            for _ in range(warmup):
                call()
            end = time.perf_counter() + seconds / rounds
            so_far = times[name]
            while len(so_far) * rounds < least * turn or (
                time.perf_counter() < end and len(so_far) < 10_000
            ):
                start = time.perf_counter()
                call()
                so_far.append(time.perf_counter() - start)
    middle_low_high = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
    columns = {name: torch.tensor(each, dtype=torch.float64) for name, each in times.items()}
    quantiles = {name: column.quantile(middle_low_high) for name, column in columns.items()}
    return {name: Latency(*(1000 * each).tolist()) for name, each in quantiles.items()}


def time_each(
    calls: Mapping[str, Callable[[Tensor], Tensor]], inputs: Sequence[Shaped[Tensor, "..."]], *,
    seconds: float = 2.0, warmup: int = 5, least: int = 10,
) -> dict[str, list[float]]:  # fmt: skip
    """Milliseconds of each call on each input, for calls whose time depends on the input.

    The calls take turns on each input, so a drift of the machine affects all. Timing ends with the last
    input, or after about `seconds` and at least `least` inputs.
    """
    for call in calls.values():
        for x in inputs[:warmup]:
            synchronised(call(x))
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for i, x in enumerate(inputs):
        if i >= least and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            synchronised(call(x))
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def mean_of_medians(times: Sequence[float], who: Sequence[int]) -> float:
    """The mean of the groups' median times, weighted by size; `who` gives the group of each time."""
    groups: dict[int, list[float]] = {}
    for ms, group in zip(times, who, strict=False):
        groups.setdefault(group, []).append(ms)
    return sum(len(g) * statistics.median(g) for g in groups.values()) / len(times)


def synchronised(output: Shaped[Tensor, "..."]) -> Tensor:
    """Wait for `output` on a GPU, whose calls return before the work is done, and return it."""
    if output.is_cuda:
        torch.cuda.synchronize(output.device)
    return output
