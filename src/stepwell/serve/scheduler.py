"""The queue of a server: requests with deadlines, and the batch to run next. No clock, no threads."""

import math
from bisect import insort
from typing import Any, NamedTuple

import numpy as np

from stepwell.serve.controller import Controller

#: Requests that may wait.
QUEUE = 256
#: The rate of arrivals is a mean over about this many promises, and at least `RATE_SECONDS`.
RATE_PROMISES, RATE_SECONDS = 4, 0.5


class FullError(Exception):
    """The server cannot take another request now; `seconds` says when to try again, for Retry-After."""

    def __init__(self, wait: float) -> None:
        self.seconds = str(max(1, math.ceil(wait)))
        super().__init__(f"the server is busy: try again in {self.seconds} s")


class Job:
    """A request in the queue.

    input: as the network takes it. arrived, due: seconds of the clock. row: asked for by the request.
    top: number of classes to give. future: gets the answer (see `engine`).
    deadline: is `due`, until the request is late.
    """

    __slots__ = ("arrived", "deadline", "due", "future", "input", "row", "top")

    def __init__(
        self, input: Any, arrived: float, due: float, *, row: str | None = None, top: int = 1,
        future: Any = None,
    ) -> None:  # fmt: skip
        self.input, self.arrived, self.due, self.deadline = input, arrived, due, due
        self.row, self.top, self.future = row, top, future


class Batch(NamedTuple):
    """Jobs to run together, and the row that answers them."""

    row: str
    jobs: list[Job]


class Scheduler:
    """Requests by deadline. The earliest one is in the next batch.

    A request is first admitted, then added when its input is ready. If it can no longer be in time, it
    gets a new deadline once, as long from now as its first was from its arrival: it neither makes later
    ones late, nor waits for ever.

    Args:
        promise: seconds in which a request is answered.
        most: requests that may wait.
    """

    def __init__(self, controller: Controller, promise: float, *, most: int = QUEUE) -> None:
        self.controller, self.promise, self.most = controller, promise, most
        self.queue: list[Job] = []
        self.coming: list[str | None] = []  # the rows asked for by those admitted, and not yet added
        self._until: float | None = None  # when the running batch should end
        self._rate, self._last = 0.0, 0.0
        self._window = max(RATE_SECONDS, RATE_PROMISES * promise)

    def admit(self, due: float, now: float, row: str | None = None) -> None:
        """Let a request in; FullError if the queue is full, or if the request would surely be late.

        One that asks for a row counts as late if its batch would begin after `due`.
        """
        self._rate = self.rate(now) + 1 / self._window
        self._last = now
        wait = self._wait(now)
        if len(self.queue) + len(self.coming) >= self.most:
            raise FullError(wait)
        # an idle server takes a request whatever the table says, or it could not correct the table
        idle = not self.queue and not self.coming and self._until is None
        # a row that was asked for may take longer than the promise, but it does not wait longer
        late = now + wait - due - (0.0 if row is None else self._fastest)
        if late > 0 and not idle:
            raise FullError(late)
        self.coming.append(row)

    def withdraw(self, row: str | None = None) -> None:
        """Forget an admitted request that asked for a row, and whose input could not be read."""
        self.coming.remove(row)

    def forget(self, job: Job) -> None:
        """Take a request out of the queue, if it is there: nobody waits for its answer."""
        self.queue = [waiting for waiting in self.queue if waiting is not job]

    def add(self, job: Job) -> None:
        """Put an admitted request into the queue."""
        self.coming.remove(job.row)
        insort(self.queue, job, key=_deadline)

    def rate(self, now: float) -> float:
        """Requests per second that arrive, those refused included."""
        return self._rate * math.exp((self._last - now) / self._window)

    def next(self, now: float) -> Batch | None:
        """Take the next batch out of the queue; None if the queue is empty."""
        if not self.queue:
            return None
        self._postpone(now)
        row = self.queue[0].row
        same = [job for job in self.queue if job.row == row]
        if row is None:
            row, size = self._choose(same, now)
        else:
            left = same[0].deadline - now
            table = self.controller.table
            size = max((n for n in table.sizes(row) if table.bound(row, n) <= left), default=1)
        jobs = same[:size]
        chosen = set(map(id, jobs))
        self.queue = [job for job in self.queue if id(job) not in chosen]
        self._until = now + self.controller.table.seconds(row, len(jobs))
        return Batch(row, jobs)

    def _choose(self, jobs: list[Job], now: float) -> tuple[str, int]:
        """Row and size of a batch of requests that asked for no row."""
        asked = sum(self.controller.table.bound(job.row) for job in self.queue if job.row is not None)
        left = np.array([job.deadline - now - asked for job in jobs])
        whole = np.array([job.deadline - job.arrived for job in jobs])
        return self.controller.choose(left, whole, self.rate(now))

    def finished(self, row: str, size: int, seconds: float) -> None:
        """Correct the table of times by a batch that has run."""
        self.controller.table.correct(row, size, seconds)
        self.ended()

    def ended(self) -> None:
        """Note that no batch runs, however the last one ended."""
        self._until = None

    def _wait(self, now: float) -> float:
        """Seconds until another request would be answered by the fastest row."""
        control = self.controller
        rows = [*(job.row for job in self.queue), *self.coming]
        asked = sum(control.table.bound(row) for row in rows if row is not None)
        free = rows.count(None) + 1
        queue = max(self._fastest, free / control.capacity(control.fastest))
        # a batch that is overdue may take as long again
        running = 0.0 if self._until is None else abs(self._until - now)
        return running + asked + queue

    @property
    def _fastest(self) -> float:
        """A bound on the seconds of one input at the fastest row."""
        return self.controller.table.bound(self.controller.fastest)

    def _postpone(self, now: float) -> None:
        """Give requests that are too late a second deadline."""
        soonest = now + self.controller.table.seconds(self.controller.fastest)
        late = [job for job in self.queue if job.deadline < soonest and job.deadline == job.due]
        for job in late:
            job.deadline = now + job.due - job.arrived
        if late:
            self.queue.sort(key=_deadline)


def _deadline(job: Job) -> float:
    return job.deadline
