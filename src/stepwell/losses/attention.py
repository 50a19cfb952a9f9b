"""Attention transfer between feature maps of the same resolution.

A feature map is (batch, channels, height, width), or a transformer's (batch, tokens, channels). Teacher
and student may differ in channels, not in resolution. No loss grows with the resolution, so one weight
serves all stages; the common form "1000 · mean over positions" weights a 4×4 map 64 times more than a
32×32 map. No gradient reaches the teacher. Half-precision features are compared in 32 bits.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from stepwell.losses.precision import in_full_precision

Features = Float[Tensor, "_ _ _ _"] | Float[Tensor, "_ _ _"]
Scalar = Float[Tensor, ""]


@in_full_precision
def attention_at(student: Features, teacher: Features) -> Scalar:
    """Squared distance of normalised attention maps (Zagoruyko & Komodakis 2017, eq. 2, p = 2).

        Q = flatten( mean over channels of F² ) / its L2 norm;   A = ||Q_student - Q_teacher||²

    summed over positions, mean over the batch; between 0 and 2, because Q is not negative. ValueError
    if batch or resolution differ.
    """
    _check(student, teacher)
    return (_attention_map(student) - _attention_map(teacher.detach())).square().sum(1).mean()


@in_full_precision
def attention_sad(student: Features, teacher: Features) -> Scalar:
    """Divergence of softmax self-attention over positions.

    Every position attends to all positions by the cosine of their features over channels: teacher and
    student may differ in channels and in scale. There is no 1/√channels and no temperature. The loss is
    the row-wise KL(teacher || student) in nats, mean over rows and batch. Memory grows with
    (height · width)². ValueError if batch or resolution differ.
    """
    _check(student, teacher)
    log_q, log_p = _self_attention(student), _self_attention(teacher.detach())
    positions = log_q.shape[1]
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) / positions


@in_full_precision
def attention_gram(student: Features, teacher: Features) -> Scalar:
    """Squared distance of spatial Gram matrices, the similarities of each pair of positions.

        G = F^T F over channels, (positions, positions), divided by its Frobenius norm

    summed over entries, mean over the batch; between 0 and 2 (G is semidefinite). Memory grows with
    (height · width)². ValueError if batch or resolution differ.
    """
    _check(student, teacher)
    return (_gram(student) - _gram(teacher.detach())).square().sum((1, 2)).mean()


Attention = Literal["at", "sad", "gram"]
#: The three modes by the names that recipes use.
ATTENTION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "at": attention_at,
    "sad": attention_sad,
    "gram": attention_gram,
}


def attention_loss(mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss in `ATTENTION` of a mode; ValueError if there is none."""
    if mode not in ATTENTION:
        raise ValueError(f"attention_mode is one of {', '.join(ATTENTION)}, not {mode!r}")
    return ATTENTION[mode]


def _by_position(features: Tensor) -> Tensor:
    """Features as (batch, channels, positions)."""
    return features.transpose(1, 2) if features.dim() == 3 else features.flatten(2)


def _attention_map(features: Tensor) -> Tensor:
    # vector_norm: squaring every feature, and its gradient, would keep four maps in memory.
    norms = vector_norm(_by_position(features), dim=1)
    return F.normalize(norms.square() / features.shape[1], dim=1)


def _self_attention(features: Tensor) -> Tensor:
    f = F.normalize(_by_position(features), dim=1)  # unit length at each position
    return F.log_softmax(f.transpose(1, 2) @ f, dim=2)


def _gram(features: Tensor) -> Tensor:
    f = _by_position(features)
    return F.normalize((f.transpose(1, 2) @ f).flatten(1), dim=1).unflatten(1, (f.shape[2], -1))


def _check(student: Tensor, teacher: Tensor) -> None:
    place = slice(2, None) if student.dim() == 4 else slice(1, 2)
    alike = student.dim() == teacher.dim() and student.shape[place] == teacher.shape[place]
    if student.shape[0] != teacher.shape[0] or not alike:
        raise ValueError(
            f"student features {tuple(student.shape)} and teacher features {tuple(teacher.shape)} "
            "differ in batch or resolution: compare stages of the same resolution"
        )
