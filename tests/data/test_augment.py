import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as tvf

from stepwell.data import Augment
from stepwell.data.augment import _brightness, _contrast, _hue, _saturation

PLAIN = {"pad": 0, "flip": False}


def draw(n, *shape, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def images():
    return torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)


def test_vertical_flips_turn_about_half_of_the_images(images):
    out = Augment(vflip=True, **PLAIN)(images, torch.Generator().manual_seed(0))
    turned = [torch.equal(a, b.flip(1)) for a, b in zip(out, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 2 < sum(turned) < 10


def test_rotation_turns_each_image_by_an_angle_of_its_own_as_torchvision_does(images):
    smooth = tvf.resize(images, [24, 24])
    out = Augment(rotate=20.0, **PLAIN)(smooth, torch.Generator().manual_seed(3))
    angles = (2 * draw(12, seed=3) - 1) * 20
    assert angles.abs().max() > 10
    for image, source, angle in zip(out, smooth, angles.tolist(), strict=True):
        expected = tvf.rotate(source.float(), angle, interpolation=tvf.InterpolationMode.BILINEAR)
        assert_close(image, expected, atol=0.05, rtol=0)


def test_jitter_changes_each_image_by_factors_within_its_strength():
    gray = torch.full((40, 3, 4, 4), 100, dtype=torch.uint8)
    out = Augment(jitter=0.2, **PLAIN)(gray, torch.Generator().manual_seed(0))
    assert out.dtype == torch.uint8
    levels = out[:, :, 0, 0].float()
    assert (levels.max(1).values - levels.min(1).values).max() <= 1  # gray has no hue to turn
    assert 79 <= levels.min() < 90
    assert 110 < levels.max() <= 121
    red = torch.tensor([200, 20, 20], dtype=torch.uint8)[:, None, None].expand(9, 3, 4, 4)
    turned = Augment(jitter=0.2, **PLAIN)(red.clone(), torch.Generator().manual_seed(0))
    assert len({tuple(c.tolist()) for c in turned[:, :, 0, 0]}) > 5


@pytest.mark.parametrize("only", [0, 1, 2, 3, None])
def test_jitter_is_what_torchvisions_functions_give_one_image_after_the_other(images, only):
    """Up to rounding: to less than a byte for one change, of a few values by more after four."""
    images[0] = images[0, :1]  # gray
    images[1], images[2] = 0, 255
    changes = [tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue]
    if only is None:
        out = Augment(jitter=0.3, **PLAIN)(images, torch.Generator().manual_seed(5))
        generator = torch.Generator().manual_seed(5)
        drawn, orders = (torch.rand(12, 4, generator=generator) for _ in range(2))
        values, orders = (
            (2 * drawn - 1) * 0.3 + torch.tensor([1.0, 1.0, 1.0, 0.0]),
            orders.argsort(1),
        )
    else:
        values, orders = draw(12, 4) - (0.5 if only == 3 else 0), torch.full((12, 1), only)
        change = (_brightness, _contrast, _saturation, _hue)[only]
        out = change(images.float(), values[:, only, None, None, None]).clamp(0, 255).byte()
    for image, got, factors, order in zip(images, out, values, orders, strict=True):
        expected = image
        for i in order.tolist():
            expected = changes[i](expected, float(factors[i]))
        apart = (got.int() - expected.int()).abs()
        assert apart.max() <= (4 if only is None else 1)
        assert (apart > 0).double().mean() < 0.02


def test_policies_come_on_top_of_the_standard_one():
    standard = Augment.standard(32, True)
    assert Augment.of("standard", 32, True) == standard
    assert Augment.of("none", 32, True) is None
    combined = Augment.of("combined", 32, True)
    assert (combined.pad, combined.flip) == (standard.pad, standard.flip)
    assert (combined.rotate, combined.vflip, combined.jitter) == (20.0, True, 0.2)
    for policy, field in (("rotate", "rotate"), ("vflip", "vflip"), ("jitter", "jitter")):
        changed = Augment.of(policy, 32, True)
        names = ("rotate", "vflip", "jitter")
        assert [bool(getattr(changed, n)) for n in names] == [n == field for n in names]


@pytest.mark.parametrize("policy", ["standard", "rotate", "vflip", "jitter", "combined"])
@pytest.mark.parametrize("size", [8, 64])
def test_every_policy_is_a_function_of_its_generator(policy, size):
    images = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
    augment = Augment.of(policy, size, True)
    before = images.clone()
    first, again, other = (augment(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == images.shape
    assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 255
    assert_close(images, before)
