"""Images with boxes: what is read, repaired and refused; and their batches."""

import json
import os
import shutil
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepwell.data.box_batches import MEAN, STD, BoxBatches, collated, flipped, restored, scaled
from stepwell.data.box_files import BoxFiles, keep_test, read_kept, read_parts
from stepwell.data.box_predictions import predictions_for
from stepwell.data.boxes import read_boxes, read_images, unlabelled
from stepwell.data.coco import is_number, memory_of
from stepwell.data.copies import check_apart
from stepwell.data.loader import normalise
from stepwell.measure.detection import precisions
from stepwell.types import Boxes
from tiny_boxes import change, write_boxes, write_json


@pytest.fixture
def root(tmp_path):
    write_boxes(tmp_path)
    return tmp_path


def read(root, name="train", **more):
    return read_boxes(root / f"{name}.json", root / "images", **more)


def test_classes_count_from_zero_in_the_order_of_ids_that_have_holes(root):
    found = read(root)
    assert found.classes == ("square", "disc")
    assert found.categories == (3, 7)
    assert found.counts == {"square": 8, "disc": 8}
    assert found.truth[0].labels.tolist() == [0, 1]
    assert found.sizes[0] == (48, 64)
    assert not found.notes
    rows = found.coco()["annotations"]
    assert rows[0]["bbox"] == json.loads((root / "train.json").read_text())["annotations"][0]["bbox"]


def more(entries="images", **entry):
    return {entries: lambda rows: [*rows, entry]}


def again(**changes):
    return {"images": lambda rows: [*rows, rows[0] | changes]}


def turned(rows):
    return [rows[0] | {"width": 48, "height": 64}, *rows[1:]]


def with_box(box, **more):
    return {
        "annotations": lambda rows: [
            *rows,
            {"id": 99, "image_id": 2, "category_id": 3, "bbox": box, **more},
        ]
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (with_box([70, 2, 5, 5]), r"train-2.png, \[70, 2, 5, 5\], lies outside of its 64 × 48 pixels"),
        (with_box([20, 2, -5, 5]), r"train-2.png is reversed, \[20, 2, -5, 5\]"),
        (with_box([float("nan"), 2, 5, 5]), r"train-2.png is \[nan, 2, 5, 5\], not four finite"),
        (with_box([1, 2, 5]), "train-2.png is .* not four finite numbers .*: put it"),
        (with_box([1, 2, 5, 5], iscrowd="1"), "train-2.png has iscrowd '1': 0 or 1 is meant"),
        (with_box([1, 2, 5, 5], iscrowd=7), "train-2.png has iscrowd 7: 0 or 1 is meant"),
        ({"annotations": lambda rows: [*rows, None]}, r"entry \d+ of its annotations is None"),
        (
            {"annotations": lambda rows: [row | {"iscrowd": 1} for row in rows]},
            "has crowd regions alone",
        ),
        (with_box([1, 2, 5, 5], category_id=4), "train-2.png has category 4, .* listed: put it"),
        (with_box([1, 2, 5, 5], category_id=True), "train-2.png has category True, which is not"),
        (with_box([1, 2, 5, 5], image_id=77), "annotation 99 is of image 77, which is not listed"),
        (again(id=50), "lists image train-1.png .* twice, by its file"),
        (again(file_name="a.png"), "twice, by its id"),
        (again(id=50, file_name="./train-1.png"), "twice, as train-1.png and as ./train-1.png"),
        (more(id=1 << 70, file_name="a.png"), r"image .* needs an id \(a number\) and a file_name"),
        (more(id=9, file_name="no.png"), "1 of 9 images that do not exist, .*no.png"),
        (more(id=9, file_name="../x.png"), "x.png may lie outside of"),
        ({"images": turned}, "train-1.png has 64 × 48 pixels as viewers"),
        (more("categories", id=9, name="disc"), "category disc .id 9. stands twice"),
        ({"categories": []}, "has no category"),
        ({"annotations": []}, "no box in any image"),
        ({"annotations": [{"image_id": 1, "category_id": 3}]}, "train-1.png has no bbox"),
        ({"images": 3}, "its images are no list"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_one_line_that_names_its_image(root, changes, message):
    change(root / "train.json", **changes)
    with pytest.raises(ValueError, match=message) as error:
        read(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id"', "damaged .* cut off"),
        ("[" * 10**5, "nested too deeply"),
        ("[]", "no COCO json"),
    ],
)
def test_a_damaged_json_is_one_line(root, text, message):
    (root / "train.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(root)


def taken(content: bytes) -> int:
    """The bytes of memory that the content of a json file and reading it take at most."""
    tracemalloc.start()
    json.loads(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + len(content)


@pytest.mark.parametrize("content", [
    *("{" + ",".join(f'"{i:x}":0' for i in range(keys)) + "}" for keys in (21_846, 43_691, 87_382)),
    "[" * 900 + "]" * 900, '["' + "a" * 10**5 + r"\n" + '"]', '["' + "a" * 10**5 + '\U0001f600"]',
])  # fmt: skip
def test_a_json_takes_no_more_memory_than_is_told(content):
    assert taken(content.encode()) < memory_of(content.encode())


@pytest.mark.parametrize("entry", [
    "[]", "[0]", "{}", '{"a":1}', '{"a":{"b":[]}}', "300", "1.5", '"ab"', '"aé\U0001f600"', r'"\ud83d"',
])  # fmt: skip
def test_entries_take_no_more_memory_than_is_told(root, entry, monkeypatch):
    content = ("[" + ",".join([entry] * 9000) + "]").encode()
    assert taken(content) < memory_of(content)
    (root / "train.json").write_bytes(content)
    monkeypatch.setattr("stepwell.data.coco.MEMORY", memory_of(content) - 1)
    with pytest.raises(ValueError, match="train.json may take .* GiB of memory, more than .*split it"):
        read(root)


def test_repeated_boxes_are_told_and_a_part_without_boxes_measures_nothing(root):
    change(
        root / "train.json",
        annotations=lambda rows: [*rows, rows[0] | {"id": 99}, rows[0] | {"id": 98}],
    )
    found = read(root)
    assert "2 boxes repeat another one (class and place) and count twice" in "\n".join(found.notes)
    change(root / "train.json", annotations=lambda rows: [row | {"iscrowd": 1} for row in rows])
    with pytest.raises(ValueError, match="no box of an object, so nothing can be measured on it"):
        read_boxes(root / "train.json", root / "images", found.classes)


def test_boxes_without_width_or_height_are_left_out():
    boxes = Boxes.of([(0, 0, 2, 2), (1, 1, 1, 5), (1, 5, 3, 5)], [0, 1, 2])
    assert boxes.with_area().labels.tolist() == [0]


def test_what_can_be_repaired_is_repaired_and_told(root):
    more = [
        {"image_id": 1, "category_id": 3, "bbox": [-4, 40, 20, 30]},
        {"image_id": 2, "category_id": 3, "bbox": [5, 5, 0, 9]},
        {"image_id": 3, "category_id": 7, "bbox": [0, 0, 60, 40], "iscrowd": 1},
    ]
    change(
        root / "train.json",
        annotations=lambda rows: [*rows, *({"id": 50 + i} | row for i, row in enumerate(more))],
        images=lambda rows: [*rows, {"id": 20, "file_name": "empty.png"}],
        categories=lambda rows: [
            *rows,
            {"id": 0, "name": "Background"},
            {"id": 9, "name": "N/A"},
            {"id": 8, "name": "star"},
        ],
    )
    Image.new("RGB", (40, 30)).save(root / "images" / "empty.png")
    found = read(root)
    assert found.truth[0].boxes[2].tolist() == [0, 40, 16, 48]
    assert [found.truth[i].total for i in (1, 2, 8)] == [2, 3, 0]
    assert found.truth[2].crowd.tolist() == [False, False, True]
    assert found.classes == ("square", "disc", "star")  # background is the head's business
    assert found.sizes[8] == (30, 40)
    notes = "\n".join(found.notes)
    for words in (
        "boxes of no area were left out: 1, of train-2.png", "cut at its edge: 1, of train-1.png",
        "1 of 9 images have no box and count as background, empty.png", "1 crowd regions",
        "category Background has no box", "category N/A has no box", "has no box of star",
    ):  # fmt: skip
        assert words in notes


def test_test_parts_have_the_classes_of_training_and_none_of_its_images(root):
    write_boxes(root, "test", 3, seed=1)
    train = read(root)
    swapped = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
    change(
        root / "test.json",
        categories=swapped,
        annotations=lambda rows: [r | {"category_id": 1} for r in rows],
    )
    test = read(root, "test", classes=train.classes)
    assert test.truth[0].labels.tolist() == [1, 1]
    assert test.results(test.truth)[0]["category_id"] == 1
    change(root / "test.json", categories=[{"id": 1, "name": "Disc"}, {"id": 2, "name": " square"}])
    assert read(root, "test", classes=train.classes).truth[0].labels.tolist() == [1, 1]
    change(root / "test.json", categories=[{"id": 1, "name": "star"}])
    with pytest.raises(ValueError, match="boxes of star, which no training image has"):
        read(root, "test", classes=train.classes)
    shutil.copy(root / "images" / "train-5.png", root / "images" / "test-2.png")
    with pytest.raises(
        ValueError, match=r"test-2.png is training image .*train-5.png \(equal content\)"
    ):
        check_apart({"training": train, "validation": None, "test": test})


def test_images_of_one_name_in_two_folders_need_their_path(root):
    for folder, file in (("a", "train-1.png"), ("b", "train-2.png")):
        (root / "images" / folder).mkdir()
        shutil.copy(root / "images" / file, root / "images" / folder / "same.png")
    boxes = [{"image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9]}]
    write_json(root / "two.json", [{"id": 1, "file_name": "same.png"}], boxes)
    with pytest.raises(
        ValueError, match="same.png may be .*a/same.png or .*b/same.png: name it by its path"
    ):
        read(root, "two")
    write_json(
        root / "two.json",
        [{"id": i, "file_name": f"{n}/same.png"} for i, n in ((1, "a"), (2, "b"))],
        boxes,
    )
    assert [file.parent.name for file in read(root, "two").files] == ["a", "b"]
    change(root / "two.json", images=[{"id": 1, "file_name": "images/a/same.png"}])  # from the json on
    assert [file.parent.name for file in read(root, "two").files] == ["a"]


def test_drawn_parts_without_a_box_are_refused(root):
    aside = {file.name for file in read_parts(root).test.files}
    listed = json.loads((root / "train.json").read_text())["images"]
    empty = {entry["id"] for entry in listed if entry["file_name"] in aside}
    change(
        root / "train.json", annotations=lambda rows: [r for r in rows if r["image_id"] not in empty]
    )
    with pytest.raises(ValueError, match="images set aside for testing have no box, .* with --test"):
        read_parts(root)


def test_copies_of_an_image_stay_in_one_part(root):
    for i in (1, 2, 3):
        shutil.copy(root / "images" / "train-4.png", root / "images" / f"train-{i}.png")
    parts = read_parts(root)
    names = [{file.name for file in part.files} for part in (parts.train, parts.test)]
    copies = {f"train-{i}.png" for i in (1, 2, 3, 4)}
    assert copies in [own & copies for own in names]
    notes = " ".join(parts.notes)
    assert "copies of other images, which count twice: 3, train-2.png of train-1.png" in notes
    same = read(root).subset([0, 1])
    with pytest.raises(ValueError, match="is the only image here, so none can be set aside: add"):
        same.split(0.5)


def test_a_name_that_no_json_can_hold_is_refused(root):
    odd = Path(os.fsdecode(os.fsencode(root / "images") + b"/caf\xe9.png"))
    shutil.copy(root / "images" / "train-1.png", odd)
    with pytest.raises(ValueError, match=r"caf\\udce9.png' is no UTF-8, so no json .*: rename it"):
        read_images(root / "images")


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16", "P", "exif"])
def test_images_of_all_modes_are_upright_rgb(tmp_path, mode):
    values = np.linspace(0, 255, 40 * 20).reshape(20, 40).astype(np.uint8)
    image = Image.fromarray(values)
    images = tmp_path / "images"
    images.mkdir()
    file, more, size = images / "x.png", {}, (20, 40)
    if mode == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        file, more, size = images / "x.jpg", {"exif": exif}, (40, 20)
    elif mode == "CMYK":
        file, image = images / "x.tif", image.convert("CMYK")
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(file, **more)
    entry = {"id": 1, "file_name": file.name, "width": size[1], "height": size[0]}
    write_json(
        tmp_path / "t.json", [entry], [{"image_id": 1, "category_id": 3, "bbox": [0, 0, *size[::-1]]}]
    )
    found = read_boxes(tmp_path / "t.json", images)
    assert found.sizes == (size,)
    batch = BoxBatches(found, 1, size=40).at(0)
    assert batch.sizes == (size,)
    assert batch.truth[0].boxes.tolist() == [[0, 0, size[1], size[0]]]
    if mode not in ("exif", "P"):
        last = batch.images[0, :, size[0] - 1, size[1] - 1]
        assert last.tolist() == pytest.approx([2.249, 2.429, 2.64], abs=0.02)


def test_boxes_move_with_the_images_and_come_back():
    own = Boxes.of([[2, 4, 10, 8]], [0])
    assert flipped(own, 20).boxes.tolist() == [[10, 4, 18, 8]]
    assert scaled(own, 2, 0.5).boxes.tolist() == [[4, 2, 20, 4]]
    assert scaled(own, 2, 0.5).areas.tolist() == [32]
    back = restored(torch.tensor([[1.0, 1.0, 5.0, 9.0]]), (8, 10), (16, 30))
    assert back.tolist() == [[3, 2, 15, 16]]  # within the edges


def bright_box(image):
    """The box of the bright square, which is not blurred away, in a normalised image."""
    mask = (image > 1.2).all(0)
    rows, columns = (mask.any(d).nonzero().flatten() for d in (1, 0))
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def test_batches_are_functions_of_the_position_and_boxes_stay_on_their_objects(root):
    found = read(root)
    batches = BoxBatches(found, 3, size=64, flip=True, zoom=0.6, shuffle=True, seed=1)
    assert len(batches) == 3
    late = [*batches.stream(4, 6)]
    assert torch.equal(batches.at(4).images, late[0].images)
    assert not torch.equal(batches.at(1).images, batches.at(4).images)
    widths = set()
    for batch in batches.stream(0, 6):
        for image, own, size in zip(batch.images, batch.truth, batch.sizes, strict=True):
            widths.add(size[1])
            (square,) = own.boxes[own.labels == 0]
            assert (bright_box(image) - square).abs().max() < 2
            assert not image[:, size[0] :].any()
    assert len(widths) > 5
    parts = [batches.sharded(rank, 2).at(0) for rank in range(2)]
    assert [len(part.images) for part in parts] == [2, 1]


def test_a_pass_in_order_batches_images_of_one_shape(tmp_path):
    write_boxes(tmp_path, count=2)
    write_boxes(tmp_path, "tall", 2, size=(64, 200))
    wide, tall = read(tmp_path).files, read(tmp_path, "tall").files
    batches = BoxBatches(unlabelled([wide[0], tall[0], wide[1], tall[1]]), 4, size=64)
    assert batches.order == [0, 2, 1, 3]
    assert [(len(b.images), b.sizes[0]) for b in batches] == [(2, (48, 64)), (2, (64, 20))]


def test_a_folder_has_parts_in_all_usual_forms(tmp_path):
    for name, count, seed in (("train", 6, 0), ("val", 2, 1), ("test", 2, 2)):
        write_boxes(tmp_path, name, count, seed)
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "more.png")
    parts = read_parts(tmp_path)
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [6, 2, 2]
    assert "no json lists 1 images, which are left out: more.png" in parts.notes[-1]
    (tmp_path / "test.json").unlink()  # a validation part alone is the test part
    parts = read_parts(tmp_path)
    assert (len(parts.test), parts.validation) == (2, None)
    one = read_parts(tmp_path / "train.json")
    assert (len(one.train), len(one.test)) == (5, 1)
    assert "set aside" in one.notes[-1]
    coco, roboflow = tmp_path / "coco", tmp_path / "roboflow"
    (coco / "annotations").mkdir(parents=True)
    for name in ("train", "val"):
        shutil.copytree(tmp_path / "images", coco / f"{name}2017")
        shutil.copy(tmp_path / f"{name}.json", coco / "annotations" / f"instances_{name}2017.json")
        shutil.copytree(tmp_path / "images", roboflow / name)
        shutil.copy(tmp_path / f"{name}.json", roboflow / name / "_annotations.coco.json")
    for root in (coco, roboflow):
        parts = read_parts(root)
        assert (len(parts.train), len(parts.test), parts.train.files[0].parent.parent) == (6, 2, root)
    with pytest.raises(ValueError, match="holds no train.json"):
        read_parts(tmp_path / "images")
    with pytest.raises(ValueError, match="--size 7"):
        BoxFiles(size=7).check()


def test_predictions_made_elsewhere_are_read_by_id_or_by_name(root, tmp_path):
    images = read(root)
    predictions = partial(predictions_for, images=images, classes=images.classes, known=images)
    score = partial(dict, category_id=7, score=0.5, bbox=[1, 2, 3, 4])
    folder = tmp_path / "found"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps([score(image_id=3), score(file_name="train-1.png")]))
    content = images.with_boxes(images.truth).coco()
    (folder / "b.json").write_text(json.dumps(content))
    boxes = predictions(folder)
    assert [one.total for one in boxes] == [3, 2, 3, *[2] * 5]
    assert boxes[2].boxes[0].tolist() == [1, 2, 4, 6]
    assert (boxes[2].scores[0], boxes[2].labels[0]) == (0.5, 1)
    change(folder / "b.json", images=lambda rows: [r | {"width": 2 * r["width"]} for r in rows])
    with pytest.raises(ValueError, match=r"has 64 × 48 pixels .*b.json says 128 × 48"):
        predictions(folder)
    (folder / "b.json").unlink()
    for wrong, message in (
        (score(image_id=3, score=1.5), "train-3.png has the score 1.5"),
        (score(image_id=3, score=None), "train-3.png has no score, as predictions need: add scores"),
        (score(image_id=3, category_id=8), "train-3.png has category 8"),
    ):
        (folder / "a.json").write_text(json.dumps([wrong]))
        with pytest.raises(ValueError, match=message):
            predictions(folder)
    for image in (
        {"image_id": 99}, {"file_name": "x.png"}, {"file_name": "elsewhere/train-1.png"},
        {"file_name": "/elsewhere/train-1.png"},
    ):  # fmt: skip
        (folder / "a.json").write_text(json.dumps([score(**image)]))
        assert predictions(folder) == [None] * len(images)
    with pytest.raises(ValueError, match="no .json file"):
        predictions(root / "images")


def test_a_kept_part_knows_of_which_classes_its_boxes_tell(root, tmp_path):
    images = read(root)
    known = torch.tensor([[i % 2 == 0, True] for i in range(len(images))])
    pairs = zip(images.truth, known, strict=True)
    part = replace(images, truth=tuple(own.chosen(row[own.labels]) for own, row in pairs), known=known)
    keep_test(tmp_path, part)
    back = read_kept(tmp_path, images.classes)
    assert torch.equal(back.known, known)
    found = {"all": images.truth}  # boxes of unknown classes are neither right nor wrong
    assert precisions(back, found)["all/ap"] == pytest.approx(1.0)
    assert precisions(replace(back, known=None), found)["all/ap"] < 0.9


def test_a_folder_without_labels_is_read_and_its_bad_images_named(root):
    found = read_images(root / "images", ("a",))
    assert (len(found), found.labelled, found.boxes) == (8, False, 0)
    (root / "images" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read image .*bad.jpg"):
        read_images(root / "images")


def test_a_batch_of_two_shapes_has_zeros_beside_the_smaller_image():
    large, small = (torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((64, 40), (20, 64)))
    batch, sizes = collated([large, small])
    assert (tuple(batch.shape), sizes) == ((2, 3, 64, 64), ((64, 40), (20, 64)))
    for row, image, (high, wide) in zip(batch, (large, small), sizes, strict=True):
        assert torch.equal(row[:, :high, :wide], normalise(image[None], MEAN, STD)[0])
        assert not row[:, high:].any()
        assert not row[:, :, wide:].any()


def test_numbers_beyond_floats_are_none():
    assert [is_number(value) for value in (10**400, float("inf"), float("nan"), True, "1")] == [
        False
    ] * 5
    assert is_number(-3)
