"""Measured time."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

#: The calmest turns of a call agree if their slowest median is at most this multiple of the fastest.
AGREE = 1.1
#: Least share of a typical call in which its thread must have a processor.
SERVED = 0.8
#: Longest time of a call, as a multiple of the planned one.
PATIENCE = 6
#: What the seconds of every timing are multiplied by.
SCALE = 1.0


class Latency(NamedTuple):
    """Milliseconds per call: the median, and the 10 % and 90 % quantiles as its spread.

    unsure: the machine was busy, so that a calm one may be much faster.
    """

    ms: float
    low: float
    high: float
    unsure: bool = False

    def row(self, batch: int = 1) -> dict[str, Any]:
        """Give the entries of a cost table, per example; "unsure" only if it is."""
        times = {"ms": self.ms / batch, "ms_low": self.low / batch, "ms_high": self.high / batch}
        return times | marked(self.unsure)


def marked(busy: bool) -> dict[str, bool]:
    """The entry "unsure" of results whose times are of a busy machine; none otherwise."""
    return {"unsure": True} if busy else {}


class Watch:
    """Time what runs in `with` blocks, and watch whether this thread had a processor meanwhile.

    times: seconds of each block.
    served: share of each block in which this thread ran.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.served: list[float] = []

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        wall, cpu = time.perf_counter() - self._start[0], time.thread_time() - self._start[1]
        self.times.append(wall)
        self.served.append(cpu / wall if wall > 0 else 1.0)

    @property
    def busy(self) -> bool:
        """True if even the typical block had to wait for a processor."""
        return statistics.median(self.served) < SERVED


def measure_latencies(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = 0.5, warmup: int = 5,
    least: int = 10, rounds: int = 1,
) -> dict[str, Latency]:  # fmt: skip
    """Time calls in turns, each for about `seconds` and at least `least` times.

    Turns spread a temporary load of the machine over all calls; each begins with a warm-up. After
    `rounds` turns, further ones follow until the `rounds` calmest turns of every call agree (the k-best
    scheme of Bryant & O'Hallaron, Computer Systems), for at most `PATIENCE` times as long. Only the
    calmest turns count, and in them the calls that had a processor. A time is unsure if these turns
    disagree, or if the typical call waited for a processor. On a GPU a call must end with a
    synchronisation.
    """
    turns: dict[str, list[Watch]] = {name: [] for name in calls}
    end = _until(PATIENCE * seconds * len(calls))
    for turn in itertools.count():
        agree = all(_agree(_calmest(watches, rounds)) for watches in turns.values() if turn)
        if turn >= rounds and (agree or time.perf_counter() > end):
            break
        for name, call in calls.items():
            turns[name].append(_turn(call, seconds / rounds, warmup, math.ceil(least / rounds)))
    return {name: _latency(_calmest(watches, rounds)) for name, watches in turns.items()}


def _until(seconds: float) -> float:
    """The clock's reading after these seconds."""
    return time.perf_counter() + SCALE * seconds


def _turn(call: Callable[[], object], seconds: float, warmup: int, least: int) -> Watch:
    end = _until(seconds)
    for _ in range(warmup):
        call()
        if time.perf_counter() > end:  # a slow call needs no more
            break
    watch = Watch()
    end = _until(seconds)
    while len(watch.times) < least or (time.perf_counter() < end and len(watch.times) < 10_000):
        with watch:
            call()
    return watch


def _calmest(turns: Sequence[Watch], count: int) -> list[Watch]:
    return sorted(turns, key=lambda turn: statistics.median(turn.times))[:count]


def _agree(turns: Sequence[Watch]) -> bool:
    medians = [statistics.median(turn.times) for turn in turns]
    return max(medians) <= AGREE * min(medians) and not any(turn.busy for turn in turns)


def _latency(turns: Sequence[Watch]) -> Latency:
    calls = [call for turn in turns for call in zip(turn.times, turn.served, strict=True)]
    # a call that had to wait tells of the other programs; without any other it must do
    undisturbed = [seconds for seconds, served in calls if served >= SERVED]
    times = torch.tensor(undisturbed or [seconds for seconds, _ in calls], dtype=torch.float64)
    quantiles = times.quantile(torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64))
    ms, low, high = (1000 * quantiles).tolist()
    return Latency(ms, low, high, unsure=not _agree(turns))


def time_each(
    calls: Mapping[str, Callable[[Tensor], Tensor]], inputs: Sequence[Shaped[Tensor, "..."]], *,
    seconds: float = 2.0, warmup: int = 5, least: int = 10,
) -> dict[str, Watch]:  # fmt: skip
    """Time each call on each input, for calls whose time depends on the input.

    The calls take turns on each input, so a drift of the machine affects all. Timing ends with the last
    input, or after about `seconds` and at least `least` inputs.
    """
    for call in calls.values():
        for x in inputs[:warmup]:
            synchronised(call(x))
    times = {name: Watch() for name in calls}
    end = _until(seconds)
    for i, x in enumerate(inputs):
        if i >= least and time.perf_counter() > end:
            break
        for name, call in calls.items():
            with times[name]:
                synchronised(call(x))
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
