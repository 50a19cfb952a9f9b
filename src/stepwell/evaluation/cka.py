"""Centred kernel alignment: the similarity of two networks' features (Kornblith et al. 2019)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.evaluation.intervals import LEVEL, Interval, quantile

Kernel = Literal["linear", "rbf"]


def cka(
    x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, kernel: Kernel = "linear",
    debiased: bool = False, level: float = LEVEL,
) -> Interval:  # fmt: skip
    """CKA of two sets of features of the same examples, with a jackknife interval.

        HSIC(K, L) / sqrt( HSIC(K, K) · HSIC(L, L) ),   HSIC(K, L) = sum(HKH ∘ HLH)

    K and L are the Gram matrices of `x` and `y`, and H centres them. CKA is 1 for features that differ
    by a rotation and a scale. With the linear kernel it equals ||Yc'Xc||² / (||Xc'Xc|| · ||Yc'Yc||) of
    centred columns, in Frobenius norms.

    The plain form is too high unless p and q are far below n. `debiased` uses the unbiased estimator of
    HSIC (Song et al. 2012): 0 on average for unrelated features, and sometimes negative.

    The interval is of the jackknife. A bootstrap would repeat examples and so be too high.

    Args:
        kernel: "linear", or "rbf": exp(-d² / 2s²) with s the median distance between examples.

    Raises:
        ValueError: the numbers of examples differ, or are below 5; or all have the same features.
    """
    return align(gram(x, kernel), gram(y, kernel), debiased=debiased, level=level)


def gram(x: Float[Tensor, "n p"], kernel: Kernel = "linear") -> Float[Tensor, "n n"]:
    """The similarity of each pair of examples, computed in single precision and returned in double."""
    # Centring first changes neither kernel's CKA; a large mean would cost digits.
    x = x.float() - x.double().mean(0).float()
    inner = (x @ x.T).double()
    if kernel == "linear":
        return inner
    norms = inner.diag()
    squares = (norms[:, None] + norms - 2 * inner).clamp_min(0)
    n = len(x)
    apart = squares[~torch.eye(n, dtype=torch.bool)]
    middle = apart.sqrt().median() if n > 1 else torch.tensor(0.0)
    if not middle > 0:
        raise ValueError("most examples have the same features: their median distance is 0")
    return torch.exp(-squares.fill_diagonal_(0) / (2 * middle**2))


def align(
    k: Float[Tensor, "n n"], l: Float[Tensor, "m m"], *, debiased: bool = False, level: float = LEVEL
) -> Interval:
    """CKA of two Gram matrices of the same examples; arguments and errors as for `cka`."""
    if k.shape != l.shape:
        raise ValueError(f"features of {len(k)} and of {len(l)} examples: CKA needs the same examples")
    if len(k) < 5:
        raise ValueError(f"CKA of {len(k)} examples: at least 5 are needed")
    cross, self_k, self_l = _hsic(k, l, debiased), _hsic(k, k, debiased), _hsic(l, l, debiased)
    scale = self_k * self_l
    smallest = torch.finfo(torch.float32).eps ** 2 * (k.diag().mean() * l.diag().mean()) ** 2
    if not scale[0] > smallest:
        raise ValueError("the features are the same for all examples: CKA has no meaning")
    # first CKA of all examples, then CKA with each example left out
    value, *_ = every = cross / scale.clamp_min(smallest).sqrt()
    left_out, n = every[1:], len(k)
    error = ((n - 1) * (left_out - left_out.mean()).square().mean()).sqrt()
    half = quantile(level) * error.item()
    estimate = value.item()
    return Interval(estimate, max(-1.0, estimate - half), max(estimate, min(1.0, estimate + half)))


def _hsic(k: Tensor, l: Tensor, debiased: bool) -> Tensor:
    """HSIC of all n examples, then with each example left out, (n + 1,); up to a common factor.

    Both estimators are  a + b·B + c·C  with  a = sum(K ∘ L),  B = (row sums of K) · (row sums of L),
    C = sum(K) · sum(L). Leaving one example out changes each term by sums over the example's row.
    """
    if debiased:
        k, l = (m - torch.diag(m.diag()) for m in (k, l))
    n = len(k)
    rows_k, rows_l, both = k.sum(1), l.sum(1), k * l
    rows_both, diagonal = both.sum(1), both.diag()
    a = torch.cat([both.sum()[None], both.sum() - 2 * rows_both + diagonal])
    whole = rows_k @ rows_l
    its_own = (rows_k - k.diag()) * (rows_l - l.diag())
    b = torch.cat([whole[None], whole - l @ rows_k - k @ rows_l + rows_both - its_own])
    sums = [
        torch.cat([m.sum()[None], m.sum() - 2 * rows + m.diag()])
        for m, rows in ((k, rows_k), (l, rows_l))
    ]
    count = torch.full((n + 1,), n - 1.0, dtype=torch.float64)
    count[0] = n
    if debiased:
        inner, outer = -2 / (count - 2), 1 / ((count - 1) * (count - 2))
        factor = 1 / (count * (count - 3))
    else:
        inner, outer, factor = -2 / count, 1 / count**2, 1 / (count - 1) ** 2
    return factor * (a + inner * b + outer * sums[0] * sums[1])
