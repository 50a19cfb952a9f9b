import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from stepwell.data import Augment, Batches, Extra, ImageSet, Mix, Replace, seed_of
from stepwell.data.decoding import Files

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


@pytest.mark.parametrize(("images", "world"), [(9, 2), (8, 3), (8, 4), (7, 2)])
def test_no_share_of_a_small_last_batch_is_too_small_to_train_on(images, world):
    batches = Batches(numbered(images), 6, shuffle=images != 7, **PLAIN)  # the last: 3, 2, 2, 1
    shares = [numbers(batches.sharded(rank, world).at(1)) for rank in range(world)]
    assert min(map(len, shares)) >= 2
    assert {i for share in shares for i in share} == set(numbers(batches.at(1)))


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


# sets that join


def unlabeled(count, first=100):
    """Like `numbered`, with numbers from `first` and without labels."""
    pixels = torch.arange(first, first + count, dtype=torch.uint8)[:, None, None, None]
    return ImageSet(pixels.expand(-1, 3, 4, 4).contiguous(), torch.full((count,), -1), ("a",))


def joined(n=24, batch_size=8, *extra, **options):
    return Batches(numbered(n), batch_size, shuffle=True, extra=extra, **options, **PLAIN)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 40),
    batch_size=st.integers(4, 12),
    sizes=st.lists(st.tuples(st.integers(1, 30), st.sampled_from([None, 0.1, 0.25])), max_size=2),
)
@pytest.mark.filterwarnings("ignore:the last batch of an epoch", "ignore:.* are never shown")
def test_an_epoch_stays_a_pass_over_the_training_part_and_others_go_round(n, batch_size, sizes):
    extra = [
        Extra(unlabeled(m, 100 + 50 * i), share) for i, (m, share) in enumerate(sizes)
    ]  # fmt: skip
    try:
        batches = joined(n, batch_size, *extra)
    except ValueError as error:
        assert "leave no room" in str(error)  # noqa: PT017
        return
    counts = [dict.fromkeys(range(100 + 50 * i, 100 + 50 * i + m), 0) for i, (m, _) in enumerate(sizes)]
    for epoch in range(3):
        seen = []
        for position in range(epoch * len(batches), (epoch + 1) * len(batches)):
            members = numbers(batches.at(position))
            assert 2 <= len(members) <= batch_size
            own = [m for m in members if m < 100]
            seen += own
            for i, (_, share) in enumerate(sizes):
                theirs = [m for m in members if 100 + 50 * i <= m < 150 + 50 * i]
                if share is not None:
                    assert abs(len(theirs) - share * batch_size) < 1
                for m in theirs:
                    counts[i][m] += 1
        lost = {0: 0, 1: 1}[n - len(seen)] if extra else n % batch_size == 1
        assert len(seen) == len(set(seen)) == n - lost
    for count in counts:
        assert max(count.values()) - min(count.values()) <= 1


def test_sets_without_a_share_come_as_their_numbers_are():
    batches = joined(30, 10, Extra(unlabeled(60)))
    assert len(batches) == 9
    members = [numbers(batches.at(p)) for p in range(9)]
    assert all(len(m) == 10 for m in members)
    assert all(sum(v < 100 for v in m) in (3, 4) for m in members)
    assert sorted(v for m in members for v in m if v >= 100) == list(range(100, 160))
    assert any(m[0] >= 100 for m in members)  # shuffled within the batch
    assert any(m[0] < 100 for m in members)


def test_labels_follow_their_images_into_every_shard_and_stream(tmp_path):
    batches = joined(30, 10, Extra(unlabeled(9), 0.3))
    for batch in batches:
        assert [label == -1 for label in batch.labels.tolist()] == [v >= 100 for v in numbers(batch)]
    parts = [batches.sharded(rank, 2).at(3) for rank in range(2)]
    whole = numbers(batches.at(3))
    assert [numbers(p) for p in parts] == [whole[::2], whole[1::2]]
    for i in range(9):
        pixels = np.full((4, 4, 3), 100 + i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    files = Files(sorted(tmp_path.iterdir()), 4)
    on_disk = joined(30, 10, Extra(ImageSet(files, torch.full((9,), -1), ("a",)), 0.3))
    for a, b in zip(batches.stream(2, 12), on_disk.stream(2, 12), strict=True):
        assert_close(tuple(a), tuple(b), rtol=0, atol=0)


def test_changes_of_a_batch_are_functions_of_seed_epoch_and_step():
    data = ImageSet(
        torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8),
        torch.arange(20) % 4,
        tuple("abcd"),
    )
    make = lambda seed: Batches(  # noqa: E731
        data,
        6,
        shuffle=True,
        seed=seed,
        augment=Augment.of("combined", 8, False),
        changes=[Replace("composites", 0.3), Replace("noise", 0.2), Mix("cutmix", 4)],
        extra=[Extra(ImageSet(data.pixels, torch.full((20,), -1), data.classes), 0.3)],
        **PLAIN,
    )
    whole = [*make(3).stream(0, 12)]
    for a, b in zip(whole[7:], make(3).stream(7, 12), strict=True):
        assert_close(tuple(a), tuple(b), rtol=0, atol=0)
    assert all(batch.labels.shape == (len(batch.images), 4) for batch in whole)
    assert not torch.equal(make(4).at(0).images, whole[0].images)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([Extra(unlabeled(9), 0.0)], "share of every batch lies between 0 and 1, neither"),
        ([Extra(unlabeled(9), 0.5), Extra(unlabeled(9), 0.45)], "leave no room"),
        ([Extra(unlabeled(9), 0.95)], "leave no room"),
        (
            [Extra(ImageSet(torch.zeros(1, 3, 2, 2).byte(), torch.tensor([-1]), ("a",)))],
            "images of 2 pixels cannot join those of 4",
        ),
    ],
)
def test_shares_that_cannot_be_are_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        joined(24, 8, *extra)


def test_a_lone_last_image_is_dropped_where_other_sets_join_too():
    """256 images at 128 a batch, of which other images take 0.64: the last would stand alone."""
    images = ImageSet(torch.zeros(256, 3, 2, 2, dtype=torch.uint8), torch.zeros(256).long(), ("a",))
    with pytest.warns(UserWarning, match="would hold 1 of 256 images: it is dropped"):
        batches = Batches(
            images, 128, mean=(0.0,) * 3, std=(1.0,) * 3, shuffle=True, extra=[Extra(images, 0.005)]
        )
    assert [len(labels) for _, labels in batches] == [128, 128]


def test_images_that_are_never_shown_are_told_of():
    images = ImageSet(torch.zeros(20, 3, 2, 2, dtype=torch.uint8), torch.zeros(20).long(), ("a",))
    with pytest.warns(UserWarning, match="20 images that join the training ones are never shown"):
        batches = Batches(
            images, 10, mean=(0.0,) * 3, std=(1.0,) * 3, shuffle=True, extra=[Extra(images, 0.01)]
        )
    assert all((indices < 20).all() for indices in map(batches._indices, range(6)))
