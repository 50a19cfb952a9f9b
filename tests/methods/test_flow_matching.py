import pytest
import torch
from torch import nn
from torch.testing import assert_close

from stepwell.methods import FlowMatching
from stepwell.nets.families.unet import UNet
from stepwell.types import Batch


def batch(images):
    return Batch(images, torch.full((len(images),), -1))


class Known(nn.Module):
    """The velocity that carries N(0, 1) to one single image: (image - x) / (1 - t)."""

    def __init__(self, image):
        super().__init__()
        self.image = nn.Parameter(image)

    def forward(self, x, time):
        return (self.image - x) / (1 - time)[:, None, None, None]


def test_the_loss_vanishes_at_the_true_velocity_and_is_the_equation_elsewhere():
    image = torch.randn(3, 4, 4)
    images = image.expand(16, 3, 4, 4)
    assert FlowMatching(Known(image)).training_step(batch(images)).loss < 1e-6
    torch.manual_seed(5)
    loss = FlowMatching(Known(image + 1)).training_step(batch(images)).loss
    torch.manual_seed(5)
    torch.randn_like(images)
    time = torch.rand(16)  # off by 1 / (1 - t) everywhere
    assert_close(loss, (1 / (1 - time)).square().mean(), rtol=1e-4, atol=0)


def test_samples_follow_the_velocity_and_are_functions_of_the_seed():
    image = torch.randn(3, 4, 4)
    objective = FlowMatching(Known(image))
    samples = objective.sample(5, 4, seed=1, steps=3, batch_size=2)
    assert_close(samples, image.expand(5, 3, 4, 4))  # Euler's rule is exact on straight lines
    objective = FlowMatching(UNet(widths=(8, 16)))
    nn.init.normal_(objective.net.out.weight)
    first, again, other = (objective.sample(3, 8, seed=s, steps=2) for s in (1, 1, 2))
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    assert objective.net.training


@pytest.mark.parametrize("size", [7, 8, 16, 32])
def test_the_unet_keeps_every_size_and_reads_the_time(size):
    net = UNet(widths=(8, 16, 16))
    x, time = torch.randn(2, 3, size, size), torch.tensor([0.1, 0.7])
    assert not net(x, time).any()  # the last convolution starts at zero
    nn.init.normal_(net.out.weight)
    y = net(x, time)
    assert y.shape == x.shape
    assert not torch.allclose(y[:1], net(x[:1], time[1:]))
    assert_close(net(x[1:], time[1:]), y[1:], rtol=1e-4, atol=1e-4)
    y.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_two_kinds_of_images_are_learnt():
    """Images of one of two brightnesses: samples are near one or the other, both are made."""
    torch.manual_seed(0)
    objective = FlowMatching(UNet(widths=(16,))).train()
    optimizer = torch.optim.AdamW(objective.parameters(), 5e-3)
    losses = []
    for _ in range(150):
        levels = torch.where(torch.rand(32) < 0.5, -1.0, 1.0)
        images = levels[:, None, None, None].expand(32, 3, 4, 4)
        loss = objective.training_step(batch(images)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    means = objective.sample(64, 4, seed=0).mean((1, 2, 3))
    assert ((means.abs() - 1).abs() < 0.4).float().mean() > 0.9
    assert 0.2 < (means > 0).float().mean() < 0.8
