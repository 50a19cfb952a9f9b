"""A loss on the direction of a teacher's logits."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepwell.losses.precision import in_full_precision
from stepwell.losses.soft_target import check_logits
from stepwell.types import Logits


@in_full_precision
def logit_direction(student: Logits, teacher: Float[Tensor, "_ _"]) -> Float[Tensor, ""]:
    """Squared distance of the logits' directions (network grafting, Shen et al. 2021).

        || student / ||student|| - teacher / ||teacher|| ||² = 2 (1 - cos(student, teacher))

    mean over the batch, in [0, 4]; the authors' code sums. The length of the student's logits is free:
    calibrate them before using their softmax. No gradient reaches `teacher`.

    Args:
        student: (batch, classes) logits.
        teacher: (batch, classes) logits, same classes in the same order.

    Raises:
        ValueError: the shapes differ.
    """
    check_logits(student, teacher)
    apart = F.normalize(student, dim=1) - F.normalize(teacher.detach(), dim=1)
    return apart.square().sum(1).mean()
