"""Losses on an encoder's internal representations (Aguilar et al. 2020, arXiv:1910.03723).

The paper's averaging could not be read; ours, over heads and examples, is a reconstruction.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepwell.losses.precision import in_full_precision

Scores = Float[Tensor, "batch heads tokens tokens"]
Mask = Bool[Tensor, "batch tokens"]


@in_full_precision
def attention_kl(
    student: Scores, teacher: Float[Tensor, "batch other_heads tokens tokens"], mask: Mask
) -> Float[Tensor, ""]:
    """Divergence of the student's attention from the teacher's, of one layer.

    KL(P_T || P_S) of each real token's row of attention, its mean over rows, heads and examples, in
    nats. P is the softmax of the scores over real tokens. Rows and columns of padding never count, in
    value or gradient. No gradient reaches `teacher`.

    Args:
        student, teacher: scores before softmax and dropout.
        mask: true for real tokens; every example has one.

    Raises:
        ValueError: unequal shapes, such as other numbers of heads.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"attention of {tuple(student.shape)} and {tuple(teacher.shape)} (batch, heads, tokens, "
            "tokens) cannot be compared: the numbers of heads must agree"
        )
    hidden = ~(mask[:, None, :, None] & mask[:, None, None, :])
    # a finite number, so that 0 * log P stays 0, and its gradient, too
    low = torch.finfo(student.dtype).min / 2
    log_student = student.masked_fill(hidden, low).log_softmax(-1)
    log_teacher = teacher.detach().masked_fill(hidden, low).log_softmax(-1)
    kl = (log_teacher.exp() * (log_teacher - log_student)).masked_fill(hidden, 0.0)
    return kl.sum() / (student.shape[1] * mask.sum())


@in_full_precision
def cls_cosine(
    student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch other_width"]
) -> Float[Tensor, ""]:
    """1 - cosine of the [CLS] states of one layer, batch mean, in [0, 2].

    No gradient reaches `teacher`. ValueError for unequal widths.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"[CLS] states of {student.shape[-1]} and {teacher.shape[-1]} numbers cannot be compared: "
            "map one to the other's width"
        )
    return (1 - F.cosine_similarity(student, teacher.detach(), dim=-1)).mean()
