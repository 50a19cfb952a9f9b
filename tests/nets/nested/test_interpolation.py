from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from stepwell.nets import build
from stepwell.nets.nested.interpolation import differing, interpolate, start_interpolated
from stepwell.types import Batch


def nets():
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = build("resnet8", num_classes=3).module
        net(torch.randn(4, 3, 8, 8))  # so that running statistics differ
        yield net


def test_the_ends_are_the_networks_to_the_bit_and_the_middle_is_the_mean():
    a, b = nets()
    before = {k: v.clone() for k, v in a.state_dict().items()}
    start, middle, end = (interpolate(a, b, share).state_dict() for share in (0.0, 0.5, 1.0))
    assert_close(start, before, rtol=0, atol=0)
    assert_close(end, dict(b.state_dict()), rtol=0, atol=0)
    for name, value in middle.items():
        if value.is_floating_point():
            assert_close(value, (before[name] + b.state_dict()[name]) / 2)
    assert_close(dict(a.state_dict()), before, rtol=0, atol=0)


def test_unlike_architectures_have_no_line():
    (a, _), other = nets(), build("resnet8", num_classes=4).module
    assert differing(a, a) is None
    assert differing(a, build("resnet14", num_classes=3).module) == "layer1.1.conv1.weight"
    with pytest.raises(ValueError, match=r"no line between two architectures: fc\.weight"):
        interpolate(a, other, 0.5)


def net(name="resnet8", seed=0):
    torch.manual_seed(seed)
    net = build(name, num_classes=5).module
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    net(torch.randn(8, 3, 8, 8))  # statistics of its own
    return net


@pytest.fixture
def batches():
    return [Batch(torch.randn(6, 3, 8, 8), torch.zeros(6).long()) for _ in range(3)]


@pytest.mark.parametrize("name", ["resnet8", "resnet8_ln"])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_every_weight_stands_at_the_share_of_the_teachers(name, share, batches):
    student, teacher = net(name, 0), net(name, 1)
    before, theirs = deepcopy(student.state_dict()), deepcopy(teacher.state_dict())
    start_interpolated(student, teacher, share, batches)
    for key, value in student.state_dict().items():
        if "running" not in key and "tracked" not in key:
            exact = {"rtol": 0, "atol": 0} if share in (0, 1) else {}
            assert_close(value, (1 - share) * before[key] + share * theirs[key], **exact)
        elif share in (0, 1):
            assert_close(value, (before, theirs)[int(share)][key], rtol=0, atol=0)
    assert_close(teacher.state_dict(), theirs, rtol=0, atol=0)
    assert student.training


def test_statistics_between_the_two_are_those_of_the_data(batches):
    student, teacher = net(seed=0), net(seed=1)
    start_interpolated(student, teacher, 0.5, batches)
    x = [student.conv1(batch.images) for batch in batches]
    means = torch.stack([v.mean((0, 2, 3)) for v in x]).mean(0)
    assert_close(student.bn1.running_mean, means)
    assert {m.momentum for m in student.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_what_has_no_place_between_is_refused(batches):
    with pytest.raises(ValueError, match=r"share in \[0, 1\], not 1.5"):
        start_interpolated(net(), net(), 1.5, batches)
    with pytest.raises(ValueError, match=r"no line between two architectures: layer1\.1"):
        start_interpolated(net(), net("resnet14"), 0.5, batches)
    with pytest.raises(ValueError, match=r"two architectures: fc\.weight"):
        start_interpolated(net(), build("resnet8", num_classes=7).module, 0.5, batches)
    with pytest.raises(ValueError, match="at least one batch"):
        start_interpolated(net(), net(), 0.5, [])


@pytest.mark.parametrize("name", ["resnet8_ln", "resnet20_ln"])
def test_layer_norms_see_one_image_at_a_time(name):
    """Predictions depend neither on the other images of a batch nor on the mode."""
    module = net(name)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    x = torch.randn(5, 3, 8, 8)
    together = module.train()(x)
    assert_close(torch.cat([module.eval()(image[None]) for image in x]), together)
    batch = build(name.removesuffix("_ln"), num_classes=5).module
    assert [k for k, _ in module.named_parameters()] == [k for k, _ in batch.named_parameters()]
    x = module.bn1(torch.randn(2, 16, 4, 4) * 3 + 1)
    weight, bias = module.bn1.weight[:, None, None], module.bn1.bias[:, None, None]
    plain = (x - bias) / weight
    assert_close(plain.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    assert_close(plain.var((1, 2, 3), unbiased=False), torch.ones(2), atol=1e-3, rtol=0)
