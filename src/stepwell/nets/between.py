"""A network that starts between two others of its kind."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from stepwell.nets.calibrate import estimate
from stepwell.types import Batch


@torch.no_grad()
def start_between(
    student: nn.Module, teacher: nn.Module, share: float, batches: Iterable[Batch]
) -> None:
    """Move the weights of `student` to share · teacher + (1 - share) · student.

    The probe of Stanton et al. 2021, section 6.2: how near to its teacher must a student start to end
    in the teacher's basin? The statistics of BatchNorms between the two are those of neither, so they
    are estimated anew from `batches`; at 0 and at 1 they are the student's and the teacher's.

    Args:
        student: changed in place.
        teacher: of the same architecture; unchanged.
        share: in [0, 1].
        batches: training images; read where `student` has BatchNorms.

    Raises:
        ValueError: `share` is out of range, or the architectures differ.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a start between student and teacher is a share in [0, 1], not {share}")
    ours, theirs = student.state_dict(), teacher.state_dict()
    odd = sorted(ours.keys() ^ theirs.keys()) or [
        name for name in ours if ours[name].shape != theirs[name].shape
    ]
    if odd:
        raise ValueError(
            "a start between student and teacher needs two networks of one architecture; these "
            f"differ in {len(odd)} of {len(ours.keys() | theirs.keys())} tensors, such as {odd[0]!r}"
        )
    for name, value in ours.items():
        if value.is_floating_point():
            value.lerp_(theirs[name].to(value), share)
        elif share:
            value.copy_(theirs[name])
    norms = [
        m for m in student.modules() if isinstance(m, _NormBase) and m.running_mean is not None
    ]
    if norms and 0 < share < 1:
        estimate(student, norms, batches, student)
