"""Confidence intervals over examples, of a share and of paired means."""

from collections.abc import Iterator
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from stepwell.measures import share_interval

LEVEL = 0.95
RESAMPLES = 1000
#: Resamples drawn at a time; bounds the memory.
CHUNK = 64
#: Most draws (rows × resamples, a byte each) cached for further columns of the same rows.
CACHED = 2**26


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def quantile(level: float) -> float:
    """The half-width of an interval in standard errors: 1.96 at 0.95; ValueError beyond (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"a confidence level is a share between 0 and 1 (0.95 is 95 %), not {level}")
    return NormalDist().inv_cdf(0.5 + level / 2)


def share(hits: Shaped[Tensor, " n"], level: float = LEVEL) -> Interval:
    """The share of true examples, with Wilson's interval (Wilson 1927).

    ValueError without examples.
    """
    n, z = len(hits), quantile(level)
    if not n:
        raise ValueError("no examples: a share needs at least one")
    p = hits.double().mean().item()
    return Interval(p, *share_interval(p, n, z))


def means(
    values: Float[Tensor, "n columns"], *, level: float = LEVEL, resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:  # fmt: skip
    """The mean of every column, with a percentile bootstrap interval (Efron 1979).

    A resample draws n rows (examples) with replacement, the same for all columns: a column of
    differences between two networks gets a paired interval. The same seed gives the same draws.
    """
    drawn = resampled(values, resamples=resamples, seed=seed)
    low, high = drawn.quantile(ends(level), dim=0)
    columns = zip(values.double().mean(0).tolist(), low.tolist(), high.tolist(), strict=True)
    return [Interval(*column) for column in columns]


def resampled(
    values: Float[Tensor, "n columns"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[Tensor, "resamples columns"]:
    """The column means in each resample of `means`; ValueError for no rows or below two resamples."""
    if not len(values):
        raise ValueError("no examples: a mean needs at least one")
    if resamples < 2:
        raise ValueError(f"a bootstrap needs at least 2 resamples, not {resamples}")
    values, n = values.double(), len(values)
    counts = _cached_counts if n * resamples <= CACHED else _counts
    return torch.cat([often.double() @ values / n for often in counts(n, resamples, seed)])


@lru_cache(maxsize=2)
def _cached_counts(n: int, resamples: int, seed: int) -> tuple[Tensor, ...]:
    """`_counts`, cached because drawing is the slow part."""
    return tuple(_counts(n, resamples, seed))


def _counts(n: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """The number of draws of each of n rows, (chunk, n) for some resamples at a time."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        drawn = [torch.randint(n, (n,), generator=generator) for _ in range(count)]
        often = torch.stack([torch.bincount(rows, minlength=n) for rows in drawn])
        yield often.to(torch.uint8)  # 256 draws of a row do not happen


def ends(level: float) -> Float[Tensor, "2"]:
    """The quantiles at the ends of an interval: 0.025 and 0.975 at 0.95; errors as for `quantile`."""
    quantile(level)
    return torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
