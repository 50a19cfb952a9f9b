"""What must agree before logits are compared."""

from torch import Tensor


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits of other batches or classes.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} "
            "differ in shape: both need the same batch and the same classes"
        )
