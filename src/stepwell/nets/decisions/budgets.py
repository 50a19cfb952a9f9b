"""Budgets of networks that decide: settings of one number, and their effect on validation images."""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from stepwell.measures import in_words


class Budget(NamedTuple):
    """A cost penalty (`price`), and its effect: mean MACs, accuracy, and shares of the choices.

    `shares` is empty in files of older versions, and for decisions that are not one of several choices.
    """

    price: float
    macs: float
    accuracy: float
    shares: tuple[float, ...] = ()

    def time(self, times: Sequence[float]) -> float:
        """Give the mean time of an image, from its `times` at each choice."""
        return sum(share * time for share, time in zip(self.shares, times, strict=True))


def best_budget(
    budgets: Sequence[Budget], *, ms: float | None = None, macs: float | None = None,
    accuracy: float | None = None, times: Sequence[float] = (),
) -> Budget:  # fmt: skip
    """Select the cheapest budget with at least this `accuracy`, else the most accurate within limits.

    Args:
        budgets: cheapest first.
        ms: mean milliseconds of an image, at most, by `times`.
        macs: mean multiply-accumulates of an image, at most.
        accuracy: share of right answers, at least.
        times: milliseconds of an image at each choice; `ms` needs them.

    Raises:
        ValueError: no limit, or none fits; the message names the reachable ones.
    """
    if ms is None and macs is None and accuracy is None:
        raise ValueError("give a budget: ms, macs, accuracy or some of them")
    if not budgets:
        raise ValueError(
            "this network knows no budgets: it never chose, had no validation images, or was saved by "
            "an older version; train it again with --val-fraction above 0"
        )
    if ms is not None and not all(b.shares for b in budgets):
        raise ValueError(
            "this file was saved by a version without latency budgets: name macs or accuracy, or "
            "train the network again"
        )
    most, least = inf if macs is None else macs, accuracy or 0.0
    fitting = [b for b in budgets if b.macs <= most and b.accuracy >= least]
    if ms is not None:
        fitting = [b for b in fitting if b.time(times) <= ms]
    if not fitting:
        goals = {"ms": ms, "macs": macs, "accuracy": accuracy}
        asked = " with ".join(in_words(n, v) for n, v in goals.items() if v is not None)
        low, high = (
            f"{in_words('macs', b.macs)}"
            + (f" ({b.time(times):.4g} ms)" if ms is not None else "")
            + f" with {in_words('accuracy', b.accuracy)}"
            for b in (budgets[0], budgets[-1])
        )
        known = f"the only one takes {low}" if low == high else f"they reach from {low} to {high}"
        raise ValueError(f"no budget gives {asked}: {known}")
    return fitting[-1] if accuracy is None else fitting[0]
