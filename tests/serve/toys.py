"""A network of the tests to serve: rows that sleep, and classify a number by its sign."""

import time
from collections.abc import Sequence
from typing import Any

from stepwell.nets.predictions import Prediction
from stepwell.serve.latencies import LatencyTable
from stepwell.serve.served import Served

#: Seconds of an input at each row, as the table says and as it takes.
ROWS = {"small": 0.002, "large": 0.010}


def read(content: bytes, name: str = "") -> float:
    try:
        return float(content)
    except ValueError:
        raise ValueError(f"{content[:10]!r} is no number") from None


class Toy:
    """Notes the batches that it runs; `hold` seconds are added to each."""

    def __init__(self, hold: float = 0.0) -> None:
        self.hold, self.batches = hold, list[tuple[str, int]]()

    def run(self, inputs: Sequence[float], row: str, top: int) -> list[Prediction]:
        self.batches.append((row, len(inputs)))
        time.sleep(ROWS[row] + self.hold)
        if any(x != x for x in inputs):
            raise RuntimeError("not a number")
        names = [("plus", "minus") if x >= 0 else ("minus", "plus") for x in inputs]
        return [Prediction(None, a, 0.9, depth=row, top=((a, 0.9), (b, 0.1))[:top]) for a, b in names]

    def served(self, **changes: Any) -> Served:
        return Served(tuple(ROWS), "large", read, self.run, 1.0, **changes)


def table() -> LatencyTable:
    return LatencyTable({row: dict.fromkeys((1, 2, 4, 8), t) for row, t in ROWS.items()})
