"""Intervals against scipy's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from torch.testing import assert_close

from stepwell.evaluation import intervals
from stepwell.evaluation.intervals import means, resampled, share


@given(st.integers(1, 400), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_a_share_has_wilsons_interval(n, data, level):
    k = data.draw(st.integers(0, n))
    found = share(torch.arange(n) < k, level)
    expected = binomtest(k, n).proportion_ci(level, method="wilson")
    assert found == pytest.approx((k / n, expected.low, expected.high), abs=1e-12)
    assert found.low <= found.value <= found.high


def test_means_have_scipys_bootstrap_interval():
    draw = np.random.default_rng(0)
    values = draw.exponential(size=(300, 2))
    found = means(torch.from_numpy(values), resamples=4000)
    for column, interval in zip(values.T, found, strict=True):
        theirs = bootstrap(
            (column,), np.mean, n_resamples=4000, method="percentile", random_state=1
        ).confidence_interval
        assert interval.value == pytest.approx(column.mean())
        assert (interval.low, interval.high) == pytest.approx(theirs, rel=0.02)


def test_draws_are_the_same_whether_they_are_kept_or_not(monkeypatch):
    values = torch.randn(40, 2)
    generator = torch.Generator().manual_seed(3)
    naive = torch.stack(
        [values[torch.randint(40, (40,), generator=generator)].mean(0) for _ in range(100)]
    )
    twice = [resampled(values, resamples=100, seed=3) for _ in range(2)]
    monkeypatch.setattr(intervals, "CACHED", 0)
    for drawn in (*twice, resampled(values, resamples=100, seed=3)):
        assert_close(drawn, naive.double(), rtol=1e-5, atol=1e-6)


def test_a_difference_of_paired_columns_is_narrower_than_of_unpaired():
    hard = torch.randn(500) * 3
    values = torch.stack([hard + 1, hard, torch.ones(500)], 1)
    first, second, always = means(values)
    (paired,) = means((values[:, 0] - values[:, 1])[:, None])
    assert paired == pytest.approx((1, 1, 1), abs=1e-5)
    assert always == pytest.approx((1, 1, 1))
    assert first.high - first.low > 0.2
    assert first.low - second.low == pytest.approx(1, abs=1e-5)  # the same rows are drawn


def test_the_same_seed_gives_the_same_interval():
    values = torch.randn(40, 1)
    assert means(values, seed=3) == means(values, seed=3) != means(values, seed=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share(torch.ones(3).bool(), 95), "between 0 and 1 .0.95 is 95 %., not 95"),
        (lambda: share(torch.ones(0).bool()), "no examples: a share"),
        (lambda: means(torch.ones(0, 1)), "no examples: a mean"),
        (lambda: means(torch.ones(3, 1), resamples=0), "at least 2 resamples, not 0"),
    ],
)
def test_what_has_no_interval_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
