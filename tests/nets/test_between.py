import pytest
import torch
from torch.testing import assert_close

from stepwell.nets import build
from stepwell.nets.between import between, differing


def nets():
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = build("resnet8", num_classes=3).module
        net(torch.randn(4, 3, 8, 8))  # so that running statistics differ
        yield net


def test_the_ends_are_the_networks_to_the_bit_and_the_middle_is_the_mean():
    a, b = nets()
    before = {k: v.clone() for k, v in a.state_dict().items()}
    start, middle, end = (between(a, b, share).state_dict() for share in (0.0, 0.5, 1.0))
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
        between(a, other, 0.5)
