"""Which measures of its arms a study shows, in the table and in the picture of its page."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: Measures by name, of every arm by its name.
Arms = Mapping[str, Mapping[str, Any]]


class Column(NamedTuple):
    """One measure: a column of the table, or a panel of the picture.

    key: its name among an arm's measures.
    title: what it is called there.
    scale: what its values are multiplied by, such as 100 for percent.
    form: how a number is written.
    unit: what is written on a panel's axis.
    """

    key: str
    title: str
    scale: float = 100.0
    form: str = ".2f"
    unit: str = "%"


def table_by_depth(arms: Arms) -> list[Column]:
    """Accuracy, likelihood, calibration and agreement of every depth, and the processor's seconds."""
    kinds = (
        ("accuracy", 100.0, ".2f"),
        ("nll", 1.0, ".3f"),
        ("ece", 1.0, ".3f"),
        ("agreement", 100.0, ".1f"),
    )
    columns = [
        Column(f"{depth}/{kind}", f"{depth} {kind}", scale, form)
        for depth in depths_of(arms)
        for kind, scale, form in kinds
    ]
    return [*columns, Column("cpu_seconds", "seconds", 1.0, ".0f")]


def panels_by_depth(arms: Arms) -> list[Column]:
    """The test accuracy of every depth."""
    return [
        Column(f"{depth}/accuracy", f"depth {depth}", unit="test accuracy, %")
        for depth in depths_of(arms)
    ]


def rows(arms: Arms, columns: Sequence[Column]) -> dict[str, Mapping[str, Any]]:
    """The arms that have any of the columns."""
    keys = {column.key for column in columns}
    return {name: measures for name, measures in arms.items() if keys & measures.keys()}


def depths_of(arms: Arms) -> list[str]:
    """The depths that any arm measured, shallow to deep."""
    found = {
        name.split("/")[0] for arm in arms.values() for name in arm if name.endswith("/accuracy")
    }
    return sorted(found, key=lambda depth: (len(depth), depth))
