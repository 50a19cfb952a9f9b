"""Batches that are functions of (seed, epoch, step), so that a resumed run sees the same ones.

No worker draws random numbers of its own: the order of an epoch and the augmentation of a batch each
come from a generator seeded for just that epoch or step.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stepwell.data.images import Files, ImageSet
from stepwell.types import Batch


def seed_of(*key: object) -> int:
    """A seed for one purpose, such as `seed_of(seed, "step", 17)`; other keys give unrelated ones."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


@dataclass(frozen=True)
class Augment:
    """Standard augmentation, on whole batches of bytes (batch, 3, size, size).

    pad: crop at random from an image padded with this many black pixels on each side.
    flip: mirror half of the images.
    min_area: first crop a random part of at least this share of the area and stretch it to the full
        size (for photographs of 64 pixels and more); 1 leaves the area whole.
    """

    pad: int = 4
    flip: bool = True
    min_area: float = 1.0

    @classmethod
    def standard(cls, size: int, flip: bool) -> "Augment":
        """What is usual at this size: pad an eighth and crop, or crop 35 % of the area and more."""
        if size >= 64:
            return cls(pad=0, flip=flip, min_area=0.35)
        return cls(pad=size // 8, flip=flip)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images, (batch, 3, size, size); every image draws for itself."""
        if self.min_area < 1:
            return self._resized_crop(images, generator)
        n, size = len(images), images.shape[-1]
        top, left = torch.randint(0, 2 * self.pad + 1, (2, n, 1), generator=generator)
        rows, columns = top + torch.arange(size), left + torch.arange(size)  # (batch, size)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, (self.pad,) * 4)
        image, channel = torch.arange(n)[:, None, None, None], torch.arange(3)[:, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def _resized_crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Random crops of some area and aspect, stretched to the full size by bilinear sampling."""
        n = len(images)
        area, aspect, x, y, mirror = torch.rand(5, n, generator=generator)
        area = self.min_area + (1 - self.min_area) * area
        aspect = torch.exp((2 * aspect - 1) * torch.tensor(4 / 3).log())
        width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
        sign = torch.where(mirror < 0.5, -1.0, 1.0) if self.flip else torch.ones(n)
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 0, 2] = sign * width, (2 * x - 1) * (1 - width)
        theta[:, 1, 1], theta[:, 1, 2] = height, (2 * y - 1) * (1 - height)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)


class Batches:
    """An image set as normalised batches.

    Iterating gives one pass in order, for evaluation. Training asks for `stream`.

    Args:
        images: the set.
        batch_size: images a batch, over all processes together.
        mean, std: per channel, of pixels scaled to [0, 1].
        augment: random changes of training images; none for evaluation.
        shuffle: draw a new order every epoch; for training.
        seed: of order and augmentation.

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
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or (shuffle and batch_size < 2):
            raise ValueError(
                f"a batch size of {batch_size}: training needs at least 2, evaluation 1"
            )
        if len(images) < 2 and shuffle:
            raise ValueError("training needs at least two images")
        self.images = images
        self.batch_size = batch_size
        self.mean, self.std = mean, std
        self.augment = augment
        self.shuffle = shuffle
        self.seed = seed
        self.rank, self.world = 0, 1
        self._order = lru_cache(2)(self._draw_order)
        if shuffle and len(images) % batch_size == 1:
            warnings.warn(
                f"the last batch of an epoch would hold 1 of {len(images)} images: it is dropped, "
                "because BatchNorm cannot train on one",
                stacklevel=2,
            )

    def __len__(self) -> int:
        """Batches in one epoch."""
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > (1 if self.shuffle else 0))

    def sharded(self, rank: int, world: int) -> "Batches":
        """This process's share: every `world`-th image of each batch."""
        share = copy(self)
        share.rank, share.world = rank, world
        return share

    def at(self, position: int) -> Batch:
        """The batch at `position`, counted from the start of training over all epochs."""
        return self._batch(position, self.images.pixels[self._indices(position)])

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches at positions `start` to `stop`.

        Images on disk are decoded one batch ahead, by a thread that calls no kernel of torch: a
        second user of the cores would slow the training down by half.
        """
        if not isinstance(self.images.pixels, Files):
            yield from map(self.at, range(start, stop))
            return
        files = self.images.pixels
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            ahead = [pool.submit(files.__getitem__, self._indices(start))] if start < stop else []
            for position in range(start, stop):
                pixels = ahead.pop().result()
                if position + 1 < stop:
                    ahead.append(pool.submit(files.__getitem__, self._indices(position + 1)))
                yield self._batch(position, pixels)

    def __iter__(self) -> Iterator[Batch]:
        return self.stream(0, len(self))

    def with_images(self, images: ImageSet) -> "Batches":
        """Another set, normalised in the same way, in order and without augmentation."""
        return Batches(images, self.batch_size, mean=self.mean, std=self.std)

    def _indices(self, position: int) -> Tensor:
        """Which images this process's share of the batch at `position` is."""
        epoch, step = divmod(position, len(self))
        batch = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return batch[self.rank :: self.world]

    def _batch(self, position: int, pixels: Tensor) -> Batch:
        """Bytes to a batch: augmented by a generator of this step's own, and normalised."""
        if self.augment is not None:
            epoch, step = divmod(position, len(self))
            key = seed_of(self.seed, "augment", epoch, step, self.rank)
            pixels = self.augment(pixels, torch.Generator().manual_seed(key))
        labels = self.images.labels[self._indices(position)]
        return Batch(normalise(pixels, self.mean, self.std), labels)

    def _draw_order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.images))
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        return torch.randperm(len(self.images), generator=generator)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes (batch, 3, height, width) to floats: (pixels / 255 - mean) / std, per channel.

    The result is laid out channels last, as convolutions prefer.
    """
    low, scale = (torch.tensor(v)[:, None, None] * 255 for v in (mean, std))
    x = pixels.to(torch.float32, memory_format=torch.channels_last, copy=True)
    return x.sub_(low).div_(scale)
