"""Making a batch (order, crop, mirror, normalise) against training on it."""

import statistics
from itertools import count
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.timing import ratio, side_by_side
from stepwell.data import Augment, Batches, ImageSet
from stepwell.nets import build


def measure() -> dict[str, Any]:
    """Batches of 128 images of 32×32 pixels against a step of ResNet-20 on them."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(20_000) % 10, tuple("0123456789"))
    batches = Batches(
        images,
        128,
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        augment=Augment.standard(32, flip=True),
        shuffle=True,
    )
    net = build("resnet20", num_classes=10).to(memory_format=torch.channels_last).train()
    positions = count()
    batch = batches.at(0)

    def step() -> None:
        net.zero_grad()
        cross_entropy(net(batch.images), batch.labels).backward()

    times = side_by_side(
        {"batch": lambda: batches.at(next(positions)), "step": step}, rounds=20, warmup=2
    )
    return {
        "images a second": 128 / statistics.median(times["batch"]),
        "ms a batch": 1000 * statistics.median(times["batch"]),
        "ms a training step": 1000 * statistics.median(times["step"]),
        "batch / step": ratio(times, "batch", "step"),
    }
