import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from stepwell.data import Mix, Replace


def batch(n=8, size=6):
    """Images of one value each, so that what a pixel came from can be read off."""
    values = torch.arange(1, n + 1, dtype=torch.uint8) * 20
    return values[:, None, None, None].expand(n, 3, size, size).contiguous(), torch.arange(n) % 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mixup_blends_images_and_labels_by_the_same_share():
    pixels, labels = batch()
    mixed, shares = Mix("mixup", 3)(pixels, labels, generator(4))
    drawn = generator(4)
    other = torch.randperm(8, generator=drawn)
    share = float(torch.rand((), generator=drawn))
    assert_close(mixed, share * pixels.float() + (1 - share) * pixels[other].float())
    one_hot = torch.eye(3)[labels]
    assert_close(shares, share * one_hot + (1 - share) * one_hot[other])
    assert 0.05 < share < 0.95


@given(st.integers(0, 10_000))
def test_cutmix_labels_are_the_areas(seed):
    pixels, labels = batch()
    mixed, shares = Mix("cutmix", 3)(pixels, labels, generator(seed))
    own = (mixed == pixels).float().mean((1, 2, 3))
    value = {int(v): int(c) for v, c in zip(pixels[:, 0, 0, 0], labels, strict=True)}
    for image, row in zip(mixed[:, 0], shares, strict=True):
        expected = torch.zeros(3)
        for pixel in image.flatten().tolist():
            expected[value[int(pixel)]] += 1 / image.numel()
        assert_close(row, expected)
    assert_close(shares.sum(1), torch.ones(8))
    assert ((own == own.min()) | (own == 1)).all()  # one box for all


def test_cutmix_cuts_a_box_of_the_area_that_is_drawn():
    pixels = torch.cat([torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)])
    areas = []
    for seed in range(300):
        _, shares = Mix("cutmix", 2)(pixels, torch.tensor([0, 1]), generator(seed))
        areas.append(float(shares[0, 0]))
    assert 0.0 <= min(areas) < 0.4
    assert max(areas) > 0.95
    # half the pairs are an image with itself; of the others, 1/2 is cut on average, less at the edge
    assert 0.6 < sum(areas) / 300 < 0.9


def test_what_has_no_label_brings_no_share():
    pixels, _ = batch(2)
    labels = torch.tensor([-1, 2])
    for kind in ("mixup", "cutmix"):
        for seed in range(6):
            _, shares = Mix(kind, 3)(pixels, labels, generator(seed))
            assert_close(shares[:, :2], torch.zeros(2, 2))
            assert (shares.sum(1) <= 1).all()


def test_noise_takes_the_place_of_some_images_and_their_labels():
    pixels, labels = torch.zeros(400, 3, 4, 4, dtype=torch.uint8), torch.ones(400).long()
    out, left = Replace("noise", 0.2)(pixels, labels, generator())
    replaced = left == -1
    assert 50 < replaced.sum() < 110
    assert not out[~replaced].any()
    assert (left[~replaced] == 1).all()
    noise = out[replaced].float()
    assert noise.mean() == pytest.approx(127.5, abs=5)
    assert noise.std() == pytest.approx(256 / 12**0.5, abs=3)
    assert labels.eq(1).all()


def test_composites_are_four_quarters_of_images_of_the_batch():
    pixels, labels = batch(8, 6)
    pixels = pixels + torch.arange(36, dtype=torch.uint8).view(6, 6) % 20  # place shows, too
    out, left = Replace("composites", 0.999)(pixels, labels, generator())
    assert (left == -1).all()
    points = set()
    for image in out[:, 0]:
        found = [
            (y, x)
            for y in range(1, 6)
            for x in range(1, 6)
            if all(
                any(torch.equal(image[part], source[part]) for source in pixels[:, 0])
                for part in (
                    (slice(0, y), slice(0, x)), (slice(0, y), slice(x, 6)),
                    (slice(y, 6), slice(0, x)), (slice(y, 6), slice(x, 6)),
                )
            )
        ]  # fmt: skip
        assert found
        points.update(found[:1] if len(found) == 1 else [])
    assert len(points) > 2
