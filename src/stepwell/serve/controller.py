"""The row that answers the next batch: the deepest one with which the whole queue is in time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from stepwell.measures import share_interval
from stepwell.nets.nested.budget import count_in
from stepwell.serve.latencies import LatencyTable

#: A share of each request's time that must be left before a deeper row is chosen.
HYSTERESIS = 0.2
Seconds = Float[np.ndarray, " requests"]


class Controller:
    """Chooses row and size of the next batch.

    A row is possible if the queue, run in equal batches at this row, is in time. A row deeper than the
    last one must also leave a share `hysteresis` of every request's time, and the next shallower row
    must keep up with the arrivals. If no row is possible, the fastest one answers.

    Args:
        ladder: the rows to choose from, fast to slow.

    Raises:
        ValueError: `ladder` is empty, or `hysteresis` is no share below 1.
    """

    def __init__(
        self, table: LatencyTable, ladder: Sequence[str], *, hysteresis: float = HYSTERESIS
    ) -> None:
        if not ladder:
            raise ValueError("there is no row to choose from")
        if not 0 <= hysteresis < 1:
            raise ValueError(f"hysteresis {hysteresis}: must be 0 or more and below 1")
        self.table, self.ladder, self.hysteresis = table, tuple(ladder), hysteresis
        self.row = self.ladder[-1]

    @property
    def fastest(self) -> str:
        """The row of the smallest time."""
        return self.ladder[0]

    def capacity(self, row: str) -> float:
        """Inputs per second of a row, in the best of its batch sizes."""
        return max(n / self.table.bound(row, n) for n in self.table.sizes(row))

    def choose(self, left: Seconds, whole: Seconds, rate: float = 0.0) -> tuple[str, int]:
        """Choose the row and the number of requests of the next batch.

        Args:
            left: seconds until each request's deadline, ascending; at least one.
            whole: seconds from each request's arrival to its deadline.
            rate: requests per second that arrive.
        """
        last = self.ladder.index(self.row)
        for i in range(len(self.ladder) - 1, -1, -1):
            deeper = i > last
            if deeper and i and rate > self.capacity(self.ladder[i - 1]):
                continue
            room = left - self.hysteresis * whole if deeper else left
            if size := self._size(self.ladder[i], room):
                self.row = self.ladder[i]
                return self.row, size
        self.row = self.fastest
        return self.row, self._least_late(left)

    def _size(self, row: str, room: Seconds) -> int:
        """The batch size of the least mean wait among those that are in time; 0 if there is none."""
        best, least = 0, np.inf
        for size, ends in self._plans(row, len(room)):
            if ends.mean() < least and bool((ends <= room).all()):
                best, least = size, float(ends.mean())
        return best

    def _least_late(self, left: Seconds) -> int:
        plans = self._plans(self.fastest, len(left))
        size, _ = max(plans, key=lambda plan: (int((plan[1] <= left).sum()), -plan[1].mean()))
        return size

    def _plans(self, row: str, count: int) -> list[tuple[int, Seconds]]:
        """For each possible batch size, the seconds after which each request of a queue is answered."""
        sizes = self.table.sizes(row)
        possible = {n for n in sizes if n < count} | {min(count, sizes[-1])}
        batches = np.arange(count)
        return [(n, (batches // n + 1) * self.table.bound(row, n)) for n in sorted(possible)]


def ladder_of(
    table: LatencyTable, default: str, about: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """The rows for a controller, fast to slow: the default row and all faster ones.

    A row is left out if a faster one is clearly more accurate: beyond the 95 % interval of the row's
    accuracy, by the number of inputs it was measured on.

    Args:
        about: of each row: "accuracy" and "accuracy_on" ("500 validation images"), where known.
    """
    by_time = sorted(table.rows, key=table.seconds)
    ladder: list[str] = []
    for row in by_time[: by_time.index(default) + 1]:
        known = about.get(row, {})
        if "accuracy" in known:
            count = count_in(str(known.get("accuracy_on", "")))
            high = share_interval(known["accuracy"], count)[1] if count else known["accuracy"]
            if any(about.get(other, {}).get("accuracy", 0.0) > high for other in ladder):
                continue
        ladder.append(row)
    return tuple(ladder)
