"""The loss of a target by its type: cross entropy and KL divergence of classes, errors of numbers."""

from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stepwell.losses.labels import class_cross_entropy
from stepwell.losses.precision import in_full_precision
from stepwell.losses.soft_target import soft_target_kl


class Term(NamedTuple):
    """A loss and its name in the log."""

    name: str
    value: Tensor


def label_loss(
    outputs: Float[Tensor, "batch outputs"],
    labels: Int[Tensor, " batch"] | Float[Tensor, "batch classes"] | Float[Tensor, " batch"],
    **options: Any,
) -> Term:
    """The loss of labels: "ce" of classes, "mse" of numbers, each a mean over the batch.

    Args:
        outputs: logits, or one number for each example.
        labels: class indices, or shares of the classes; or numbers, which are floats (batch,).
        options: of cross entropy, as for `class_cross_entropy`; numbers have none.
    """
    if labels.ndim == 1 and labels.is_floating_point():
        return Term("mse", squared_error(outputs, labels[:, None]))
    return Term("ce", class_cross_entropy(outputs, labels, **options))


def teacher_loss(
    student: Float[Tensor, "batch outputs"], teacher: Float[Tensor, "_ _"], temperature: float
) -> Term:
    """The loss of a teacher's outputs: "kl" of logits, softened; "teacher_mse" of one number each.

    Errors as for `soft_target_kl`; a number has no temperature. No gradient reaches `teacher`.
    """
    if teacher.shape[1] == 1:
        return Term("teacher_mse", squared_error(student, teacher))
    return Term("kl", soft_target_kl(student, teacher, temperature))


@in_full_precision
def squared_error(outputs: Float[Tensor, "_ _"], target: Float[Tensor, "_ 1"]) -> Float[Tensor, ""]:
    """Mean squared difference of numbers; no gradient reaches `target`.

    ValueError if the outputs are not one for each example.
    """
    if outputs.shape != target.shape:
        raise ValueError(
            f"outputs {tuple(outputs.shape)} and numbers {tuple(target.shape)} differ in shape: a "
            "network that predicts a number has one output (num_classes=1)"
        )
    return F.mse_loss(outputs, target.detach())
