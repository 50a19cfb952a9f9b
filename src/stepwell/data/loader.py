"""Batches as functions of (seed, epoch, step), so that a resumed run sees the same batches.

The order of an epoch and the augmentation of a batch have generators seeded for that epoch or step.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from stepwell.data.augment import Augment
from stepwell.data.decoding import Files
from stepwell.data.images import ImageSet
from stepwell.data.mixing import Change
from stepwell.types import Batch, Images


def seed_of(*key: object) -> int:
    """A seed for one purpose, such as `seed_of(seed, "step", 17)`; other keys give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


class Extra(NamedTuple):
    """Images that join the training part in its batches.

    images: their labels may all be -1 (no label).
    share: of every batch. None: in proportion to the numbers of images, of the remaining share.
    """

    images: ImageSet
    share: float | None = None


class Batches:
    """An image set as normalised batches.

    Iterating gives one pass in order, for evaluation. Training asks for `stream`.

    Args:
        images: the set.
        batch_size: images per batch, over all processes.
        mean, std: per channel, of pixels scaled to [0, 1].
        augment: random changes of training images; None for evaluation.
        changes: of whole batches with their labels, applied in order after `augment`.
        shuffle: draw a new order every epoch; for training.
        seed: of order and augmentation.
        extra: sets that join `images` in training; an epoch is one pass over `images`, and the other
            sets repeat in their own orders.
        balance: draw every class of `images` equally often. An epoch stays as long as it is: images of
            small classes repeat in it, and images of large classes take turns.

    A last batch of a single image is dropped in training, with a warning: BatchNorm cannot train on
    one.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Augment | None = None,
        changes: Sequence[Change] = (),
        shuffle: bool = False,
        seed: int = 0,
        extra: Sequence[Extra] = (),
        balance: bool = False,
    ) -> None:
        if batch_size < 1 or (shuffle and batch_size < 2):
            raise ValueError(f"a batch size of {batch_size}: training needs at least 2, evaluation 1")
        if len(images) < 2 and shuffle:
            raise ValueError("training needs at least two images")
        self.images, self.batch_size = images, batch_size
        self.mean, self.std = mean, std
        self.augment, self.changes = augment, tuple(changes)
        self.shuffle, self.seed = shuffle, seed
        self.extra, self.balance = tuple(extra), balance
        self.rank, self.world = 0, 1
        self._labels = torch.cat([images.labels for images in self._sets])
        self._quotas = _quotas(batch_size, images, self.extra)
        self._steps = self._count_steps()
        if shuffle and self._in_step(self._steps - 1) == 1:
            self._steps -= 1
            warnings.warn(
                f"the last batch of an epoch would hold 1 of {len(images)} images: it is dropped, "
                "because BatchNorm cannot train on one",
                stacklevel=2,
            )
        for other, quota in zip(self.extra, self._quotas, strict=True):
            if int(self._steps * quota) == 0:
                warnings.warn(
                    f"{len(other.images)} images that join the training ones are never shown: their "
                    f"share of {self._steps} batches of {batch_size} is less than one image",
                    stacklevel=2,
                )
        self._keep_orders()

    def _keep_orders(self) -> None:
        self._order = lru_cache(2 + 2 * len(self.extra))(self._draw_order)

    def __len__(self) -> int:
        """Batches in one epoch."""
        return self._steps

    def sharded(self, rank: int, world: int) -> "Batches":
        """This process's share: every `world`-th image of each batch.

        A batch of fewer than two images per process repeats its images: an empty share would stop
        training, and BatchNorm cannot train on one image.
        """
        share = copy(self)
        share.rank, share.world = rank, world
        return share

    def at(self, position: int) -> Batch:
        """The batch at `position`, counted from the start of training over all epochs."""
        indices = self._indices(position)
        return self._batch(position, indices, self._pixels(indices))

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches at positions `start` to `stop`.

        A thread decodes images on disk one batch ahead. It calls no torch kernels (except to copy
        images of other sets): competing for the cores would halve the speed of training.
        """
        if not any(isinstance(images.pixels, Files) for images in self._sets):
            yield from map(self.at, range(start, stop))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:

            def ask(position: int) -> tuple[Tensor, Future[Tensor]]:
                indices = self._indices(position)
                return indices, pool.submit(self._pixels, indices)

            ahead = ask(start) if start < stop else None
            for position in range(start, stop):
                assert ahead is not None
                indices, pixels = ahead[0], ahead[1].result()
                ahead = ask(position + 1) if position + 1 < stop else None
                yield self._batch(position, indices, pixels)

    def __iter__(self) -> Iterator[Batch]:
        return self.stream(0, len(self))

    @property
    def examples(self) -> ImageSet:
        """The images, under the name that batches of other inputs share."""
        return self.images

    @property
    def order(self) -> Tensor:
        """The images in the order of one pass for evaluation."""
        return torch.arange(len(self.images))

    def with_examples(self, examples: ImageSet) -> "Batches":
        """As `with_images`, under the name that batches of other inputs share."""
        return self.with_images(examples)

    def with_images(self, images: ImageSet) -> "Batches":
        """Another set, normalised in the same way, in order and without augmentation."""
        return Batches(images, self.batch_size, mean=self.mean, std=self.std)

    def of(self, images: ImageSet) -> "Batches":
        """The same training on other images."""
        return self._like(images, self.extra)

    def reseeded(self, *key: object) -> "Batches":
        """The same images in another order and with other augmentation, for another phase of a run."""
        other = copy(self)
        other.seed = seed_of(self.seed, *key)
        other._keep_orders()
        return other

    def joined_by(self, *extra: Extra) -> "Batches":
        """The same batches with further sets in them."""
        return self._like(self.images, (*self.extra, *extra))

    def _like(self, images: ImageSet, extra: Sequence[Extra]) -> "Batches":
        return Batches(
            images, self.batch_size, mean=self.mean, std=self.std, augment=self.augment,
            changes=self.changes, shuffle=self.shuffle, seed=self.seed, extra=extra,
            balance=self.balance,
        )  # fmt: skip

    @property
    def _sets(self) -> tuple[ImageSet, ...]:
        return (self.images, *(extra.images for extra in self.extra))

    def _count_steps(self) -> int:
        n = len(self.images)
        steps = math.ceil(n / (self.batch_size - sum(self._quotas)))
        # rounding the other sets down leaves room for a few more of `images`
        while self._own(steps) < n:
            steps += 1
        while steps > 1 and self._own(steps - 1) >= n:
            steps -= 1
        return steps

    def _in_step(self, step: int) -> int:
        """The number of images in the batch of a step, over all sets."""
        own = min(len(self.images), self._own(step + 1)) - self._own(step)
        return own + sum(int((step + 1) * q) - int(step * q) for q in self._quotas)

    def _own(self, steps: int) -> int:
        """The number of `images` in the first `steps` batches of an epoch."""
        return steps * self.batch_size - sum(int(steps * quota) for quota in self._quotas)

    def _indices(self, position: int) -> Tensor:
        """The indices, over all sets, of this process's images in the batch at `position`."""
        epoch, step = divmod(position, len(self))
        members = [self._order(epoch, 0)[self._own(step) : self._own(step + 1)]]
        start = len(self.images)
        for i, (extra, quota) in enumerate(zip(self.extra, self._quotas, strict=True), start=1):
            n, before = len(extra.images), epoch * int(len(self) * quota)
            numbers = range(before + int(step * quota), before + int((step + 1) * quota))
            drawn = [start + int(self._order(k // n, i)[k % n]) for k in numbers]
            members.append(torch.tensor(drawn, dtype=torch.long))
            start += n
        batch = torch.cat(members)
        if self.extra:  # or what follows would find each set in one place
            key = seed_of(self.seed, "members", epoch, step)
            batch = batch[torch.randperm(len(batch), generator=generator_of(key))]
        if self.world > 1:
            batch = batch.repeat_interleave(-(-2 * self.world // len(batch)))
        return batch[self.rank :: self.world]

    def _pixels(self, indices: Tensor) -> Tensor:
        """Bytes of the images at `indices`, each from its set."""
        if not self.extra:
            return self.images.pixels[indices]
        size = self.images.size
        pixels = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        start = 0
        for images in self._sets:
            here = ((indices >= start) & (indices < start + len(images))).nonzero().flatten()
            if len(here):
                pixels[here] = images.pixels[indices[here] - start]
            start += len(images)
        return pixels

    def _batch(self, position: int, indices: Tensor, pixels: Tensor) -> Batch:
        """Bytes to a batch: augmented by this step's generators, and normalised."""
        epoch, step = divmod(position, len(self))
        if self.augment is not None:
            key = seed_of(self.seed, "augment", epoch, step, self.rank)
            pixels = self.augment(pixels, generator_of(key))
        labels = self._labels[indices]
        for i, change in enumerate(self.changes):
            key = seed_of(self.seed, "change", i, epoch, step, self.rank)
            pixels, labels = change(pixels, labels, generator_of(key))
        return Batch(normalise(pixels, self.mean, self.std), labels)

    def _draw_order(self, turn: int, which: int) -> Tensor:
        """The order of the `turn`-th pass over a set; set 0 is `images`, the others are extra."""
        images = self._sets[which]
        if not self.shuffle:
            return torch.arange(len(images))
        key = (self.seed, "order", turn) if which == 0 else (self.seed, "extra", which, turn)
        generator = generator_of(seed_of(*key))
        if self.balance and which == 0:
            return balanced(images.labels, generator)
        return torch.randperm(len(images), generator=generator)


def balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many indices as there are labels, from every class equally many, in random order."""
    classes = labels.unique()
    classes = classes[torch.randperm(len(classes), generator=generator)]  # the first get the remainder
    share, more = divmod(len(labels), len(classes))
    drawn = []
    for i, label in enumerate(classes):
        members = (labels == label).nonzero().flatten()
        count = share + (i < more)
        turns = -(-count // len(members))
        order = [torch.randperm(len(members), generator=generator) for _ in range(turns)]
        drawn += [members[torch.cat(order)[:count]]] if turns else []
    return torch.cat(drawn)[torch.randperm(len(labels), generator=generator)]


def generator_of(seed: int) -> torch.Generator:
    """A generator of its own, seeded."""
    return torch.Generator().manual_seed(seed)


def _quotas(batch_size: int, images: ImageSet, extra: Sequence[Extra]) -> list[Fraction]:
    """The mean number of images of each extra set in a batch."""
    for other in extra:
        if other.share is not None and not 0 < other.share < 1:
            raise ValueError(
                f"a share of every batch lies between 0 and 1, neither included, not {other.share}"
            )
        if other.images.size != images.size:
            raise ValueError(f"images of {other.images.size} pixels cannot join those of {images.size}")
    # Fractions are exact, so that sets can fill a batch completely.
    given = [None if e.share is None else Fraction(str(e.share)) for e in extra]
    left = 1 - sum(share or Fraction(0) for share in given)
    total = len(images) + sum(len(other.images) for other in extra if other.share is None)
    if batch_size * left * len(images) < total:
        raise ValueError(
            f"the shares of a batch of {batch_size} that other images take leave no room for the "
            "training images: make them smaller (--unlabeled-share, --synthetic-share), or the batch "
            "larger"
        )
    return [
        batch_size * (left * Fraction(len(other.images), total) if share is None else share)
        for other, share in zip(extra, given, strict=True)
    ]


def normalise(
    pixels: Shaped[Tensor, "batch channels height width"], mean: Sequence[float], std: Sequence[float]
) -> Images:
    """Bytes (batch, 3, height, width) to floats: (pixels / 255 - mean) / std, per channel.

    The result is channels last, the faster memory format for convolutions.
    """
    low, scale = (torch.tensor(v)[:, None, None] * 255 for v in (mean, std))
    x = pixels.to(torch.float32, memory_format=torch.channels_last, copy=True)
    return x.sub_(low).div_(scale)
