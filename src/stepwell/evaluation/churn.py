"""Churn: predictions that change from one depth to another."""

from collections.abc import Mapping

from stepwell.evaluation.accuracy import Tally
from stepwell.types import Labels, Logits


def churn(logits: Mapping[str, Logits], labels: Labels) -> dict[str, float]:
    """Share of the predictions that flip between depths.

    Args:
        logits: (n, classes) by depth, shallow to deep; the last is the full net's.
        labels: (n,) class indices.

    Returns:
        "A/churn/B" for each pair: the share whose top class differs; and for each depth
        "A/negative_flips" (the full net is right, A is wrong) and "A/positive_flips" (the reverse).
        Nothing for a lone depth.
    """
    return Tally().add(logits, labels).churn()
