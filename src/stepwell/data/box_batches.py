"""Batches of images with boxes, as functions of (seed, position). Images keep their shape."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from stepwell.data.boxes import BoxSet
from stepwell.data.decoding import DECODERS, MEMORY
from stepwell.data.loader import generator_of, normalise, seed_of
from stepwell.data.preprocess import whole
from stepwell.types import BoxBatch, Boxes, Images

#: Batches are padded to a multiple of this, which the strides of all pyramids divide.
STRIDE = 32
#: Mean and standard deviation of the pixels, those of ImageNet, which published backbones expect.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BoxBatches:
    """Images with boxes as normalised batches.

    Iterating gives one pass for evaluation, in which a batch has images of one padded shape, so that no
    prediction depends on other images. Training asks for `stream`.

    Args:
        examples: the images.
        size: longer side of each image, in pixels.
        flip: mirror half of the training images.
        zoom: draw the scale of a training image between this and 1.
        shuffle: draw a new order every epoch; for training.
        seed: of order and augmentation.
        passes: through the images in an epoch, each in a new order; of few images, an epoch would
            otherwise be very short.
    """

    def __init__(
        self, examples: BoxSet, batch_size: int, *, size: int, flip: bool = False, zoom: float = 1.0,
        shuffle: bool = False, seed: int = 0, passes: int = 1,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"a batch has 1 image or more, not {batch_size}")
        if size < 1:
            raise ValueError(f"the longer side of an image has 1 pixel or more, not {size}")
        if not 0 < zoom <= 1:
            raise ValueError(f"zoom is a scale above 0 and up to 1, not {zoom}")
        self.examples, self.batch_size, self.size = examples, batch_size, size
        self.flip, self.zoom, self.shuffle, self.seed = flip, zoom, shuffle, seed
        self.passes = passes
        self.mean, self.std = MEAN, STD
        self.rank, self.world = 0, 1
        self._scaled = [scaled_size(own, size) for own in examples.sizes]
        fits = sum(3 * h * w for h, w in self._scaled) <= MEMORY
        self._pixels = decode(examples.files, size) if fits else None
        self._keep_orders()

    def _keep_orders(self) -> None:
        self._batches = lru_cache(2)(self._draw_batches)

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self._batches(0))

    def sharded(self, rank: int, world: int) -> "BoxBatches":
        """This process's share: every `world`-th image of each batch; small batches repeat images."""
        share = copy(self)
        share.rank, share.world = rank, world
        share._keep_orders()
        return share

    def reseeded(self, *key: object) -> "BoxBatches":
        """The same images in another order and with other augmentation, for another phase of a run."""
        other = copy(self)
        other.seed = seed_of(self.seed, *key)
        other._keep_orders()
        return other

    def others(self, examples: BoxSet) -> "BoxBatches":
        """Other images, with the same order and augmentation."""
        return BoxBatches(
            examples, self.batch_size, size=self.size, flip=self.flip, zoom=self.zoom,
            shuffle=self.shuffle, seed=self.seed, passes=self.passes,
        )  # fmt: skip

    def repeated(self, passes: int) -> "BoxBatches":
        """The same images, several passes through them in an epoch."""
        other = copy(self)
        other.passes = passes
        other._keep_orders()
        return other

    def with_examples(self, examples: BoxSet) -> "BoxBatches":
        """Other images, in order and without augmentation."""
        return BoxBatches(examples, self.batch_size, size=self.size)

    def at(self, position: int) -> BoxBatch:
        """The batch at `position`, counted from the start of training over all epochs."""
        epoch, step = divmod(position, len(self))
        indices = self._batches(epoch)[step]
        if self.world > 1:
            indices = [i for i in indices for _ in range(-(-self.world // len(indices)))]
        indices = indices[self.rank :: self.world]
        key = seed_of(self.seed, "augment", epoch, step, self.rank)
        return self._batch(indices, generator_of(key))

    def stream(self, start: int, stop: int) -> Iterator[BoxBatch]:
        """The batches at positions `start` to `stop`."""
        yield from map(self.at, range(start, stop))

    def __iter__(self) -> Iterator[BoxBatch]:
        return self.stream(0, len(self))

    @property
    def order(self) -> list[int]:
        """The images in the order of one pass for evaluation."""
        return [i for batch in self._batches(0) for i in batch]

    def _draw_batches(self, epoch: int) -> list[list[int]]:
        """The images of each batch of an epoch."""
        if self.shuffle:
            generator = generator_of(seed_of(self.seed, "order", epoch))
            groups = [
                torch.randperm(len(self.examples), generator=generator).tolist()
                for _ in range(self.passes)
            ]
        else:
            shapes: dict[tuple[int, int], list[int]] = {}
            for i, own in enumerate(self._scaled):
                shapes.setdefault(padded([own]), []).append(i)
            groups = [*shapes.values()]
        n = self.batch_size
        return [group[i : i + n] for group in groups for i in range(0, len(group), n)]

    def _batch(self, indices: Sequence[int], generator: torch.Generator) -> BoxBatch:
        files = [self.examples.files[i] for i in indices]
        pixels = (
            decode(files, self.size) if self._pixels is None else [self._pixels[i] for i in indices]
        )
        images, truth = [], []
        for i, own in zip(indices, pixels, strict=True):
            high, wide = self.examples.sizes[i]
            boxes = scaled(self.examples.truth[i], own.shape[2] / wide, own.shape[1] / high)
            image, boxes = self._augmented(own, boxes, generator)
            images.append(image)
            truth.append(boxes)
        known = self.examples.known
        tells = None if known is None else tuple(known[i] for i in indices)
        return BoxBatch(*collated(images), tuple(truth), tells)

    def _augmented(
        self, image: UInt8[Tensor, "3 h w"], boxes: Boxes, generator: torch.Generator
    ) -> tuple[Tensor, Boxes]:
        if self.flip and torch.rand((), generator=generator) < 0.5:
            image, boxes = image.flip(2), flipped(boxes, image.shape[2])
        if self.zoom < 1:
            scale = 1 - (1 - self.zoom) * float(torch.rand((), generator=generator))
            high, wide = (max(1, round(side * scale)) for side in image.shape[1:])
            boxes = scaled(boxes, wide / image.shape[2], high / image.shape[1])
            smaller = interpolate(image[None].float(), (high, wide), mode="bilinear", antialias=True)
            image = smaller[0].round().to(torch.uint8)
        return image, boxes


def collated(images: Sequence[UInt8[Tensor, "3 _ _"]]) -> tuple[Images, tuple[tuple[int, int], ...]]:
    """Bytes of images as one normalised batch, padded by zeros; and their heights and widths."""
    sizes = tuple((image.shape[1], image.shape[2]) for image in images)
    pixels = torch.zeros(len(images), *padded(sizes), 3, dtype=torch.uint8)
    for row, image, (high, wide) in zip(pixels, images, sizes, strict=True):
        row[:high, :wide] = image.permute(1, 2, 0)
    batch = normalise(pixels.permute(0, 3, 1, 2), MEAN, STD)
    for row, (high, wide) in zip(batch, sizes, strict=True):
        row[:, high:] = 0
        row[:, :, wide:] = 0
    return batch, sizes


def padded(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of a batch that holds images of these sizes."""
    high, wide = (math.ceil(max(sides) / STRIDE) * STRIDE for sides in zip(*sizes, strict=True))
    return high, wide


def scaled_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width of an image whose longer side is scaled to `longest`."""
    scale = longest / max(size)
    high, wide = (max(1, round(side * scale)) for side in size)
    return high, wide


def decode(files: Sequence[Path], longest: int) -> list[UInt8[Tensor, "3 _ _"]]:
    """Image files as RGB bytes, upright, the longer side scaled; ValueError names an unreadable one."""

    def read(file: Path) -> np.ndarray:
        return whole(file, longest)

    with ThreadPoolExecutor(DECODERS) as pool:
        return [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in pool.map(read, files)]


def flipped(boxes: Boxes, width: float) -> Boxes:
    """The boxes of a mirrored image of some width."""
    x1, y1, x2, y2 = boxes.boxes.unbind(1)
    return boxes._replace(boxes=torch.stack([width - x2, y1, width - x1, y2], 1))


def scaled(boxes: Boxes, x: float, y: float) -> Boxes:
    """The boxes of a scaled image."""
    return boxes._replace(
        boxes=boxes.boxes * boxes.boxes.new_tensor([x, y, x, y]), areas=boxes.areas * x * y
    )


def restored(
    boxes: Float[Tensor, "n 4"], size: tuple[int, int], original: tuple[int, int]
) -> Float[Tensor, "n 4"]:
    """Boxes of an image of `size` (height, width) in pixels of the `original`, within its edges."""
    (high, wide), (own_high, own_wide) = size, original
    scale = boxes.new_tensor([own_wide / wide, own_high / high] * 2)
    edges = boxes.new_tensor([own_wide, own_high] * 2)
    return torch.minimum((boxes * scale).clamp(min=0), edges)
