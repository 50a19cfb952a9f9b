"""CKA against the formula written out with centring matrices, and its invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.evaluation import cka
from stepwell.evaluation.cka import align, gram

KINDS = [("linear", False), ("rbf", False), ("linear", True), ("rbf", True)]


def features(n=40, p=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, p, generator=g)


def direct(x, y, kernel, debiased=False):
    """The definition: HSIC with centring matrices, or the sum over distinct quadruples' closed form."""

    def similarity(z):
        z = z.numpy().astype(np.float64)
        if kernel == "linear":
            return z @ z.T
        d = np.sqrt(((z[:, None] - z) ** 2).sum(-1))
        s = np.median(d[~np.eye(len(z), dtype=bool)])
        return np.exp(-(d**2) / (2 * s**2))

    def hsic(k, l):
        n = len(k)
        if not debiased:
            h = np.eye(n) - 1 / n
            return np.trace(k @ h @ l @ h)
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
        one = np.ones(n)
        sums = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + sums - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))

    k, l = similarity(x), similarity(y)
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize(("kernel", "debiased"), KINDS)
@pytest.mark.parametrize("n", [7, 31])  # odd: numpy's median and ours agree on n(n - 1) distances
def test_cka_is_the_direct_formula(kernel, debiased, n):
    x = features(n, 5)
    y = 0.7 * x[:, :3] + features(n, 3, seed=1) + 5
    found = cka(x, y, kernel=kernel, debiased=debiased)
    assert found.value == pytest.approx(direct(x, y, kernel, debiased), abs=1e-5)


def test_linear_cka_is_kornblith_et_als_ratio_of_norms():
    x, y = features(30, 4), features(30, 9, seed=2)
    xc, yc = x - x.mean(0), y - y.mean(0)
    expected = (yc.T @ xc).norm() ** 2 / ((xc.T @ xc).norm() * (yc.T @ yc).norm())
    assert cka(x, y).value == pytest.approx(expected.item(), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 8), st.floats(0.01, 100), st.sampled_from(KINDS))
def test_cka_does_not_see_rotation_scale_or_shift(seed, p, scale, kind):
    kernel, debiased = kind
    x, y = features(24, p, seed), features(24, 5, seed + 1)
    rotation, _ = torch.linalg.qr(features(p, p, seed + 2))
    moved = scale * x @ rotation + 3 * scale
    options = {"kernel": kernel, "debiased": debiased}
    assert cka(x, moved, **options).value == pytest.approx(1, abs=1e-4)
    there, back = cka(moved, y, **options), cka(y, x, **options)
    assert there == pytest.approx(cka(x, y, **options), abs=1e-4)
    assert there.value == pytest.approx(back.value, abs=1e-4)
    assert there.low <= there.value <= there.high


def test_unrelated_wide_features_look_alike_until_debiased():
    x, y = features(60, 400), features(60, 400, seed=1)
    assert cka(x, y).value > 0.8
    assert abs(cka(x, y, debiased=True).value) < 0.15


@pytest.mark.parametrize(("kernel", "debiased"), KINDS)
def test_the_interval_is_that_of_a_loop_that_leaves_one_out(kernel, debiased):
    x, n = features(12, 3), 12
    k, l = gram(x, kernel), gram(x.abs() + features(12, 3, seed=1), kernel)
    found = align(k, l, debiased=debiased, level=0.9)
    kept = [torch.tensor([j for j in range(n) if j != i]) for i in range(n)]
    left_out = np.array([align(k[i][:, i], l[i][:, i], debiased=debiased).value for i in kept])
    error = np.sqrt((n - 1) * np.mean((left_out - left_out.mean()) ** 2))
    assert found.low == pytest.approx(max(-1, found.value - 1.6449 * error), abs=1e-4)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """The truth is the value on very many examples."""

    def pair(n, seed):
        x = features(n, 4, seed)
        return x, x + 1.5 * features(n, 4, seed + 10_000)

    truth = cka(*pair(2000, 77), debiased=True).value
    found = [cka(*pair(60, seed), debiased=True) for seed in range(100)]
    assert 85 <= sum(i.low <= truth <= i.high for i in found) <= 100
    assert np.mean([i.value for i in found]) == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (features(4), features(4), "CKA of 4 examples: at least 5 are needed"),
        (features(9), features(8), "features of 9 and of 8 examples"),
        (features(9), torch.ones(9, 2), "the same for all examples"),
    ],
)
def test_what_has_no_cka_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        align(gram(x), gram(y))
    if len(x) == len(y) > 5:
        with pytest.raises(ValueError, match="their median distance is 0"):
            cka(x, y, kernel="rbf")
