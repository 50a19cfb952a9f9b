"""Learning a teacher's features themselves."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepwell.losses.precision import in_full_precision


@in_full_precision
def feature_mse(student: Float[Tensor, "..."], teacher: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean squared difference of two features of one shape (FitNets, Romero et al. 2015, eq. 3).

    The paper sums over all entries and halves; the mean does not grow with the features' size. No
    gradient reaches `teacher`.

    Args:
        student: the features, brought to the teacher's shape (by a regressor that is trained, too).
        teacher: (batch, channels, height, width), or (batch, tokens, channels).

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"features {tuple(student.shape)} of the student and {tuple(teacher.shape)} of the "
            "teacher differ in shape"
        )
    return F.mse_loss(student, teacher.detach())


@in_full_precision
def feature_nmse(student: Float[Tensor, "..."], teacher: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """`feature_mse` in shares of the teacher's mean square (normalised mean squared error).

    It is 1 for a student that gives zeros, however large the teacher's features are, so that those of
    several blocks weigh alike. Args and errors as for `feature_mse`; no gradient reaches `teacher`.
    """
    return feature_mse(student, teacher) / teacher.detach().square().mean()
