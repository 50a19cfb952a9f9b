"""A thread that answers requests in batches, at the row that keeps the promise."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from stepwell.nets.predictions import Prediction
from stepwell.serve.controller import HYSTERESIS, Controller, ladder_of
from stepwell.serve.latencies import LatencyTable, measure_table, useful_sizes
from stepwell.serve.scheduler import QUEUE, FullError, Job, Scheduler
from stepwell.serve.served import Served

#: Inputs that run together, at most.
BATCH = 16


class StoppedError(Exception):
    """The engine takes no more requests."""


class Answer(NamedTuple):
    """The answer to a request.

    row: that was run; `prediction.depth` may name the depth within it, of a cascade or a chooser.
    ms: milliseconds from arrival to answer. batch: inputs that ran together. late: after the deadline.
    """

    prediction: Prediction
    row: str
    ms: float
    batch: int
    late: bool


#: Is told of every answer, and of every refusal (None).
Observer = Callable[[Answer | None], object]


class Engine:
    """Answers requests to a network within a promised time, by going shallower.

    >>> with Engine(served, promise_ms=50) as engine:  # doctest: +SKIP
    ...     engine.submit(served.read(content)).result().prediction.label

    Args:
        served: the network, from the `serve` of its kind.
        promise_ms: milliseconds in which a request is answered.
        rows: the rows to choose from; by default those up to `served.default` that no faster one beats.
        table: times of the rows; measured now by default, which takes a few seconds.
        batch: inputs that run together, at most. queue: requests that may wait.
        hysteresis: see `Controller`.

    `beaten` names the rows that are not chosen from, because a faster one is clearly more accurate.

    Raises:
        ValueError: no such row, or the promise is shorter than the time of the fastest one.
    """

    def __init__(
        self, served: Served, promise_ms: float, *, rows: Sequence[str] = (), batch: int = BATCH,
        queue: int = QUEUE, hysteresis: float = HYSTERESIS, table: LatencyTable | None = None,
    ) -> None:  # fmt: skip
        for row in rows:
            check_row(served, row)
        self.served, self.promise_ms = served, promise_ms
        promise = promise_ms / 1000
        self.table = table or measure_table(self._try, served.rows, useful_sizes(batch), promise)
        ladder = sorted(rows, key=self.table.seconds) or ladder_of(
            self.table, served.default, served.about
        )
        fastest = self.table.seconds(ladder[0])
        if promise < fastest:
            raise ValueError(
                f"a promise of {promise_ms:g} ms cannot be kept: the fastest {served.row}, "
                f"{ladder[0]}, takes {1000 * fastest:.3g} ms here"
            )
        controller = Controller(self.table, ladder, hysteresis=hysteresis)
        self.scheduler = Scheduler(controller, promise, most=queue)
        most = self.table.seconds(ladder[-1])
        others = [row for row in served.rows if row not in ladder and self.table.seconds(row) < most]
        self.beaten = () if rows else tuple(others)
        self.observers: list[Observer] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def ladder(self) -> tuple[str, ...]:
        """The rows to choose from, fast to slow."""
        return self.scheduler.controller.ladder

    @property
    def ready(self) -> bool:
        """True while requests are taken."""
        return self._thread is not None and self._thread.is_alive() and not self._closing

    def start(self) -> None:
        """Start to answer."""
        self._thread = threading.Thread(target=self._work, name="stepwell-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer all accepted requests, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, input: Any, *, row: str | None = None, budget_ms: float | None = None, top: int = 1
    ) -> "Future[Answer]":
        """Take a request, and give its answer later.

        Args:
            input: from `served.read`.
            row: the row that must answer, however long it takes.
            budget_ms: milliseconds for this request, in place of the promise.
            top: number of most probable classes to give.

        Raises:
            FullError: the queue is full, or the request would surely be late.
            ValueError: no such row; the budget is shorter than the time of the fastest row.
            StoppedError: the engine is not running.
        """
        self.check(row, budget_ms)
        job = self.admit(row=row, budget_ms=budget_ms, top=top)
        job.input = input
        return self.add(job)

    def admit(self, *, row: str | None = None, budget_ms: float | None = None, top: int = 1) -> Job:
        """Let a request in whose input is not ready yet: `add` or `withdraw` it. Errors as `submit`."""
        now = time.monotonic()
        ms = self.promise_ms if budget_ms is None else budget_ms
        job = Job(None, now, now + ms / 1000, row=row, top=top, future=Future())
        with self._changed:
            if not self.ready:
                raise StoppedError("the server is stopping")
            try:
                self.scheduler.admit(job.due, now, row)
            except FullError:
                self._tell(None)
                raise
        return job

    def add(self, job: Job) -> "Future[Answer]":
        """Put an admitted request with its input into the queue, and give its answer later.

        A request whose future is cancelled leaves the queue.
        """
        future: Future[Answer] = job.future
        with self._changed:
            self.scheduler.add(job)
            self._changed.notify_all()
        future.add_done_callback(lambda done: self._forget(job) if done.cancelled() else None)
        return future

    def _forget(self, job: Job) -> None:
        with self._changed:
            self.scheduler.forget(job)

    def withdraw(self, job: Job) -> None:
        """Forget an admitted request."""
        with self._changed:
            self.scheduler.withdraw(job.row)
            self._changed.notify_all()

    def check(self, row: str | None = None, budget_ms: float | None = None) -> None:
        """Check what a request asks for; ValueError as for `submit`."""
        if row is not None:
            check_row(self.served, row)
        if budget_ms is None:
            return
        if not 0 < budget_ms < 1e9:
            raise ValueError(f"budget_ms {budget_ms:g}: must be above 0 and below 1e9")
        fastest = 1000 * self.table.measured(self.ladder[0])
        if row is None and budget_ms < fastest:
            raise ValueError(
                f"budget_ms {budget_ms:g} is too short: the fastest {self.served.row}, "
                f"{self.ladder[0]}, takes {fastest:.3g} ms"
            )

    def times(self) -> dict[str, float]:
        """Milliseconds of one input at each row, as corrected so far."""
        return {row: 1000 * self.table.seconds(row) for row in self.served.rows}

    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self.scheduler.queue)

    def _try(self, row: str, size: int) -> None:
        self.served.run([self.served.example] * size, row, 1)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (batch := self.scheduler.next(time.monotonic())):
                    if self._closing and not self.scheduler.coming:
                        return
                    self._changed.wait()
            # a cancelled request does not run
            jobs = [job for job in batch.jobs if job.future.set_running_or_notify_cancel()]
            self._answer_each(batch.row, jobs)
            with self._changed:
                self.scheduler.ended()

    def _answer_each(self, row: str, jobs: list[Job]) -> None:
        """Answer a batch; if it fails, each request alone, and who waits for one gets its error."""
        try:
            self._answer(row, jobs)
        except Exception as error:  # the thread must not end
            for job in [job for job in jobs if not job.future.done()]:
                if len(jobs) == 1:
                    job.future.set_exception(error)
                else:
                    self._answer_each(row, [job])

    def _answer(self, row: str, jobs: list[Job]) -> None:
        if not jobs:
            return
        start = time.monotonic()
        predictions = self.served.run([job.input for job in jobs], row, max(job.top for job in jobs))
        end = time.monotonic()
        with self._changed:
            self.scheduler.finished(row, len(jobs), end - start)
        for job, prediction in zip(jobs, predictions, strict=True):
            answer = Answer(
                prediction._replace(top=prediction.top[: job.top]), row,
                1000 * (end - job.arrived), len(jobs), end > job.due,
            )  # fmt: skip
            self._tell(answer)
            job.future.set_result(answer)

    def _tell(self, answer: Answer | None) -> None:
        for observer in self.observers:
            observer(answer)


def check_row(served: Served, row: str) -> None:
    """Raise ValueError for a row that a network lacks."""
    if row not in served.rows:
        raise ValueError(f"no {served.row} {row!r}; there are {', '.join(served.rows)}")


def describe(engine: Engine) -> dict[str, Any]:
    """Facts about a served network for programs: promise, rows with their times and costs."""
    served = engine.served
    known: Mapping[str, Mapping[str, Any]] = served.about
    names = ("macs", "params", "accuracy", "accuracy_on")
    times = engine.times()
    return {
        "takes": served.takes, "noun": served.noun, "row": served.row,
        "promise_ms": engine.promise_ms, "default": served.default, "ladder": list(engine.ladder),
        "rows": [
            {"name": row, "ms": times[row]}
            | {name: known[row][name] for name in names if name in known.get(row, {})}
            for row in served.rows
        ],
    }  # fmt: skip
