"""Numbers that claims compare, taken from the results of the arms at one seed, and kinds of claims."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepwell.claims.kit.study import Absent, Claim, Measure

#: The unit of claims about accuracies.
ACCURACY = "% accuracy"
#: A number with the name that pages show.
Named = tuple[str, Measure]


def of_test(arm: str, key: str, scale: float = 1.0) -> Measure:
    """The arm's measure `key`, times `scale`, such as 100 for percent."""
    return lambda results: scale * results[arm]["test"][key]


def of_test_if_any(arm: str, key: str, scale: float = 1.0) -> Measure:
    """As `of_test`, for a measure that some data lacks: claims about it are left out there."""

    def measure(results: Mapping[str, Mapping[str, Any]]) -> float:
        test: Mapping[str, float] = results[arm]["test"]
        if key not in test:
            raise Absent(key)
        return scale * test[key]

    return measure


def accuracy(arm: str, row: str) -> Measure:
    """Test accuracy of a depth, or another row of an arm's results, in percent."""
    return of_test(arm, f"{row}/accuracy", 100)


def correct(arm: str, row: str) -> Named:
    """`accuracy`, with the arm's name."""
    return arm, accuracy(arm, row)


def on_lines(points: Sequence[tuple[float, float]], x: float) -> float:
    """The height at x of straight lines between points, from left to right; beyond them, of the end."""
    xs, ys = (np.array(values) for values in zip(*points, strict=True))
    return float(np.interp(x, xs, ys))


def seconds(*arms: str) -> Measure:
    """Processor seconds of several arms together."""
    return lambda results: float(sum(results[arm]["cpu_seconds"] for arm in arms))


def alone(depth: str) -> str:
    """The arm that trains a network of one depth on labels, without anything else."""
    return f"{depth} alone"


def static_at(depths: Sequence[str], arm: str) -> Measure:
    """Accuracy in percent of networks alone at the mean MACs of an arm's choices.

    It lies on straight lines between these networks; beyond them it is that of the cheapest or
    costliest one.
    """
    return on_curve([(alone(d), d) for d in depths], arm)


def on_curve(rivals: Sequence[tuple[str, str]], arm: str) -> Measure:
    """The same of any arms, each at a row of its results."""
    macs = macs_of(arm, "chosen")

    def measure(results: Mapping[str, Mapping[str, Any]]) -> float:
        points = [(macs_of(*rival)(results), accuracy(*rival)(results)) for rival in rivals]
        return on_lines(sorted(points), macs(results))

    return measure


def macs_of(arm: str, row: str) -> Measure:
    """MACs of an input at a depth, or at another row of an arm's results."""
    return lambda results: float(results[arm]["costs"][row]["macs"])


def of_speed(arm: str, system: str, key: str, batch: int = 64) -> Measure:
    """An entry of the rows that `compare_speed` gave the arm, in batches of this size.

    Args:
        system: the key of results.json that has the rows under "speed".
        key: "chosen" or "fixed" (images a second), "speed_up" or "by_macs".
    """
    return lambda results: next(
        float(row[key]) for row in results[arm][system]["speed"] if row["batch"] == batch
    )


def less(a: Measure, b: Measure) -> Measure:
    """The difference a - b."""
    return lambda results: a(results) - b(results)


def least(measures: list[Measure]) -> Measure:
    """The least of several numbers."""
    return lambda results: min(m(results) for m in measures)


def greatest(measures: list[Measure]) -> Measure:
    """The greatest of several numbers."""
    return lambda results: max(m(results) for m in measures)


def more(
    id: str, text: str, paper: str, a: Named, b: Named, margin: float = 0.0, unit: str = "%",
    **options: Any,
) -> Claim:  # fmt: skip
    """A claim about the paired difference a - b.

    Args:
        options: further fields of `Claim`.
    """
    return Claim(id, text, paper, unit, dict([a, b]), less(a[1], b[1]), margin, **options)


def versus(
    id: str, text: str, paper: str, arm: str, rival: Measure, named: str, margin: float = 0.0,
    expected: float | None = None,
) -> Claim:  # fmt: skip
    """A claim that what an arm chooses is more accurate than a rival of this name."""
    ours = correct(arm, "chosen")
    return more(id, text, paper, ours, (named, rival), margin, ACCURACY, expected=expected)


def times(
    id: str, text: str, paper: str, unit: str, measured: Mapping[str, Measure], margin: float,
    **options: Any,
) -> Claim:  # fmt: skip
    """A claim about the ratio of the first two of the numbers `measured`."""
    first, second, *_ = measured.values()
    return Claim(id, text, paper, unit, measured, lambda results: first(results) / second(results),
                 margin, judged_in="×", **options)  # fmt: skip


def level(
    id: str, text: str, paper: str, number: Named, margin: float, unit: str = "%", **options: Any
) -> Claim:
    """A claim about one number, which no other is subtracted from."""
    return Claim(id, text, paper, unit, dict([number]), number[1], margin, judged_in=unit, **options)
