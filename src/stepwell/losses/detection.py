"""Losses of a detector's outputs at every place against a teacher's."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepwell.losses.precision import in_full_precision


@in_full_precision
def score_distance(
    student: Float[Tensor, "batch places classes"], teacher: Float[Tensor, "batch places classes"]
) -> Float[Tensor, ""]:
    """Distance of class scores from a teacher's at every place; both are logits of sigmoids.

    Binary cross entropy against the teacher's scores p, times (p - q)² for the student's q, so that the
    many places that both call empty weigh nothing (quality focal loss, Li et al. 2020, eq. 3, with soft
    targets). In nats, summed over places and classes, and divided by the teacher's expected number of
    places with an object: the sum of its best scores, at least one an image.

    No gradient reaches `teacher`.
    """
    p = teacher.detach().sigmoid()
    apart = (p - student.sigmoid()).square()
    entropy = F.binary_cross_entropy_with_logits(student, p, reduction="none")
    objects = p.amax(2).sum().clamp(min=len(p))
    return (apart * entropy).sum() / objects


@in_full_precision
def box_distance(
    student: Float[Tensor, "batch places numbers"],
    teacher: Float[Tensor, "batch places numbers"],
    teacher_logits: Float[Tensor, "batch places classes"],
    sure: float = 0.3,
) -> Float[Tensor, ""]:
    """Smooth L1 distance (beta 1) of boxes from a teacher's, in the head's own units.

    Mean over the places where the teacher's best score is at least `sure`, weighted by that score; 0 if
    there is none. No gradient reaches the teacher.
    """
    best = teacher_logits.detach().sigmoid().amax(2)
    weight = torch.where(best >= sure, best, 0.0)
    apart = F.smooth_l1_loss(student, teacher.detach(), reduction="none").mean(2)
    return (weight * apart).sum() / weight.sum().clamp(min=1e-6)


@in_full_precision
def map_correlation_loss(
    student: Float[Tensor, "batch channels h w"], teacher: Float[Tensor, "batch channels h w"]
) -> Float[Tensor, ""]:
    """1 - Pearson's correlation of two maps, a mean over channels (PKD, Cao et al. 2022, eq. 5).

    Each channel is normalised over the batch and all places; a constant one counts as uncorrelated. No
    gradient reaches `teacher`.
    """
    ours, theirs = (
        (x - x.mean((0, 2, 3), keepdim=True)) for x in (student, teacher.detach())
    )  # fmt: skip
    norms = ours.square().sum((0, 2, 3)).sqrt() * theirs.square().sum((0, 2, 3)).sqrt()
    return (1 - (ours * theirs).sum((0, 2, 3)) / norms.clamp(min=1e-6)).mean()


@in_full_precision
def map_imitation_loss(
    student: Float[Tensor, "batch channels h w"],
    teacher: Float[Tensor, "batch channels h w"],
    inside: Float[Tensor, "batch h w"],
) -> Float[Tensor, ""]:
    """Squared difference of two maps, a mean over channels and the places that `inside` marks by 1.

    0 without a place (after Wang et al. 2019, with whole boxes for places near anchors). No gradient
    reaches `teacher`.
    """
    apart = (student - teacher.detach()).square().mean(1)
    return (apart * inside).sum() / inside.sum().clamp(min=1.0)
