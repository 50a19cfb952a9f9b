"""What the frozen blocks of a teacher make of images, computed once for those that come again."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from stepwell.teachers.logit_cache import keys_of
from stepwell.types import Batch

#: Features and logits that are kept in memory, in bytes; what is larger is computed at every step.
MEMORY = 2 * 2**30


class TeacherOutputs:
    """What the teacher makes of images: features where the student's blocks begin, and logits.

    Those of the images given at the start are computed once, in batches that are always the same, so
    that a run that goes on has the very same numbers.

    Args:
        before: images to those features.
        after: the features, which it may change in place, to logits.
        images: that will come again, in batches, which are run through more than once; what is not
            among them is computed when it comes.
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
        self.kept: list[Tensor] = []  # features and logits, of one image a row
        count = sum(len(x) for x, _ in images or ())
        for x, _ in images or ():
            parts = self._compute(x.to(device))
            if not self.kept:
                if sum(count * p[0].numel() * p.element_size() for p in parts) > MEMORY:
                    return
                self.kept = [_room(part, count) for part in parts]
            start = sum(self.sizes)
            for whole, part in zip(self.kept, parts, strict=True):
                whole[start : start + len(x)] = part
            self.rows |= {key: start + i for i, key in enumerate(keys_of(x, by_image=True))}
            self.sizes.append(len(x))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch."""
        if not self.kept:
            return self._compute(images)
        rows = [self.rows.get(key) for key in keys_of(images, by_image=True)]
        if None in rows:
            return self._compute(images)
        features, logits = (part[torch.tensor(rows, device=part.device)] for part in self.kept)
        return features, logits

    def features(self) -> Iterator[Tensor]:
        """Those of all images given at the start, in their batches."""
        if self.kept:
            parts = self.kept[0][: sum(self.sizes)].split(self.sizes)
            yield from (part.clone() for part in parts)  # a block may work in place
        else:
            yield from (self._compute(x.to(self.device))[0] for x, _ in self.images or ())

    @torch.no_grad()
    def _compute(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.before(images)
        return features, self.after(features.clone())


def _room(like: Tensor, count: int) -> Tensor:
    """An empty tensor of `count` rows, laid out as `like` is."""
    order = torch.channels_last
    last = like.dim() == 4 and like.is_contiguous(memory_format=order)
    return torch.empty(
        count, *like.shape[1:], dtype=like.dtype, device=like.device,
        memory_format=order if last else torch.contiguous_format,
    )  # fmt: skip
