"""Images to train on where only time counts."""

import torch

from stepwell.data import Augment, Batches, ImageSet


def random_batches(count: int, size: int, batch: int, augment: Augment | None) -> Batches:
    """`count` images of noise in ten classes, shuffled; of torch's global generator."""
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(count) % 10, tuple("0123456789"))
    return Batches(
        images, batch, mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3), augment=augment, shuffle=True
    )
