"""Numbers that claims are made of: of one seed, from the results of the arms."""

from stepwell.claims.study import Measure


def of_test(arm: str, key: str, scale: float = 1.0) -> Measure:
    """What an arm measured as `key`, times `scale`, such as 100 for percent."""
    return lambda results: scale * results[arm]["test"][key]


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
