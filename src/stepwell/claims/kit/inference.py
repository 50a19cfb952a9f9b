"""Statistics of paired differences over seeds: pooled spread, interval, verdict, planned power."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.stats import bartlett, nct, t

Verdict = Literal["holds", "refuted", "not decided"]

#: Confidence that all intervals of a study's primary claims are right together; and of any other
#: interval by itself.
CONFIDENCE = 0.9
#: Probability that a planned study decides a claim that is true.
POWER = 0.8
#: Level of the test that pairs vary alike; where it rejects, a pair keeps a wider interval of its own.
UNEQUAL = 0.05
#: Seeds beyond which a plan is no plan.
MOST_SEEDS = 1000


class Spread(NamedTuple):
    """Standard deviation of a paired difference between seeds, and its degrees of freedom."""

    std: float
    df: float


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Values with their mean and sample standard deviation (0 of a single value)."""
    mean, std = statistics.fmean(values), 0.0
    if len(values) > 1:
        std = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return {"values": list(values), "mean": mean, "std": std, "n": len(values)}


def pooled_spread(
    differences: Sequence[Sequence[float]], contrasts: Sequence[Mapping[str, float]]
) -> Spread:
    """Pool the spread of several paired differences.

    Claims about the same arms are one pair i, with f_i = n_i - 1 and the mean s_i² of their variances:

        std² = Σ f_i s_i² / Σ f_i

    Pairs that share an arm are not independent. If all arms vary alike and by themselves, pairs i and j
    have the covariance C_ij = Σ_arm c_i[arm] c_j[arm], and (Satterthwaite 1946)

        df = (Σ_i f_i C_ii)² / Σ_ij min(f_i, f_j) C_ij²

    Args:
        differences: of each claim, a number a seed; two seeds or more.
        contrasts: of each claim, the weights of its arms, such as {"a": 1, "b": -1}.
    """
    pairs: dict[frozenset[tuple[str, float]], dict[str, Any]] = {}
    for values, contrast in zip(differences, contrasts, strict=True):
        arms = frozenset((arm, abs(weight)) for arm, weight in contrast.items())
        pair = pairs.setdefault(arms, {"contrast": contrast, "free": [], "square": []})
        pair["free"].append(len(values) - 1)
        pair["square"].append((len(values) - 1) * statistics.variance(values))
    free = np.array([statistics.fmean(pair["free"]) for pair in pairs.values()])
    square = sum(statistics.fmean(pair["square"]) for pair in pairs.values())
    every = sorted({arm for contrast in contrasts for arm in contrast})
    weights = np.array([[p["contrast"].get(arm, 0.0) for arm in every] for p in pairs.values()])
    covariance = weights @ weights.T
    shared = (np.minimum.outer(free, free) * covariance**2).sum()
    df = (free * covariance.diagonal()).sum() ** 2 / shared
    return Spread(float((square / free.sum()) ** 0.5), float(df))


def equal_spreads(differences: Iterable[Sequence[float]]) -> float | None:
    """The p-value of Bartlett's test that differences vary alike; None with fewer than two sets.

    Bartlett's test assumes normal differences, as intervals by Student's t do. Sets of the same numbers
    count once.
    """
    samples = {tuple(values) for values in differences}
    if len(samples) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # without any spread: inf, or nan
        return float(bartlett(*sorted(samples)).pvalue)


def interval(mean: float, seeds: int, spread: Spread, level: float) -> tuple[float, float]:
    """The interval of a mean over seeds by Student's t: mean ± t · std / √seeds."""
    half = float(t.ppf((1 + level) / 2, spread.df)) * spread.std / seeds**0.5
    return mean - half, mean + half


def simultaneous(claims: int) -> float:
    """The level of each of several intervals that are right together with `CONFIDENCE` (Bonferroni).

    1 - (1 - CONFIDENCE) / claims: 0.967 for three.
    """
    return 1 - (1 - CONFIDENCE) / max(1, claims)


def verdict_of(low: float, high: float, margin: float, below: bool) -> Verdict:
    """Judge an interval by the side of the margin that it lies on.

    "holds": the whole interval lies on the claimed side, `below` the margin or above it. "refuted": it
    lies on the other side. "not decided": it contains the margin, or an end is NaN.
    """
    if not (high < margin or low > margin):
        return "not decided"
    return "holds" if (high < margin) == below else "refuted"


def power(distance: float, seeds: int, spread: Spread, level: float = CONFIDENCE) -> float:
    """Probability that the interval of a study excludes a margin that is `distance` from the truth.

    By the noncentral t distribution with df degrees of freedom and noncentrality
    |distance| · √seeds / std; on the true side of the margin alone. `spread` is of the planned study.
    """
    if spread.std == 0:
        return float(distance != 0)
    threshold = t.ppf((1 + level) / 2, spread.df)
    return float(nct.sf(threshold, spread.df, abs(distance) * seeds**0.5 / spread.std))


def seeds_needed(
    distance: float, std: float, pairs: float = 1.0, level: float = CONFIDENCE
) -> int | None:
    """The seeds that find a true distance from the margin with 80 % power; None for over 1,000.

    Args:
        pairs: degrees of freedom of the spread for each seed beyond the first: 1 for a lone pair.
    """
    counts = range(2, MOST_SEEDS + 1)
    index = bisect_left(
        counts, POWER, key=lambda n: power(distance, n, Spread(std, pairs * (n - 1)), level)
    )
    return counts[index] if index < len(counts) else None
