"""Counts of a server: metrics for Prometheus, and the last seconds for the page's chart."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from stepwell.serve.engine import Answer, Engine

#: Seconds of the chart.
SECONDS = 60
#: Bounds of the histogram of answer times, in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Live:
    """Counts of the last `SECONDS` seconds, by second; an observer of an engine."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: deque[tuple[int, list[float], Counter[str], Counter[str]]] = deque()

    def __call__(self, answer: Answer | None) -> None:
        """Note an answer, or a refusal."""
        with self._lock:
            ms, rows, counts = self._now()
            if answer is None:
                counts["refused"] += 1
                return
            ms.append(answer.ms)
            rows[answer.prediction.depth] += 1
            counts["late"] += answer.late

    def seconds(self) -> list[dict[str, Any]]:
        """Each second with requests, oldest first; "ago" is how many seconds it is past."""
        with self._lock:
            self._now()
            now = self._seconds[-1][0]
            return [
                {
                    "ago": now - second, "answers": len(ms), "rows": dict(rows),
                    "late": counts["late"], "refused": counts["refused"], "p99": _p99(ms),
                }
                for second, ms, rows, counts in self._seconds
                if ms or counts
            ]  # fmt: skip

    def _now(self) -> tuple[list[float], Counter[str], Counter[str]]:
        second = int(self._clock())
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append((second, [], Counter(), Counter()))
        while self._seconds[0][0] <= second - SECONDS:
            self._seconds.popleft()
        _, *current = self._seconds[-1]
        return tuple(current)  # type: ignore[return-value]


def _p99(ms: list[float]) -> float | None:
    return sorted(ms)[int(0.99 * (len(ms) - 1))] if ms else None


class Metrics:
    """Prometheus metrics of one engine; an observer of it."""

    def __init__(self, engine: Engine) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry}
        ProcessCollector(registry=self.registry)
        row = engine.served.row
        self.answers = Counter("stepwell_answers", f"Answers by {row}.", [row], **options)
        self.late = Counter("stepwell_late", "Answers after their deadline.", **options)
        self.refused = Counter("stepwell_refused", "Requests refused by 429.", **options)
        self.seconds = Histogram(
            "stepwell_answer_seconds", "Time from arrival to answer.", buckets=BUCKETS, **options
        )
        self.batch = Histogram(
            "stepwell_batch", "Inputs that ran together.", buckets=(1, 2, 4, 8, 16, 32, 64), **options
        )
        Gauge("stepwell_queue", "Requests that wait.", **options).set_function(engine.waiting)
        Gauge("stepwell_promise_seconds", "The promise.", **options).set(engine.promise_ms / 1000)
        expected = Gauge("stepwell_expected_seconds", f"Expected time of each {row}.", [row], **options)
        for name in engine.served.rows:
            expected.labels(name).set_function(partial(engine.table.seconds, name))
            self.answers.labels(name)

    def __call__(self, answer: Answer | None) -> None:
        """Count an answer, or a refusal."""
        if answer is None:
            self.refused.inc()
            return
        self.answers.labels(answer.prediction.depth).inc()
        self.seconds.observe(answer.ms / 1000)
        self.batch.observe(answer.batch)
        if answer.late:
            self.late.inc()

    def text(self) -> bytes:
        """The metrics as Prometheus reads them."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))
