"""A server on a simulated clock: the real queue and controller, and batches of known times."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from stepwell.serve.controller import Controller
from stepwell.serve.latencies import LatencyTable
from stepwell.serve.scheduler import FullError, Job, Scheduler


class Answer(NamedTuple):
    """One request: the row that answered it ("" if it was refused), and seconds until then."""

    arrived: float
    row: str
    seconds: float


def bursts(
    calm: float, busy: float, *, seconds: float, every: float = 20.0, share: float = 0.3, seed: int = 0
) -> list[float]:
    """Times of arrivals, a Poisson process whose rate jumps from `calm` to `busy` and back.

    Args:
        calm, busy: requests per second.
        seconds: length of the trace.
        every: seconds from burst to burst; a burst takes the `share` of it.
    """
    rng, now, arrivals = np.random.default_rng(seed), 0.0, []
    while now < seconds:
        now += rng.exponential(1 / busy)
        in_burst = now % every >= (1 - share) * every
        if in_burst or rng.random() < calm / busy:
            arrivals.append(now)
    return arrivals


def simulate(
    scheduler: Scheduler, arrivals: Sequence[float], took: Callable[[str, int, float], float],
    *, budget: float | None = None,
) -> list[Answer]:  # fmt: skip
    """Run a trace through a scheduler; `took(row, size, now)` gives the seconds of a batch.

    Args:
        budget: seconds of each request; by default the scheduler's promise.
    """
    budget = scheduler.promise if budget is None else budget
    answers: list[Answer] = []
    now, waiting = 0.0, [*arrivals[::-1]]

    def arrive() -> None:
        moment = waiting.pop()
        try:
            scheduler.admit(moment + budget, moment)
        except FullError:
            answers.append(Answer(moment, "", np.inf))
        else:
            scheduler.add(Job(None, moment, moment + budget))

    while waiting or scheduler.queue:
        if not scheduler.queue:
            now = max(now, waiting[-1])
            arrive()
            continue
        batch = scheduler.next(now)
        assert batch is not None
        seconds = took(batch.row, len(batch.jobs), now)
        while waiting and waiting[-1] <= now + seconds:
            arrive()
        now += seconds
        scheduler.finished(batch.row, len(batch.jobs), seconds)
        answers += [Answer(job.arrived, batch.row, now - job.arrived) for job in batch.jobs]
    return answers


def scheduler_of(
    table: Mapping[str, Mapping[int, float]], promise: float, *, ladder: Sequence[str] = (),
    hysteresis: float = 0.1, most: int = 256,
) -> Scheduler:  # fmt: skip
    """A scheduler for rows of these seconds, fast to slow; `ladder` are some of them."""
    controller = Controller(LatencyTable(table), ladder or [*table], hysteresis=hysteresis)
    return Scheduler(controller, promise, most=most)


def summary(answers: Sequence[Answer], promise: float) -> dict[str, float]:
    """Shares of requests: in time, refused, and of each row among the answers; changes of row."""
    rows = [a.row for a in answers if a.row]
    share = {row: rows.count(row) / len(rows) for row in sorted(set(rows))}
    seconds = np.array([a.seconds for a in answers if a.row])
    return {
        "in time": sum(a.seconds <= promise for a in answers) / len(answers),
        "refused": 1 - len(rows) / len(answers),
        "p50": float(np.quantile(seconds, 0.5)), "p99": float(np.quantile(seconds, 0.99)),
        "changes": sum(a != b for a, b in pairwise(rows)) / len(rows),
        **share,
    }  # fmt: skip
