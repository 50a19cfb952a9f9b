import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from stepwell.data import Augment, Batches, ImageSet, seed_of

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def numbered(n, size=4):
    """Image i is filled with the byte i."""
    pixels = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, size, size)
    return ImageSet(pixels.contiguous(), torch.arange(n) % 2, ("even", "odd"))


def numbers(batch):
    return (batch.images[:, 0, 0, 0] * 255).round().int().tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 16), st.integers(0, 3))
def test_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch(n, size, seed):
    batches = Batches(numbered(n), size, shuffle=True, seed=seed, **PLAIN)
    epochs = [
        [i for p in range(e * len(batches), (e + 1) * len(batches)) for i in numbers(batches.at(p))]
        for e in range(2)
    ]
    dropped = 1 if n % size == 1 else 0
    for order in epochs:
        assert len(set(order)) == len(order) == n - dropped
    again = Batches(numbered(n), size, shuffle=True, seed=seed, **PLAIN)
    streamed = [i for b in again.stream(0, 2 * len(again)) for i in numbers(b)]
    assert streamed == epochs[0] + epochs[1]


test_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch = pytest.mark.filterwarnings(
    "ignore:the last batch of an epoch"
)(test_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch)


def test_a_stream_may_start_anywhere_and_gives_the_same_bits():
    data = ImageSet(
        torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8), torch.zeros(20).long(), ("a",)
    )
    make = lambda: Batches(  # noqa: E731
        data, 6, shuffle=True, seed=3, augment=Augment(pad=2), **PLAIN
    )
    whole = list(make().stream(0, 12))
    late = list(make().stream(7, 12))
    for a, b in zip(whole[7:], late, strict=True):
        assert_close(a.images, b.images, rtol=0, atol=0)


def test_order_and_augmentation_differ_between_epochs_and_seeds():
    orders = {
        tuple(i for p in range(e * 5, e * 5 + 5) for i in numbers(b.at(p)))
        for e in range(2)
        for b in [Batches(numbered(20), 4, shuffle=True, seed=s, **PLAIN) for s in range(2)]
    }
    assert len(orders) == 4


def test_a_last_training_batch_of_one_is_dropped_and_said():
    with pytest.warns(UserWarning, match="would hold 1 of 9 images: it is dropped"):
        batches = Batches(numbered(9), 4, shuffle=True, **PLAIN)
    assert [len(b.labels) for b in batches] == [4, 4]
    assert [len(b.labels) for b in Batches(numbered(9), 4, **PLAIN)] == [4, 4, 1]


def test_shards_share_out_each_batch():
    batches = Batches(numbered(12), 6, shuffle=True, **PLAIN)
    parts = [batches.sharded(rank, 2).at(1) for rank in range(2)]
    together = numbers(batches.at(1))
    assert numbers(parts[0]) == together[::2]
    assert numbers(parts[1]) == together[1::2]


def test_pixels_are_normalised_per_channel():
    data = ImageSet(torch.full((2, 3, 2, 2), 51, dtype=torch.uint8), torch.zeros(2).long(), ("a",))
    batch = Batches(data, 2, mean=(0.2, 0.1, 0.0), std=(1.0, 0.5, 0.1)).at(0)
    expected = torch.tensor([0.0, 0.2, 2.0])[None, :, None, None].expand(2, 3, 2, 2)
    assert_close(batch.images, expected, atol=1e-6, rtol=0)
    assert data.pixels.eq(51).all()


def test_crops_and_mirrors_are_those_of_a_plain_loop():
    images = torch.randint(1, 256, (16, 3, 6, 6), dtype=torch.uint8)
    augmented = Augment(pad=2, flip=True)(images, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, source in zip(augmented, padded, strict=True):
        found = [
            (top, left, mirror)
            for top in range(5)
            for left in range(5)
            for mirror in (False, True)
            for crop in [source[:, top : top + 6, left : left + 6]]
            if torch.equal(image, crop.flip(2) if mirror else crop)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 8
    assert {mirror for *_, mirror in seen} == {False, True}


def test_without_mirrors_or_padding_nothing_changes():
    images = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    assert_close(Augment(pad=0, flip=False)(images, torch.Generator()), images)


def test_random_areas_keep_the_size_and_stay_inside_the_image():
    ramp = torch.arange(64).float()[None, None, None].expand(8, 3, 64, 64).to(torch.uint8)
    out = Augment(pad=0, flip=False, min_area=0.3)(ramp, torch.Generator().manual_seed(0))
    assert out.shape == ramp.shape
    width = out[:, 0, 0, -1] - out[:, 0, 0, 0]
    assert (width > 64 * 0.3**0.5 * 0.8).all()
    assert width.max() <= 63
    assert width.unique().numel() > 4


@pytest.mark.parametrize(("size", "pad", "area"), [(8, 1, 1.0), (32, 4, 1.0), (224, 0, 0.35)])
def test_standard_augmentation_by_size(size, pad, area):
    assert Augment.standard(size, flip=True) == Augment(pad=pad, flip=True, min_area=area)


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="batch size of 1: training needs at least 2"):
        Batches(numbered(4), 1, shuffle=True, **PLAIN)
    with pytest.raises(ValueError, match="at least two images"):
        Batches(numbered(1), 2, shuffle=True, **PLAIN)


def test_seeds_are_stable_and_unrelated():
    assert seed_of(0, "step", 1) == seed_of(0, "step", 1)
    assert len({seed_of(s, w, i) for s in range(3) for w in "ab" for i in range(50)}) == 300
