"""A small nested net that counts as trained, and images for it."""

import pytest
import torch

from stepwell.data import Batches, ImageSet
from stepwell.export import Int8, Sample
from stepwell.nets import Card, NestedNet, build


def make_net(seed: int = 0) -> NestedNet:
    torch.manual_seed(seed)
    net = build("resnet14", ["8"], num_classes=3)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    for depth in net.depths:  # norms with statistics of their own
        net.train()(torch.randn(16, 3, 8, 8), depth)
    net.card = Card(("a", "b", "c"), 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    net.mark("trained")
    return net.eval()


@pytest.fixture(scope="session")
def small_net():
    """Makes the net of a seed."""
    return make_net


@pytest.fixture
def net():
    return make_net()


@pytest.fixture(scope="module")
def sample():
    generator = torch.Generator().manual_seed(0)
    return Sample(torch.randn(6, 3, 8, 8, generator=generator), "validation")


@pytest.fixture(scope="module")
def int8():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(60) % 3, ("a", "b", "c"))
    batches = Batches(images, 32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    return Int8(batches, batches)
