"""Times of every row and batch size: measured at the start, corrected by every batch that runs."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from stepwell.cost.latency import measure_latencies

#: Share of a new observation in the corrections: of the machine's pace, and of one row's time.
PACE, ROW = 0.2, 0.05
#: The bound on a time lies this many mean errors above it; the mean error is at least `LEAST`.
ERRORS, LEAST = 2.0, 0.03
#: A single batch counts as at most this many times slower or faster than expected.
OUTLIER = 4.0
#: Seconds to measure one row at one batch size, about.
SECONDS = 0.1


class LatencyTable:
    """Seconds of a batch by row and size.

    A batch corrects two factors: the machine's pace, which all rows share, and the factor of its own
    row. So a slower clock or a busy machine is known for rows that have not run for a while.

    Args:
        seconds: by row, then by batch size; sizes start at 1.

    Raises:
        ValueError: a row without a positive time at size 1.
    """

    def __init__(self, seconds: Mapping[str, Mapping[int, float]]) -> None:
        for row, times in seconds.items():
            if not (times.get(1, 0) > 0 and all(0 < t < math.inf for t in times.values())):
                raise ValueError(f"row {row!r} needs positive times, and one of a single input")
        self._sizes = {row: sorted(times) for row, times in seconds.items()}
        self._seconds = {row: [times[n] for n in self._sizes[row]] for row, times in seconds.items()}
        self._row_factors = dict.fromkeys(seconds, 1.0)
        self._pace = 1.0
        self._error = LEAST

    @property
    def rows(self) -> list[str]:
        """The rows, in the order they were given."""
        return [*self._sizes]

    def sizes(self, row: str) -> list[int]:
        """Measured batch sizes of a row, ascending."""
        return self._sizes[row]

    def seconds(self, row: str, size: int = 1) -> float:
        """The expected time of a batch; sizes between two measured ones are interpolated."""
        return self.measured(row, size) * self._row_factors[row] * self._pace

    def bound(self, row: str, size: int = 1) -> float:
        """The expected time plus a margin for its usual error."""
        return self.seconds(row, size) * (1 + ERRORS * self._error)

    def correct(self, row: str, size: int, seconds: float) -> None:
        """Correct the table by a batch that took `seconds`."""
        ratio = min(max(seconds / self.seconds(row, size), 1 / OUTLIER), OUTLIER)
        self._error += PACE * (max(abs(ratio - 1), LEAST) - self._error)
        self._pace *= ratio**PACE
        self._row_factors[row] *= ratio**ROW

    def measured(self, row: str, size: int = 1) -> float:
        """The time of a batch as it was measured at the start."""
        sizes, seconds = self._sizes[row], self._seconds[row]
        if size >= sizes[-1]:  # behind the largest, time grows with the size
            return seconds[-1] * size / sizes[-1]
        i = bisect_left(sizes, size)
        if sizes[i] == size:
            return seconds[i]
        share = (size - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
        return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])


def measure_table(
    run: Callable[[str, int], object], rows: Sequence[str], sizes: Sequence[int],
    longest: float = math.inf,
) -> LatencyTable:  # fmt: skip
    """Measure `run(row, size)` for every row and batch size.

    Sizes end where a batch takes more than `longest` seconds: it would never be run.
    """
    table: dict[str, dict[int, float]] = {}
    for row in rows:
        table[row] = {}
        for size in sizes:
            calls = {row: lambda row=row, size=size: run(row, size)}
            time = measure_latencies(calls, seconds=SECONDS, warmup=1, least=3)[row].ms / 1000
            if size > 1 and time > longest:
                break
            table[row][size] = time
    return LatencyTable(table)


def useful_sizes(most: int) -> list[int]:
    """Batch sizes to measure: powers of two below `most`, and `most`."""
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    return [*powers, most]
