"""Losses on a teacher's logits: on softened probabilities, and on their direction."""

from math import log

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepwell.losses.precision import in_full_precision
from stepwell.types import Logits


def check_logits(student: Float[Tensor, "_ _"], teacher: Float[Tensor, "_ _"]) -> None:
    """Raise ValueError for logits that differ in batch or classes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} "
            "differ in shape: both need the same batch and the same classes"
        )


@in_full_precision
def soft_target_kl(
    student: Logits, teacher: Float[Tensor, "_ _"], temperature: float
) -> Float[Tensor, ""]:
    """Divergence of the student from the teacher, softened (Hinton et al. 2015, section 2).

        T² · KL( softmax(teacher / T) || softmax(student / T) )

    summed over the classes, mean over the batch, in nats. The factor T² makes the size of the gradient
    independent of the temperature. No gradient reaches `teacher`.

    Args:
        student: (batch, classes) logits.
        teacher: (batch, classes) logits, same classes in the same order.
        temperature: T > 0; larger is softer.

    Raises:
        ValueError: `temperature` is not positive, or the shapes differ.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    check_logits(student, teacher)
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


@in_full_precision
def ensemble_logits(members: Float[Tensor, "members batch classes"]) -> Logits:
    """Logits of an ensemble that predicts the mean of its members' predictions (Stanton et al. 2021).

        z = log( 1/m · sum over i of softmax(z_i) )

    softmax(z) is that mean; the exponentials of z sum to 1. Apply a temperature to z, not to the
    members.
    """
    return F.log_softmax(members, dim=2).logsumexp(0) - log(len(members))


@in_full_precision
def logit_direction(student: Logits, teacher: Float[Tensor, "_ _"]) -> Float[Tensor, ""]:
    """Squared distance of the logits' directions (network grafting, Shen et al. 2021).

        || student / ||student|| - teacher / ||teacher|| ||² = 2 (1 - cos(student, teacher))

    mean over the batch, in [0, 4]; the authors' code sums. The length of the student's logits is free:
    calibrate them before using their softmax. No gradient reaches `teacher`. ValueError for other
    shapes.
    """
    check_logits(student, teacher)
    apart = F.normalize(student, dim=1) - F.normalize(teacher.detach(), dim=1)
    return apart.square().sum(1).mean()
