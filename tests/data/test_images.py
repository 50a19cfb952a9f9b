import errno
import os
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from stepwell.data import ImageSet, load_images, load_unlabeled
from stepwell.data.decoding import Files, image_files, read_image
from stepwell.data.folders import check_outside


def test_a_folder_of_classes_is_read_whole_and_a_part_set_aside(image_folder):
    splits = load_images(str(image_folder(("cat", "dog"), count=10)))
    assert (len(splits.train), len(splits.test)) == (16, 4)
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.size == 16
    assert torch.bincount(splits.test.labels).tolist() == [2, 2]
    assert "no test part: 4 of its 20 images" in splits.notes[0]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_train_and_test_folders_are_taken_as_they_are(image_folder, tmp_path, held_out):
    image_folder(count=5, root=tmp_path / "d" / "train")
    image_folder(count=3, root=tmp_path / "d" / held_out)
    splits = load_images(str(tmp_path / "d"))
    assert (len(splits.train), len(splits.test)) == (10, 6)
    assert splits.validation is None
    assert bool(splits.notes) == (held_out == "val")


def test_a_validation_folder_beside_both_is_the_validation_part(image_folder, tmp_path):
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        image_folder(count=count, root=tmp_path / "d" / part)
    splits = load_images(str(tmp_path / "d"))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (10, 4, 6)


def test_pixels_are_those_of_the_files(image_folder):
    root = image_folder(count=4)
    splits = load_images(str(root))
    every = torch.cat([splits.train.pixels, splits.test.pixels])
    originals = [np.asarray(Image.open(p)) for p in sorted(root.rglob("*.png"))]
    ours = {x.permute(1, 2, 0).numpy().tobytes() for x in every}
    assert ours == {o.tobytes() for o in originals}


def test_images_of_other_sizes_are_scaled_and_cropped_in_the_middle(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 255  # the middle square is white
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 20) == 255).all()
    assert read_image(tmp_path / "a.png", 8).shape == (3, 8, 8)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png", 20).shape == (3, 20, 20)


def test_a_set_too_large_for_memory_is_decoded_as_it_is_read(image_folder, monkeypatch):
    root = str(image_folder(count=10))
    whole = load_images(root)
    monkeypatch.setattr("stepwell.data.decoding.MEMORY", 0)
    lazy = load_images(root)
    assert isinstance(lazy.train.pixels, Files)
    assert_close(lazy.train.pixels[torch.arange(16)], whole.train.pixels)
    assert lazy.train.statistics() == whole.train.statistics()
    assert lazy.train.fingerprint != lazy.test.fingerprint


def test_the_fingerprint_follows_the_content(image_folder):
    root = image_folder(count=10)
    first = load_images(str(root)).train.fingerprint
    assert load_images(str(root)).train.fingerprint == first
    assert load_images(str(root), size=8).train.fingerprint != first
    for p in root.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(p))).save(p)
    assert load_images(str(root)).train.fingerprint != first


def test_digits_need_no_download():
    splits = load_images("digits")
    assert len(splits.train) + len(splits.test) == 1797
    assert splits.train.size == 8
    assert not splits.flip
    assert int(splits.train.pixels.max()) == 255
    assert load_images("digits", 16).train.size == 16


def test_a_split_takes_its_share_of_every_class_and_is_the_same_each_time():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2)
    data = ImageSet(torch.arange(62 * 3 * 4).reshape(62, 3, 2, 2).byte(), labels, ("a", "b", "c"))
    rest, part = data.split(0.1)
    assert torch.bincount(part.labels).tolist() == [5, 1, 1]
    assert len(rest) + len(part) == 62
    assert_close(data.split(0.1)[1].pixels, part.pixels)


def corrupt(root):
    path = root / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:60])


def text_named_image(root):
    (root / "dog" / "x.jpg").write_text("no image")


def no_classes(root):
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")


def empty_class(root):
    (root / "empty").mkdir()


def empty_class_and_cut_off(root):
    empty_class(root)
    file = root / "cat" / "cut.jpg"
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(file)
    file.write_bytes(file.read_bytes()[:-40])


def single(root):
    for p in list((root / "cat").iterdir())[1:]:
        p.unlink()


def other_classes(root):
    (root / "train").mkdir()
    (root / "test").mkdir()
    for part in ("train", "test"):
        shutil.copytree(root / "cat", root / part / "cat")
        shutil.copytree(root / "dog", root / part / ("dog" if part == "train" else "wolf"))


def parts_with_capitals(root):
    for name in ("Train", "Valid"):
        shutil.copytree(root, root.parent / "parts" / name)
    shutil.rmtree(root)
    (root.parent / "parts").rename(root)


def floats(root):
    Image.fromarray(np.full((16, 16), 1000.0, np.float32)).save(root / "cat" / "x.tiff")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (parts_with_capitals, r"Train looks like a part .*: call the parts train/, val/ and test/"),
        (floats, r"cannot read image .*x\.tiff \(its values run from 1000 to 1000"),
        (corrupt, r"cannot read image .*cat.0\.png .*: replace or remove it"),
        (text_named_image, r"cannot read image .*x\.jpg"),
        (lambda root: shutil.rmtree(root / "dog"), "at least two class folders .* only 'cat'"),
        (no_classes, "at least two class folders .* found none"),
        (empty_class, "class folder .*empty holds no image"),
        (empty_class_and_cut_off, "class folder .*empty holds no image.*; cannot read .*cut.jpg"),
        (single, "class 'cat' has one image only"),
        (other_classes, "differ in classes, such as 'dog'"),
    ],
)
def test_bad_folders_are_refused_by_name(image_folder, harm, message):
    root = image_folder()
    harm(root)
    with pytest.raises(ValueError, match=message):
        load_images(str(root))


@pytest.mark.parametrize("size", [None, 16])
def test_all_images_that_cannot_be_read_are_told_at_once(image_folder, size):
    root = image_folder()
    bad = [root / "cat" / "1.png", *(root / "dog" / f"{i}.png" for i in range(6))]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    named = ", ".join(re.escape(str(path)) for path in bad[:5])
    message = rf"cannot read 7 of 12 images, {named} and 2 more \(the first: .+\): replace or remove"
    with pytest.raises(ValueError, match=message):
        load_images(str(root), size)
    with pytest.raises(ValueError, match=message):
        load_unlabeled(root, 16, ("a",))
    with pytest.raises(ValueError, match=r"cannot read 2 of 6 images, .*cat.1\.png, .*dog.0\.png \("):
        Files(image_files(root), 16)[torch.arange(1, 7)]


@pytest.mark.parametrize("memory", [0, 2**30])
def test_one_message_names_what_is_bad_in_all_parts(image_folder, tmp_path, monkeypatch, memory):
    monkeypatch.setattr("stepwell.data.decoding.MEMORY", memory)
    root = tmp_path / "images"
    for part in ("train", "val", "test"):
        image_folder(root=root / part)
    bad = [root / "train" / "cat" / "1.png", root / "test" / "dog" / "0.png"]
    for path in bad:
        path.write_text("no image")
    with pytest.raises(ValueError, match=rf"cannot read 2 of 36 images, {bad[0]}, {bad[1]} \("):
        load_images(str(root))
    for part in ("train", "val", "test"):
        (root / part / "zebra").mkdir()
    empty = ", ".join(str(root / part / "zebra") for part in ("train", "test", "val"))
    with pytest.raises(
        ValueError, match=rf"3 class folders hold no image \(\.bmp.*\), {empty}: fill or remove"
    ):
        load_images(str(root))
    (root / "val" / "zebra" / "notes.txt").write_text("")
    told = "files in them that are no images: 1, such as notes.txt"
    with pytest.raises(ValueError, match=told):
        load_images(str(root))


def test_a_folder_that_cannot_be_listed_is_named(image_folder, monkeypatch):
    root = image_folder(("a", "b"), 2, (8, 8))
    list_folder = os.scandir

    def scandir(place):
        if str(place).endswith("b"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return list_folder(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"folder .*b cannot be read \(Permission denied\): change"):
        load_images(str(root))


def test_a_file_that_can_be_read_all_the_same_is_no_bad_one(image_folder):
    root = image_folder()
    path = root / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:-12])  # without its last, empty chunk
    assert len(load_images(str(root)).train) == 10


def test_a_large_set_is_refused_by_its_first_bad_header(image_folder, monkeypatch):
    """It is decoded batch by batch, and a file that is no image would stop the training."""
    monkeypatch.setattr("stepwell.data.decoding.MEMORY", 0)
    root = image_folder()
    (root / "dog" / "x.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read image .*x\.jpg .*: replace or remove it"):
        load_images(str(root))


def test_unknown_data_is_answered_with_what_there_is():
    with pytest.raises(ValueError, match="no data 'nowhere': give a folder .* digits, cifar10"):
        load_images("nowhere")


def test_labels_out_of_range_name_the_range():
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels run from 0 to 2, out of range for 2 classes"):
        ImageSet(pixels, torch.tensor([0, 2]), ("a", "b"))
    with pytest.raises(ValueError, match="2 images but 1 labels"):
        ImageSet(pixels, torch.tensor([0]), ("a", "b"))


def test_sixteen_bits_are_scaled_and_turned_photographs_set_upright(tmp_path):
    ramp = (np.arange(256, dtype=np.uint16).reshape(16, 16)) * 257
    Image.fromarray(ramp).save(tmp_path / "16.png")
    assert_close(read_image(tmp_path / "16.png", 16)[0].flatten(), torch.arange(256).byte())
    upright = Image.new("RGB", (16, 16), "blue")
    upright.paste("red", (0, 0, 16, 8))
    exif = upright.getexif()
    exif[0x112] = 3  # taken upside down
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    red = read_image(tmp_path / "turned.png", 16)[0, :, 0]
    assert_close(red, torch.tensor([255] * 8 + [0] * 8).byte())


@pytest.mark.parametrize(("top", "scale"), [(1, 255), (255, 1)])
def test_floating_point_images_are_scaled(tmp_path, top, scale):
    ramp = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "f.tiff")
    expected = torch.from_numpy(np.rint(ramp * scale).astype(np.uint8))
    assert_close(read_image(tmp_path / "f.tiff", 16)[1], expected)


def test_a_folder_that_is_called_like_an_image_is_none(image_folder):
    root = image_folder()
    (root / "cat" / "more.jpg").mkdir()
    assert len(load_images(str(root)).train) == 10


def test_a_folder_beside_the_parts_is_said_not_to_be_used(image_folder, tmp_path):
    root = tmp_path / "images"
    for part in ("train", "valid", "masks"):
        image_folder(root=root / part)
    unused, aside = load_images(str(root)).notes
    assert "valid is not used: parts are train/, val/ and test/" in unused
    assert "has no test part" in aside


def test_results_do_not_go_among_the_class_folders(image_folder, tmp_path):
    flat, parts = image_folder(), tmp_path / "parts"
    image_folder(root=parts / "train")
    for data, out in ((flat, flat / "run"), (flat, flat), (parts, parts / "train" / "a" / "run")):
        with pytest.raises(ValueError, match="would be taken for one: name another place"):
            check_outside(str(data), out)
    check_outside(str(parts), parts / "run")
    check_outside(str(flat), tmp_path / "run")
    check_outside("digits", tmp_path / "run")


def test_a_split_never_takes_a_whole_class():
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    data = ImageSet(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), labels, ("a", "b"))
    rest, _ = data.split(0.8)
    assert torch.bincount(rest.labels).tolist() == [1, 1]


@given(st.lists(st.integers(3, 9), min_size=2, max_size=4), st.integers(1, 3))
def test_parts_share_no_image_and_are_the_whole_together(counts, count):
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    names = tuple("abcd"[: len(counts)])
    whole = ImageSet(torch.arange(len(labels)).view(-1, 1, 1, 1), labels, names)
    parts = [whole.part(i + 1, count) for i in range(count)]
    members = [p.pixels.flatten().tolist() for p in parts]
    assert sorted(i for m in members for i in m) == list(range(len(labels)))
    assert all(m == sorted(m) for m in members)
    assert_close(whole.part(1, count).pixels, parts[0].pixels)  # the same at every call
    sizes = [torch.bincount(p.labels, minlength=len(counts)) for p in parts]
    assert max(len(p) for p in parts) - min(len(p) for p in parts) <= 1
    for a in sizes:
        assert all((a - b).abs().max() <= 1 for b in sizes)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((0, 2), "no part 0 of 2: parts are numbered from 1 to 2"),
        ((1, 4), "class 'b' has 3 images"),
    ],
)
def test_parts_that_cannot_be(part, message):
    whole = ImageSet(torch.zeros(8, 3, 1, 1), torch.tensor([0] * 5 + [1] * 3), ("a", "b"))
    with pytest.raises(ValueError, match=message):
        whole.part(*part)
