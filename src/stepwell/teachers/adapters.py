"""Teachers that wrap teachers: ensembles, and adapters of normalisation, size and probabilities."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

from stepwell.losses import ensemble_logits
from stepwell.teachers.teacher import Teacher, stages_of
from stepwell.types import Exit, Images, probabilities_in

#: Mean and std per channel, of pixels scaled to [0, 1].
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


class AsLogits:
    """Check a teacher's exits: replace probabilities by their logarithm, with a warning.

    There are no checks after the first batch of logits, because a later batch may look like
    probabilities by chance. `whose` is the teacher's name in messages.
    """

    def __init__(self, whose: str = "the teacher") -> None:
        self.whose = whose
        self._gives_logits = False

    def __call__(self, exit: object) -> Exit:
        """The exit, with log p in place of probabilities; ValueError if it is no `Exit`."""
        if not isinstance(exit, Exit):
            raise ValueError(
                f"{self.whose} gives a {type(exit).__name__}, not an Exit: wrap a module in "
                "Frozen(module)"
            )
        problem = None if self._gives_logits else probabilities_in(exit.logits, self.whose)
        if problem is None:
            self._gives_logits = True
            return exit
        warnings.warn(f"{problem}: their logarithm is taken", stacklevel=3)
        return of_probabilities(exit)


class Ensemble(nn.Module):
    """Several teachers as one: its prediction is the mean of the members'; it has no features.

    Args:
        members: callables `images -> Exit` without gradients, of the same classes. Probabilities of a
            member are replaced by their logarithm, with a warning.
    """

    def __init__(self, members: Sequence[Teacher]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one teacher")
        self.members = list(members)
        count = len(members)
        self._as_logits = [AsLogits(f"member {i + 1} of {count} of an ensemble") for i in range(count)]
        # Registers the modules among the members, so that `.to()` reaches them.
        self._modules_of = nn.ModuleList(m for m in members if isinstance(m, nn.Module))

    def forward(self, images: Shaped[Tensor, "batch ..."]) -> Exit:
        """Log of the members' mean probabilities (`ensemble_logits`); ValueError without an `Exit`."""
        pairs = zip(self.members, self._as_logits, strict=True)
        logits = [as_logits(member(images)).logits for member, as_logits in pairs]
        return Exit(ensemble_logits(torch.stack(logits)))


class _Adapted(nn.Module):
    """A wrapper of a teacher, with the stages of that teacher."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    @property
    def stages(self) -> tuple[str, ...]:
        """The teacher's stages."""
        return stages_of(self.teacher)


class Renormalised(_Adapted):
    """A teacher for images of another normalisation, `given`; the teacher expects `usual`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, teacher: Teacher, given: Normalisation, usual: Normalisation) -> None:
        super().__init__(teacher)
        values = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (*given, *usual))
        mean, std, own_mean, own_std = values
        scale, shift = std / own_std, (mean - own_mean) / own_std
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, images: Images) -> Exit:
        """The teacher's exit for the same pixels."""
        return self.teacher(images * self.scale + self.shift)


class Resized(_Adapted):
    """A teacher for images of another size, which are scaled to the teacher's `size`."""

    def __init__(self, teacher: Teacher, size: int) -> None:
        super().__init__(teacher)
        self.size = size

    def forward(self, images: Images) -> Exit:
        """The teacher's exit for the scaled images."""
        return self.teacher(F.interpolate(images, self.size, mode="bilinear", antialias=True))


class OfProbabilities(_Adapted):
    """A teacher of probabilities, with their logarithm as logits: the predictions are the same."""

    def forward(self, images: Shaped[Tensor, "batch ..."]) -> Exit:
        """The exit with log p; a probability of 0 counts as the smallest positive number."""
        return of_probabilities(self.teacher(images))


def of_probabilities(exit: Exit) -> Exit:
    """Replace the probabilities in an exit's `logits` by their logarithm."""
    p = exit.logits.float()
    return Exit(p.clamp_min(torch.finfo(p.dtype).tiny).log(), exit.features)
