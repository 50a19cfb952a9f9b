"""Columns of a study's tables of arms."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: Measures by name, of every arm by its name.
Arms = Mapping[str, Mapping[str, Any]]


class Column(NamedTuple):
    """One measure as a column.

    key: its name among an arm's measures.
    scale: factor of its values, such as 100 for percent.
    form: format of a number.
    """

    key: str
    title: str
    scale: float = 100.0
    form: str = ".2f"


def columns_by_depth(arms: Arms) -> list[Column]:
    """Accuracy, likelihood, calibration and agreement of every depth, and the processor's seconds."""
    kinds = (
        ("accuracy", 100.0, ".2f"), ("nll", 1.0, ".3f"), ("ece", 1.0, ".3f"),
        ("agreement", 100.0, ".1f"),
    )  # fmt: skip
    columns = [
        Column(f"{depth}/{kind}", f"{depth} {kind}", scale, form)
        for depth in depths_of(arms)
        for kind, scale, form in kinds
    ]
    return [*columns, Column("cpu_seconds", "seconds", 1.0, ".0f")]


def rows(arms: Arms, columns: Sequence[Column]) -> dict[str, Mapping[str, Any]]:
    """The arms that have any of the columns."""
    keys = {column.key for column in columns}
    return {name: measures for name, measures in arms.items() if keys & measures.keys()}


def depths_of(arms: Arms) -> list[str]:
    """The depths that any arm measured, shallow to deep."""
    depths = {name.split("/")[0] for arm in arms.values() for name in arm if name.endswith("/accuracy")}
    return sorted(depths, key=lambda depth: (len(depth), depth))
