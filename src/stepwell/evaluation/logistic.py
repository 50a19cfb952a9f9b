"""Logistic regression of right and wrong answers."""

import math

from jaxtyping import Bool, Float
from torch import Tensor


def logistic_fit(x: Float[Tensor, "n features"], right: Bool[Tensor, " n"]) -> list[float]:
    """The bias and the weights of a logistic regression of `right` on `x`, by scikit-learn.

    The weights have scikit-learn's usual penalty (L2, C = 1), which matters with few examples.

    Where all answers are right, or all wrong, the weights are 0 and the bias is that of the rule of
    succession, (right + 1) / (n + 2).
    """
    from sklearn.linear_model import LogisticRegression

    count, n = int(right.sum()), len(right)
    if count in (0, n):
        return [math.log((count + 1) / (n - count + 1)), *[0.0] * x.shape[1]]
    model = LogisticRegression().fit(x.double().numpy(), right.numpy())
    return [float(model.intercept_[0]), *model.coef_[0].tolist()]
