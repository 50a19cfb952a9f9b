"""Churn: predictions that change from one depth to another."""

from collections.abc import Mapping
from itertools import combinations

from torch import Tensor


def churn(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
    """How many predictions flip between depths, as shares of the examples.

    Args:
        logits: (n, classes) by depth, shallow to deep; the last is the full net's.
        labels: (n,) class indices.

    Returns:
        "A/churn/B" for each pair: the share whose top class differs; and for each depth
        "A/negative_flips" (the full net is right, A is wrong) and "A/positive_flips" (the reverse).
        Nothing for a lone depth.
    """
    if len(logits) < 2:
        return {}
    tops = {depth: values.argmax(1) for depth, values in logits.items()}
    found = {
        f"{a}/churn/{b}": (tops[a] != tops[b]).double().mean().item()
        for a, b in combinations(tops, 2)
    }
    whole = list(tops.values())[-1] == labels
    for depth, top in tops.items():
        right = top == labels
        found[f"{depth}/negative_flips"] = (whole & ~right).double().mean().item()
        found[f"{depth}/positive_flips"] = (~whole & right).double().mean().item()
    return found
