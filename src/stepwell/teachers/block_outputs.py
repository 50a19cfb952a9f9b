"""Outputs of a teacher's frozen blocks, computed once for images that come again."""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.teachers.logit_cache import keys_of
from stepwell.types import Batch, Logits

#: Most bytes of features and logits to keep in memory; above it they are computed at every step.
MEMORY = 2 * 2**30


class TeacherOutputs:
    """The teacher's features in front of the student's blocks, and its logits.

    For the images given at the start they are computed once, always in the same batches, so a resumed
    run has the same numbers.

    Args:
        before: images to those features.
        after: the features, which it may change in place, to logits.
        images: batches of the images that will come again; iterated more than once. Outputs of other
            images are computed on each call.
        device: of the teacher.
    """

    def __init__(
        self,
        before: Callable[[Tensor], Tensor],
        after: Callable[[Tensor], Tensor],
        images: Iterable[Batch] | None,
        device: torch.device,
    ) -> None:
        self.before, self.after = before, after
        self.images, self.device = images, device
        self.rows: dict[bytes, int] = {}
        self.sizes: list[int] = []  # of the batches
        self.stored: list[Tensor] = []  # features and logits, of one image a row
        count = sum(len(x) for x, _ in images or ())
        for x, _ in images or ():
            parts = self._compute(x.to(device))
            if not self.stored:
                if sum(count * p[0].numel() * p.element_size() for p in parts) > MEMORY:
                    return
                self.stored = [_room(part, count) for part in parts]
            start = sum(self.sizes)
            for whole, part in zip(self.stored, parts, strict=True):
                whole[start : start + len(x)] = part
            self.rows |= {key: start + i for i, key in enumerate(keys_of(x, by_image=True))}
            self.sizes.append(len(x))

    def __call__(self, images: Float[Tensor, "batch ..."]) -> tuple[Float[Tensor, "batch ..."], Logits]:
        """Features and logits of a batch."""
        if not self.stored:
            return self._compute(images)
        rows = [self.rows.get(key) for key in keys_of(images, by_image=True)]
        if None in rows:
            return self._compute(images)
        features, logits = (part[torch.tensor(rows, device=part.device)] for part in self.stored)
        return features, logits

    def features(self) -> Iterator[Float[Tensor, "batch ..."]]:
        """The features of all images given at the start, in their batches."""
        if self.stored:
            parts = self.stored[0][: sum(self.sizes)].split(self.sizes)
            yield from (part.clone() for part in parts)  # a block may work in place
        else:
            yield from (self._compute(x.to(self.device))[0] for x, _ in self.images or ())

    @torch.no_grad()
    def _compute(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.before(images)
        return features, self.after(features.clone())


def _room(like: Tensor, count: int) -> Tensor:
    """An empty tensor of `count` rows with the memory format of `like`."""
    order = torch.channels_last
    last = like.dim() == 4 and like.is_contiguous(memory_format=order)
    return torch.empty(
        count, *like.shape[1:], dtype=like.dtype, device=like.device,
        memory_format=order if last else torch.contiguous_format,
    )  # fmt: skip
