"""Numbers that claims are made of: of one seed, from the results of the arms."""

from collections.abc import Mapping
from typing import Any

from stepwell.claims.kit.study import Absent, Measure


def of_test(arm: str, key: str, scale: float = 1.0) -> Measure:
    """What an arm measured as `key`, times `scale`, such as 100 for percent."""
    return lambda results: scale * results[arm]["test"][key]


def of_test_if_any(arm: str, key: str, scale: float = 1.0) -> Measure:
    """As `of_test`, of what some data has none of: a claim about it is then left out."""

    def measure(results: Mapping[str, Mapping[str, Any]]) -> float:
        found: Mapping[str, float] = results[arm]["test"]
        if key not in found:
            raise Absent(key)
        return scale * found[key]

    return measure


def less(a: Measure, b: Measure) -> Measure:
    """The difference a - b."""
    return lambda results: a(results) - b(results)


def ratio(a: Measure, b: Measure) -> Measure:
    """The quotient a / b."""
    return lambda results: a(results) / b(results)


def least(measures: list[Measure]) -> Measure:
    """The least of several numbers."""
    return lambda results: min(m(results) for m in measures)


def greatest(measures: list[Measure]) -> Measure:
    """The greatest of several numbers."""
    return lambda results: max(m(results) for m in measures)
