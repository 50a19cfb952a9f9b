"""Networks on the straight line between two networks of one architecture."""

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import nn

from stepwell.nets.nested.calibrate import estimate_all
from stepwell.types import Batch


@torch.no_grad()
def interpolate(a: nn.Module, b: nn.Module, share: float) -> nn.Module:
    """A copy of `a` whose weights are (1 - share) · a + share · b; exact at 0 and 1.

    Floating buffers are interpolated, too; statistics of BatchNorm need to be estimated again
    (`calibrate.estimate_all`). Other buffers are those of `a`. Errors as for `check_line`.
    """
    check_line(a, b)
    mixed = deepcopy(a)
    ours, theirs = mixed.state_dict(), b.state_dict()
    for name, value in ours.items():
        if value.is_floating_point():
            # lerp is exact at both ends, which a sum of products is not
            value.copy_(torch.lerp(value, theirs[name].to(value), share))
    return mixed


def start_interpolated(
    student: nn.Module, teacher: nn.Module, share: float, batches: Iterable[Batch]
) -> None:
    """Move the weights of `student` to share · teacher + (1 - share) · student.

    The probe of Stanton et al. 2021, section 6.2: how near to its teacher must a student start to end
    in the teacher's basin? BatchNorm statistics are estimated from `batches`, unless `share` is 0 or 1.

    Args:
        student: changed in place.
        teacher: of the same architecture; unchanged.
        batches: training images; read only if `student` has BatchNorms.

    Raises:
        ValueError: `share` is not in [0, 1], or the architectures differ.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a start between student and teacher is a share in [0, 1], not {share}")
    student.load_state_dict(interpolate(student, teacher, share).state_dict())
    if 0 < share < 1:
        estimate_all(student, batches)


def check_line(a: nn.Module, b: nn.Module) -> None:
    """Raise ValueError for modules that differ in the names or shapes of their tensors."""
    if (name := differing(a, b)) is not None:
        raise ValueError(
            f"no line between two architectures: {name} is in one only, or has another shape"
        )


def differing(a: nn.Module, b: nn.Module) -> str | None:
    """The name of a tensor that one module lacks, or has in another shape; None if all match."""
    ours, theirs = ({k: v.shape for k, v in m.state_dict().items()} for m in (a, b))
    return next((k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)), None)
