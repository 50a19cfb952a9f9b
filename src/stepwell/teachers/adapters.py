"""Teachers made of teachers: several as one, and one for images or outputs that are not its own."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepwell.losses import ensemble_logits
from stepwell.teachers.teacher import Teacher, stages_of
from stepwell.types import Exit, are_probabilities

#: Mean and std per channel, of pixels scaled to [0, 1].
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


class AsLogits:
    """What a teacher gives, with logits in it: of probabilities their logarithm is taken, and said.

    Once it has been seen to give logits it is not looked at again: those may look like probabilities
    by chance.

    Args:
        whose: the teacher, as the warning and the error name it.
    """

    def __init__(self, whose: str = "the teacher") -> None:
        self.whose = whose
        self._gives_logits = False  # until it has been seen to

    def __call__(self, exit: object) -> Exit:
        """The exit, or the same with log p in the place of its probabilities.

        Raises:
            ValueError: it is no `Exit`.
        """
        if not isinstance(exit, Exit):
            raise ValueError(
                f"{self.whose} gives a {type(exit).__name__}, not an Exit: Frozen(module) makes a "
                "teacher of a module"
            )
        if self._gives_logits:
            return exit
        if not are_probabilities(exit.logits):
            self._gives_logits = True
            return exit
        warnings.warn(
            f"{self.whose} gives probabilities (no number is negative, and each row's sum is 1), not "
            "logits: their logarithm is taken",
            stacklevel=3,
        )
        return of_probabilities(exit)


class Ensemble(nn.Module):
    """Several teachers as one, whose prediction is the mean of theirs; it gives no features.

    Args:
        members: callables `images -> Exit` without gradients, of the same classes. Where the first
            answers of one are probabilities, a warning says so, and their logarithm is taken.
    """

    def __init__(self, members: Sequence[Teacher]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one teacher")
        self.members = list(members)
        self._as_logits = [
            AsLogits(f"member {i} of {len(members)} of an ensemble")
            for i in range(1, len(members) + 1)
        ]
        # So that `.to()` reaches those that are modules.
        self._modules_of = nn.ModuleList(m for m in members if isinstance(m, nn.Module))

    def forward(self, images: Tensor) -> Exit:
        """Logits (batch, classes): log of the members' mean probabilities (`ensemble_logits`).

        Raises:
            ValueError: a member gives no `Exit`.
        """
        exits = [
            as_logits(member(images))
            for member, as_logits in zip(self.members, self._as_logits, strict=True)
        ]
        return Exit(ensemble_logits(torch.stack([exit.logits for exit in exits])))


class _Adapted(nn.Module):
    """Something around a teacher that has its stages."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of the teacher."""
        return stages_of(self.teacher)


class Renormalised(_Adapted):
    """A teacher for images that are normalised in another way than its own.

    Args:
        teacher: takes images normalised by `own`.
        given: mean and std, per channel, of the images that come.
        own: mean and std that the teacher expects.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, teacher: Teacher, given: Normalisation, own: Normalisation) -> None:
        super().__init__(teacher)
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(v, dtype=torch.float64)[:, None, None] for v in pair]
            for pair in (given, own)
        )
        scale, shift = std / own_std, (mean - own_mean) / own_std
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, images: Tensor) -> Exit:
        """The teacher's exit for the same pixels."""
        return self.teacher(images * self.scale + self.shift)


class Resized(_Adapted):
    """A teacher for images of another size than its own, which are scaled to it.

    Args:
        teacher: takes images of `size` pixels, height and width.
    """

    def __init__(self, teacher: Teacher, size: int) -> None:
        super().__init__(teacher)
        self.size = size

    def forward(self, images: Tensor) -> Exit:
        """The teacher's exit for the scaled images."""
        return self.teacher(F.interpolate(images, self.size, mode="bilinear", antialias=True))


class OfProbabilities(_Adapted):
    """A teacher that gives probabilities, with their logarithm as logits: the same predictions.

    Args:
        teacher: its exit's `logits` are probabilities (batch, classes).
    """

    def forward(self, images: Tensor) -> Exit:
        """The exit with log p; a probability of 0 counts as the smallest positive number."""
        return of_probabilities(self.teacher(images))


def of_probabilities(exit: Exit) -> Exit:
    """An exit whose `logits` are probabilities, with their logarithm in their place."""
    p = exit.logits.float()
    return Exit(p.clamp_min(torch.finfo(p.dtype).tiny).log(), exit.features)
