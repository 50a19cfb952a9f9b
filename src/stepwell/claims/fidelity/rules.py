"""Measures of fidelity that claims compare: of one arm, and of several."""

from collections.abc import Callable
from typing import Any

from stepwell.claims.kit import measures
from stepwell.claims.kit.measures import least, less, of_test
from stepwell.claims.kit.study import Claim, Measure

#: A measure of an arm, by its name.
Of = Callable[[str], Measure]


def agreement(arm: str, images: str = "test") -> Measure:
    """Top-1 agreement of an arm's student with its teacher in percent."""
    return of_test(arm, f"{images}/agreement", 100)


def accuracy(arm: str, whose: str = "") -> Measure:
    """Test accuracy of an arm's student, or of its teacher, in percent."""
    return of_test(arm, f"test/{whose}accuracy", 100)


def transfer(arm: str) -> Measure:
    """Test agreement minus the control's, in points."""
    return of_test(arm, "test/transfer", 100)


def minus(a: Measure) -> Measure:
    """The number's negative."""
    return lambda results: -a(results)


def each(of: Of, *arms: str) -> dict[str, Measure]:
    """One measure of several arms, by their names."""
    return {arm: of(arm) for arm in arms}


def seen(arm: str) -> Measure:
    """Agreement on the student's training images, augmented as it saw them."""
    return agreement(arm, "seen")


def more(
    id: str, text: str, paper: str, of: Of, a: str, b: str, margin: float = 0.0, **options: Any
) -> Claim:
    """A claim about the difference of one measure between two arms."""
    return measures.more(id, text, paper, (a, of(a)), (b, of(b)), margin, **options)


def points(
    id: str,
    text: str,
    paper: str,
    measured: dict[str, Measure],
    judged: Measure,
    margin: float,
    unit: str = "%",
    **options: Any,
) -> Claim:
    """A claim about a number of points; `options` are further fields of `Claim`."""
    return Claim(id, text, paper, unit, measured, judged, margin, **options)


def up_and_down(a: str, b: str, up: bool) -> tuple[dict[str, Measure], Measure]:
    """Agreement and accuracy of two arms, and the lesser of two gains of `a` over `b`.

    Args:
        up: the second gain is in accuracy; else it is the loss in accuracy.
    """
    measured = {f"{arm}: {n}": of(arm) for arm in (a, b)
                for n, of in (("agreement", agreement), ("accuracy", accuracy))}  # fmt: skip
    gain = less(accuracy(a), accuracy(b))
    closer = less(agreement(a), agreement(b))
    return measured, least([closer, gain if up else minus(gain)])


def ece(arm: str) -> Measure:
    """Expected calibration error of an arm's student on test images."""
    return of_test(arm, "test/ece")


def of_most_faithful(*arms: str) -> Measure:
    """Calibration error of the student that agrees most with its teacher, minus the others' least."""

    def measure(results: Any) -> float:
        best = max(arms, key=lambda arm: agreement(arm)(results))
        return ece(best)(results) - min(ece(arm)(results) for arm in arms if arm != best)

    return measure
