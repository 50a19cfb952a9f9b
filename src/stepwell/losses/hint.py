"""Losses on a teacher's features."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepwell.losses.precision import in_full_precision


@in_full_precision
def feature_mse(student: Float[Tensor, "..."], teacher: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean squared difference of two features of one shape (FitNets, Romero et al. 2015, eq. 3).

    The paper sums over all entries and halves; the mean does not grow with the features' size. A
    trained regressor maps the student's features to the teacher's shape (ValueError for other shapes).
    No gradient reaches `teacher`.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"features {tuple(student.shape)} of the student and {tuple(teacher.shape)} of the "
            "teacher differ in shape: map the student's with a regressor"
        )
    return F.mse_loss(student, teacher.detach())


@in_full_precision
def feature_nmse(student: Float[Tensor, "..."], teacher: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """`feature_mse` divided by the teacher's mean square (normalised mean squared error).

    It is 1 for a student of zeros, whatever the scale of the teacher's features, so all blocks have
    equal weight. Args and errors as for `feature_mse`; no gradient reaches `teacher`.
    """
    return feature_mse(student, teacher) / teacher.detach().square().mean()
