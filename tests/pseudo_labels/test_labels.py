"""Thresholds, calibration, merged categories, the store, and teachers of every kind."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import _api

from stepwell.data.boxes import read_boxes, read_images
from stepwell.pseudo_labels import store as stores
from stepwell.pseudo_labels.categories import merged
from stepwell.pseudo_labels.make import Judge, Making, without_empty
from stepwell.pseudo_labels.store import Store
from stepwell.pseudo_labels.teachers import module_teacher, open_box_teachers
from stepwell.pseudo_labels.thresholds import as_many, best_f1, calibration, matched
from stepwell.types import Boxes
from tiny_boxes import write_boxes

NOTHING = Boxes.of([], [])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    write_boxes(root, count=6)
    return root


class Guesser(nn.Module):
    """Finds bright squares by their pixels, and nothing else, as torchvision's detectors answer."""

    calls = 0

    def forward(self, images):
        type(self).calls += len(images)
        found = []
        for image in images:
            y, x = (image[0] > 0.8).nonzero().unbind(1)
            some = len(x) > 0
            box = [[int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]] if some else []
            found.append({
                "boxes": torch.tensor(box).float().reshape(-1, 4),
                "labels": torch.ones(len(box), dtype=torch.long),
                "scores": torch.full((len(box),), 0.8),
            })  # fmt: skip
        return found


@pytest.fixture
def teacher():
    return module_teacher("guesser", Guesser(), ["__background__", "Square"], mark="1")


def test_matches_take_the_best_box_once_and_leave_crowds_out():
    truth = Boxes.of([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 60, 10]], [0, 1, 0])
    truth = truth._replace(crowd=torch.tensor([False, False, True]))
    found = Boxes.of(
        [[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [45, 0, 50, 10], [70, 0, 75, 5]],
        [0, 0, 0, 0, 1], [0.5, 0.9, 0.8, 0.7, 0.6],
    )  # fmt: skip
    seen = matched([found], [truth], 2)
    assert seen.true.tolist() == [1, 1]
    assert seen.labels.tolist() == [0, 0, 1, 0]  # the box in the crowd counts for nothing
    assert seen.right.tolist() == [True, False, False, False]
    # of the second box, less than half lies in the crowd; the third is of another class
    near = Boxes.of([[35, 0, 45, 10], [34, 0, 45, 10], [45, 0, 50, 10]], [0, 0, 1], [0.9, 0.8, 0.7])
    assert matched([near], [truth], 2).scores.tolist() == pytest.approx([0.8, 0.7])


def test_thresholds_by_hand():
    truth = [Boxes.of([[0, 0, 10, 10]] * 1, [0])] * 4
    right, wrong = [0, 0, 10, 10], [50, 50, 60, 60]
    rows = [(right, 0.9), (right, 0.7), (wrong, 0.6), (right, 0.4)]
    seen = matched([Boxes.of([box], [0], [score]) for box, score in rows], truth, 2)
    # F1 at .9: 2/5, at .7: 4/6, at .6: 4/7, at .4: 6/8
    assert_close(best_f1(seen, 0.5), torch.tensor([0.4, 0.5]))
    equal = matched([Boxes.of([box], [0], [0.6]) for box, _ in rows], truth, 1)
    assert_close(best_f1(equal, 0.5), torch.tensor([0.6]))
    labels, scores = torch.tensor([0, 0, 0, 1]), torch.tensor([0.2, 0.9, 0.5, 0.3])
    assert_close(as_many(labels, scores, [2, 9, 1], 0.5), torch.tensor([0.5, 0.3, 0.5]))


def test_calibrated_scores_are_shares_of_right_boxes():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4000, generator=generator)
    share = (3 * scores.double().logit() - 1).sigmoid()
    right = torch.rand(4000, generator=generator) < share
    labels = torch.zeros(4000, dtype=torch.long)
    seen = matched([NOTHING], [NOTHING], 1)._replace(labels=labels, scores=scores, right=right)
    adjust = calibration(seen)
    assert_close(adjust(scores).double(), share, atol=0.05, rtol=0)
    assert (adjust(scores.sort().values).diff() >= 0).all()
    assert calibration(seen._replace(right=~right)) is None
    assert calibration(matched([NOTHING], [NOTHING], 1)) is None


def test_classes_merge_by_name_and_by_rename():
    found = merged({"a": ["Cat", "dog", ""], "b": ["traffic-light", "tv"]}, ["dog", "Traffic light"])
    assert found.names == ("dog", "Traffic light", "Cat", "tv")
    assert [m.tolist() for m in found.maps] == [[2, 0, -1], [1, 3]]
    assert found.labelled.tolist() == [True, True, False, False]
    assert any("the teachers share no class" in note for note in found.notes)
    renamed = merged({"a": ["cat", "dog"], "b": ["cat", "hound"]}, renames=["2:hound=dog", "1:cat="])
    assert renamed.names == ("dog", "cat")
    assert renamed.covers.tolist() == [[True, False], [True, True]]
    few = merged({"a": ["cat", "dog"]}, ["dog", "cow"], chosen=["cow", "cat"])
    assert few.names == ("cow", "cat")
    assert "no teacher knows cow" in few.notes[0]
    near = merged({"a": ["tree"], "b": ["trees", "tree house"]})
    assert "'tree' of a and 'trees' of b" in near.notes[-1]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"renames": ["dog"]}, "write OLD=NEW"),
    ({"renames": ["cat=", "dog="]}, "--rename leaves out every class: keep one or more"),
    ({"renames": ["3:dog=cat"]}, "2:OLD=NEW for the second of 1 teachers"),
    ({"renames": ["cow=cat"]}, "a teacher has no class 'cow'; there are cat, dog"),
    ({"renames": ["1:cow=cat"]}, "teacher a has no class 'cow'"),
    ({"chosen": ["cow"]}, "--classes cow: no teacher has it"),
    ({"labels": ["cow"], "chosen": ["cow"]}, "a has no class that is trained here"),
    ({"labels": ["cow", "Cow"]}, "two classes of the labels have the name 'cow': rename one"),
])  # fmt: skip
def test_classes_that_cannot_merge_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        merged({"a": ["cat", "dog"]}, **arguments)


def test_a_rename_joins_classes_of_one_teacher():
    found = merged({"a": ["car", "truck", "vehicle"]}, renames=["car=vehicle", "truck=vehicle"])
    assert found.names == ("vehicle",)
    assert found.maps[0].tolist() == [0, 0, 0]
    twice = {"a": ["Car", "car"]}
    with pytest.raises(ValueError, match="of a have the name 'Car': join them with --rename Car=Car"):
        merged(twice)
    assert merged(twice, renames=["Car=Car"]).maps[0].tolist() == [0, 0]


def test_a_store_labels_an_image_once_and_other_tools_open_it(data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SHARD", 4)
    images = read_images(data / "images")
    truth = read_boxes(data / "train.json", data / "images")
    before = Guesser.calls
    first = Store(tmp_path, teacher).boxes(images.subset(range(5)))
    assert Guesser.calls == before + 5
    for own, true in zip(first, truth.truth, strict=False):
        assert_close(own.boxes, true.boxes[true.labels == 0])
        assert own.labels.tolist() == [1]
    again = Store(tmp_path, teacher)
    assert len(again) == 5
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in images.files:
        (moved / f"x{file.name}").write_bytes(file.read_bytes())
    more = again.boxes(read_images(moved))
    assert Guesser.calls == before + 6  # the sixth image alone
    for own, other in zip(more, first, strict=False):
        assert torch.equal(own.boxes, other.boxes)
    other = module_teacher("guesser", Guesser(), ["__background__", "Square"], mark="2")
    assert len(Store(tmp_path, other)) == 0
    pycocotools = pytest.importorskip("pycocotools.coco")
    shards = [file for file in again.folder.glob("*.json") if file.name != "about.json"]
    assert len(shards) == 3
    opened = pycocotools.COCO(str(shards[0]))
    assert [c["name"] for c in opened.loadCats(opened.getCatIds())] == ["Square"]
    shards[0].write_text("{")
    with pytest.raises(ValueError, match="is damaged .*remove it: its images are labelled again"):
        Store(tmp_path, teacher)
    shards[0].write_text('{"images": [], "annotations": [{}]}')
    with pytest.raises(ValueError, match="is damaged .*remove it: its images are labelled again"):
        Store(tmp_path, teacher)
    with pytest.raises(ValueError, match="is a file: name a folder"):
        Store(shards[0], teacher)


def test_boxes_that_are_no_numbers_are_refused(data, teacher, tmp_path):
    def find(loaded):
        return [Boxes.of([[0, 0, float("nan"), 5]], [1], [0.5])] * len(loaded)

    with pytest.raises(ValueError, match=r"teacher guesser gives boxes of .*train-1.png that are not"):
        Store(tmp_path, teacher._replace(find=find)).boxes(read_images(data / "images"))


def test_a_store_that_was_interrupted_goes_on_with_the_same_shards(data, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SHARD", 2)
    images = read_images(data / "images")
    whole = module_teacher("guesser", Guesser(), ["", "Square"], mark="1")
    asked = []

    def find(loaded, stop):
        asked.append(len(loaded))
        if len(asked) > stop:
            raise KeyboardInterrupt
        return whole.find(loaded)

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, whole._replace(find=partial(find, stop=2))).boxes(images)
    found = Store(tmp_path, whole._replace(find=partial(find, stop=9))).boxes(images)
    assert asked == [2, 2, 2, 2]
    assert len(found) == 6


def test_a_class_without_a_box_above_its_threshold_is_named_with_its_best_score(data):
    images = read_images(data / "images", ("Square", "Disc", "Star")).subset(range(2))
    teacher = module_teacher("two", Guesser(), ["__background__", "Square", "Disc", "Star"], mark="1")
    categories = merged({"two": teacher.classes})
    places = [[0, 0, 9, 9], [20, 20, 30, 30], [40, 9, 50, 20]]
    found = [[Boxes.of(places, [1, 2, 2], [0.9, 0.3, 0.2]), Boxes.of(places[:1], [1], [0.8])]]
    judge = Judge(["two"], categories, Making(thresholds="fixed", min_score=0.5))
    judge.settle(images, found)
    (note,) = judge.made(images, found).notes
    assert note == (
        "the teachers' boxes above the thresholds have none of Disc (the best has 0.3, the threshold "
        "is 0.5), Star (no box of any score)"
    )


def test_labels_have_thresholds_a_band_and_classes_that_nobody_knows(data, teacher):
    images = read_boxes(data / "train.json", data / "images")
    places = [[0, 0, 9, 9], [20, 20, 30, 30], [40, 9, 50, 20]]
    best = (0.9, 0.8, 0.7, 0.6, 0.5, 0.2)
    found = [[Boxes.of(places, [1] * 3, [s, 0.4 + s / 20, 0.1]) for s in best]]
    categories = merged({"guesser": teacher.classes}, images.classes)
    assert categories.names == ("square", "disc")
    judge = Judge(["guesser"], categories, Making(thresholds="fixed", ignore_from=0.3))
    judge.settle(images, found)
    made = judge.made(images, found)
    assert [own.crowd.tolist() for own in made.images.truth] == [[False, True]] * 5 + [[True]]
    assert made.images.known.tolist() == [[True, False]] * 6
    assert (made.record["boxes"], made.record["ignored"]) == (5, 6)
    some, left = without_empty(made.images)
    assert (len(some), left) == (6, 0)
    nothing = Judge(["guesser"], categories, Making(thresholds="fixed", min_score=0.95))
    told = "reaches --min-score 0.95 in 6 images; the best has 0.9, and from 0.8 on there would be 2"
    with pytest.raises(ValueError, match=told):
        nothing.settle(images, found)
    with pytest.raises(ValueError, match="guesser: no box in 6 images, of any score"):
        nothing.settle(images, [[NOTHING] * 6])
    with pytest.raises(ValueError, match="guesser: all boxes in 6 images have a score of 0"):
        nothing.settle(images, [[own._replace(scores=own.scores * 0) for own in found[0]]])
    with pytest.raises(ValueError, match="--thresholds f1 and --calibrate need labelled images"):
        Judge(["guesser"], categories, Making(thresholds="f1"))
    right = [[own._replace(labels=own.labels + 1).chosen(own.labels == 0) for own in images.truth]]
    count = Judge(["guesser"], categories, Making(thresholds="count"), (images, right))
    count.settle(images, found)
    low = [[own._replace(scores=own.scores * 0.3) for own in found[0]]]
    f1 = Judge(["guesser"], categories, Making(thresholds="f1"), (images, right))
    told = "no box reaches the threshold of its class, 0.5 or more, in 6 images; the best has 0.27"
    with pytest.raises(ValueError, match=told):
        f1.settle(images, low)
    half = [[own if i < 3 else None for i, own in enumerate(right[0])]]
    seen = Judge(["guesser"], categories, Making(thresholds="count"), (images, half))
    seen.settle(images, found)
    row = seen.made(images, found).record["classes"]["square"]
    assert (row["labelled"], row["recall"], row["prior"]) == (3, 1.0, 1.0)  # of the images it lists
    some = [[own if i < 3 else None for i, own in enumerate(found[0])]]
    seen.settle(images, some)
    assert float(seen.limits[0]) == pytest.approx(0.7)  # one an image of the three that are listed
    assert count.made(images, found).record["classes"]["square"]["boxes"] == 6  # one an image


def test_predictions_of_other_programs_teach_the_images_that_they_list(data, tmp_path):
    images = read_images(data / "images")
    known = read_boxes(data / "train.json", data / "images")
    listed = [{"id": 9, "file_name": images.files[0].name}, {"id": 4, "file_name": "elsewhere.png"}]
    rows = [
        {"id": 1, "image_id": 9, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"id": 2, "image_id": 4, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5},
    ]
    content = {"images": listed, "annotations": rows, "categories": [{"id": 2, "name": "disc"}]}
    (tmp_path / "found.json").write_text(json.dumps(content))
    (teacher,) = open_box_teachers([str(tmp_path / "found.json")])
    assert teacher.classes == ("disc",)
    first, *others = teacher.find(images)
    assert first.boxes.tolist() == [[1, 2, 4, 6]]
    assert others == [None] * 5
    results = [{"image_id": 2, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="does not say the names of its categories"):
        open_box_teachers([str(tmp_path / "results.json")])
    (teacher,) = open_box_teachers([str(tmp_path / "results.json")], known=known)
    found = teacher.find(images)
    assert [one is None for one in found] == [True, False, True, True, True, True]
    assert found[1].labels.tolist() == [1]
    holes = replace(known, classes=("N/A", "square", "disc"), categories=(1, 3, 7))
    (teacher,) = open_box_teachers([str(tmp_path / "results.json")], known=holes)
    assert [teacher.classes[i] for i in teacher.find(images)[1].labels] == ["disc"]
    (tmp_path / "found.json").write_text(json.dumps(content)[:-9])
    with pytest.raises(ValueError, match=r"found.json is damaged .*it may be cut off"):
        open_box_teachers([str(tmp_path / "found.json")])


@pytest.mark.parametrize(("names", "error", "message"), [
    ([], ValueError, "--teacher: name one or more"),
    (["a", "a"], ValueError, "teacher a is named twice"),
    (["nowhere"], FileNotFoundError, "no teacher 'nowhere': name a run of `stepwell train detect`"),
    (["torchvision/resnet18"], ValueError, "no detector 'resnet18' in torchvision"),
    (["fcos_resnet50_fpn=x.pth"], FileNotFoundError, "no file x.pth of weights"),
    (["cut.safetensors"], ValueError, "cut.safetensors is damaged"),
    (["found.json", "./found.json"], ValueError, "found.json and ./found.json are one and the same"),
    (["torchvision/fcos_resnet50_fpn"], ValueError, "could not be downloaded from https://"),
])  # fmt: skip
def test_teachers_that_cannot_be_opened(names, error, message, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(_api, "load_state_dict_from_url", offline)
    monkeypatch.chdir(tmp_path)
    Path("cut.safetensors").write_bytes(b"cut")
    Path("found.json").write_text('{"categories": [{"id": 1, "name": "disc"}]}')
    with pytest.raises(error, match=message):
        open_box_teachers(names)


def test_torchvisions_detectors_teach_with_weights_from_a_file(data, tmp_path):
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large as build

    torch.manual_seed(0)
    module = build(weights=None, weights_backbone=None, num_classes=3).eval()
    file = tmp_path / "cells.pth"
    torch.save(module.state_dict(), file)
    with pytest.raises(
        ValueError, match="holds no weights of ssdlite320_mobilenet_v3_large with 91 classes"
    ):
        open_box_teachers([f"ssdlite320_mobilenet_v3_large={file}"])
    (tmp_path / "cells.json").write_text('{"classes": ["__background__", "square", "disc"]}')
    (teacher,) = open_box_teachers([f"ssdlite320_mobilenet_v3_large={file}"])
    assert teacher.classes == ("", "square", "disc")
    images = read_images(data / "images").subset([0, 1])
    found = teacher.find(teacher.load(images))
    assert len(found) == 2
    assert all(own.boxes[:, 2].max() <= 64 for own in found if own.total)
    (tmp_path / "cells.json").write_text("[]")
    with pytest.raises(ValueError, match=r"cells.json is damaged \(it holds no JSON object\)"):
        open_box_teachers([f"ssdlite320_mobilenet_v3_large={file}"])
