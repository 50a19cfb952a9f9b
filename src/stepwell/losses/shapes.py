"""Checks of shapes before logits are compared."""

from jaxtyping import Float
from torch import Tensor


def check_logits(student: Float[Tensor, "_ _"], teacher: Float[Tensor, "_ _"]) -> None:
    """Raise ValueError for logits that differ in batch or classes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} "
            "differ in shape: both need the same batch and the same classes"
        )
