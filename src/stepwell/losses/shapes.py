"""Checks of shapes before logits are compared."""

from jaxtyping import Float
from torch import Tensor


def check_logits(student: Float[Tensor, "_ _"], teacher: Float[Tensor, "_ _"]) -> None:
    """Check that logits have the same batch and classes.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} "
            "differ in shape: both need the same batch and the same classes"
        )
