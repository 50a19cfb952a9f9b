"""Detectors trained on boxes of teachers: with and without labels, resumed; and what is refused."""

import json
import re
import shlex
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stepwell
from running import stopped, told
from stepwell.data.box_files import BoxFiles, read_pool
from stepwell.data.boxes import read_boxes
from stepwell.evaluation.detection import precision_interval
from stepwell.export import detector as exports
from stepwell.measure import detection as measure
from stepwell.methods import Detection
from stepwell.nets.detection.file import save_detector
from stepwell.pseudo_labels import store as stores
from stepwell.recipes import train
from stepwell.tasks import detection as detection_task
from stepwell.tasks import pseudo_sources
from stepwell.tasks.detection import start_detector
from tiny_boxes import CLASSES, SHORT, change, write_boxes


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        patch.setattr(measure, "precision_interval", partial(precision_interval, resamples=3))
        patch.setattr(stores, "SHARD", 8)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    for name, count, seed in (("train", 24, 0), ("val", 4, 1), ("test", 4, 2)):
        write_boxes(root, name, count, seed)
    return root


@pytest.fixture(scope="module")
def teachers(data, tmp_path_factory):
    """A file of predictions, true boxes of squares and discs; and a detector, which guesses."""
    folder = tmp_path_factory.mktemp("teachers")
    images, rows = [], []
    for part in ("train", "val", "test"):
        content = json.loads((data / f"{part}.json").read_text())
        first = len(images)
        images += [{**row, "id": row["id"] + first} for row in content["images"]]
        rows += [
            {**row, "image_id": row["image_id"] + first, "score": 0.6 + row["id"] / 400}
            for row in content["annotations"]
        ]
    content = {"images": images, "annotations": rows, "categories": content["categories"]}
    (folder / "found.json").write_text(json.dumps(content))
    torch.manual_seed(1)
    guesser = start_detector("fcos/resnet8_s4", ("Square", "triangle")).eval()
    guesser.net.mark("trained")
    guesser.net.card = stepwell.Card(("Square", "triangle"), 64)
    save_detector(guesser, folder / "guesser.safetensors")
    return str(folder / "found.json"), str(folder / "guesser.safetensors")


def labelled(data, teachers, out):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no triangle
        return train(
            "pseudo", teacher=teachers, data=str(data), labels=data / "train.json", out=out,
            label_fraction=0.5, label_share=0.4, classes=("square", "disc", "triangle"), **SHORT,
        )  # fmt: skip


@pytest.fixture(scope="module")
def run(data, teachers, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    labelled(data, teachers, out)
    return out


def test_teachers_label_images_once_and_a_student_learns_from_them_and_from_labels(run, data):
    results = json.loads((run / "results.json").read_text())
    made = results["pseudo"]
    assert made["labels"] == {"images": 12, "share": 0.4}
    assert (made["images"], made["truth"]) == (24, "labels")
    assert made["classes"]["square"]["teachers"] == 2
    assert made["classes"]["disc"]["recall"] == 1
    assert made["teacher_test"]["teachers/ap/disc"] == pytest.approx(1)
    assert {"8/ap", "14/ap/disc"} <= results["test"].keys()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {line["phase"]: line["step"] for line in lines}
    assert steps == {"pseudo": 5, "labels": 4}
    assert lines[1]["loss"] < lines[0]["loss"]
    labels = json.loads((run / "pseudo_labels.json").read_text())
    assert {row["category_id"] for row in labels["annotations"]} == {1, 2}
    assert all(0 < row["score"] <= 1 for row in labels["annotations"])
    folder = run / labels["info"]["images"]
    assert not Path(labels["info"]["images"]).is_absolute()
    assert len(read_boxes(run / "pseudo_labels.json", folder)) == 24  # names are paths below it
    code, text = told("eval", run, "--json")
    assert code == 0
    measured = json.loads(text[: text.rindex("}") + 1])
    assert measured["test"] == pytest.approx(results["test"], abs=1e-6)
    assert measured["data"]["own"]


@pytest.mark.parametrize("where", ["labelling", "labels"])
def test_a_run_stopped_anywhere_ends_bit_identical(where, run, data, teachers, tmp_path):
    places = {"labelling": (stores.Store, 2, "_write"), "labels": (Detection, 7)}
    with stopped(*places[where]):
        labelled(data, teachers, tmp_path / "run")
    labelled(data, teachers, tmp_path / "run")
    one, two = (load_file(path / "net.safetensors") for path in (run, tmp_path / "run"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_folder_of_photographs_is_enough_and_the_teacher_is_the_truth(data, teachers, tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for file in sorted((data / "images").glob("train-*")):
        shutil.copy(file, photographs / file.name)
    shutil.copy(data / "images" / "train-1.png", photographs / "twice.png")
    more = SHORT | {"epochs": 1}
    with pytest.warns(UserWarning, match="1 images are there twice, and count once: twice.png"):
        results = train(
            "pseudo", teacher=teachers[:1], data=str(photographs), out=tmp_path / "run",
            store=tmp_path / "store", **more,
        )  # fmt: skip
    made = results["pseudo"]
    assert (made["truth"], results["examples"]) == ("teacher", 5)
    assert made["thresholds"] == "fixed"
    assert results["detect"]["boxes"]["square"] > 0
    assert not (tmp_path / "run" / "phases" / "labels").exists()
    code, text = told("eval", tmp_path / "run")
    assert (code, "by class" in text) == (0, True)


def test_predictions_that_list_some_images_are_measured_on_these(data, tmp_path):
    images = read_boxes(data / "train.json", data / "images")
    listed = images.subset(range(0, len(images), 2))
    (tmp_path / "found.json").write_text(json.dumps(listed.coco()))
    learn = partial(train, "pseudo", data=str(data / "images"), **SHORT | {"epochs": 1})
    with pytest.warns(
        UserWarning, match=f"found.json lists {len(listed)} of .* has no predictions for the"
    ):
        results = learn(teacher=(str(tmp_path / "found.json"),), out=tmp_path / "run")
    kept = read_boxes(tmp_path / "run" / "test.json", Path("/"), CLASSES)
    assert {file.name for file in kept.files} <= {file.name for file in listed.files}
    assert results["pseudo"]["teacher_test"]["teachers/ap"] == pytest.approx(1.0)
    made = json.loads((tmp_path / "run" / "pseudo_labels.json").read_text())
    assert {Path(row["file_name"]).name for row in made["images"]} < {f.name for f in listed.files}
    (tmp_path / "found.json").write_text(json.dumps(listed.coco()).replace("train-", "other-"))
    with pytest.raises(ValueError, match=r"found.json lists none of the \d+ images, such as .*png"):
        learn(teacher=(str(tmp_path / "found.json"),), out=tmp_path / "none")


def test_a_class_that_no_teacher_covers_is_learned_from_labels_alone(
    data, teachers, tmp_path, monkeypatch
):
    seen, plain = [], Detection.training_step

    def watching(self, batch):
        seen.append(batch.known)
        return plain(self, batch)

    monkeypatch.setattr(Detection, "training_step", watching)
    learn = partial(train, "pseudo", teacher=teachers[1:], data=str(data), labels=data / "train.json")
    with pytest.warns(UserWarning, match="no teacher knows disc"):
        learn(out=tmp_path / "run", thresholds="fixed", min_score=0.01, **SHORT | {"epochs": 1})
    first, last = seen[0], seen[-1]
    assert [known.tolist() for known in first] == [[True, False, True]] * len(first)
    assert last is None  # the labels, and the teacher's triangles


@pytest.mark.parametrize(("flags", "message"), [
    (["--data", "IMAGES", "--thresholds", "f1"], "--calibrate need labelled images"),
    (["--min-score", "0.99"], "no box reaches --min-score 0.99 in"),
    (["--min-score", "0.3", "--ignore-from", "0.5"], "--ignore-from 0.5 lies above --min-score 0.3"),
    (["--data", "IMAGES", "--store", "IMAGES"], "lies in --data"),
    (["--label-fraction", "0.5"], "--label-fraction is a share of --labels"),
    (["--classes", "cow"], "--classes cow: no teacher has it"),
    (["--classes", "disc", "Disc"], "--classes names one class twice: disc and Disc; drop one"),
    (["--labels", "TRAIN", "--label-fraction", "1e-9"],
     "labelled images gives no image: use at least 0.0"),
    (["--rename", "cow=cat"], "a teacher has no class 'cow'"),
    (["--net", "ssdlite/resnet8_s4", "--ignore-from", "0.1"], "ssdlite scores classes against each"),
    (["--labels", "TRAIN", "--classes", "square"], "has boxes of disc, which --classes does not name"),
    (["--labels", "TEST"], "is training image"),
    (["--labels", "CUT"], "is damaged"),
    (["--data", "nowhere"], "no folder nowhere"),
    (["--teacher", "nowhere"], "no teacher 'nowhere'"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(flags, message, data, teachers, tmp_path):
    cut = tmp_path / "cut.json"
    cut.write_text((data / "train.json").read_text()[:-20])
    named = {
        "IMAGES": data / "images",
        "TRAIN": data / "train.json",
        "TEST": data / "test.json",
        "CUT": cut,
    }
    given = ["--teacher", teachers[0], "--data", data, "--size", "64", "--out", tmp_path / "out"]
    code, text = told("train", "pseudo", *given, *(named.get(flag, flag) for flag in flags))
    assert code == 2
    assert message in text


def test_copies_of_test_images_are_left_out_of_the_images_to_label(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shutil.copy(copy / "images" / "test-1.png", copy / "images" / "holiday.png")
    change(copy / "train.json", images=[], annotations=[])  # not read without --labels
    pool = read_pool(copy, BoxFiles(), ("square", "disc"), None)
    assert (len(pool.images), len(pool.test), len(pool.validation)) == (24, 4, 4)
    assert pool.labelled is None
    assert "1 images equal test or validation images under another name" in pool.notes[-1]
    assert "holiday.png" in pool.notes[-1]


def test_the_pages_commands_and_snippets_run(run, data, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "detection.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name in ("pets", "cells", "nested"):
        shutil.copytree(run, f"runs/{name}")
    shutil.copytree(data, "cells")
    for name in ("slides", "holiday"):
        Path(name).mkdir()
        shutil.copy(data / "images" / "test-1.png", f"{name}/1.png")

    def reached(*_, **__):
        raise ValueError("all flags are known")

    def exported(detector, folder, images, part, **_):  # it has tests of its own
        parity = {"difference": 0.0, "same_boxes": 1.0, "boxes": 1, "images": len(images), "part": part}
        return {"files": [{"depth": "8", "file": "8.onnx", "bytes": 1, "parity": parity}]}

    for recipe in ("detect", "pseudo"):  # the folders of the page hold other runs
        monkeypatch.setattr(f"stepwell.recipes.{recipe}.check_resumes", lambda *_: None)
    monkeypatch.setattr(exports, "export_detector", exported)
    monkeypatch.setattr(pseudo_sources, "open_sources", reached)
    monkeypatch.setattr(detection_task, "read_boxes_of", reached)
    commands = re.findall(r"^    stepwell (.*)$", page, re.MULTILINE)
    assert len(commands) == 16
    for command in commands:
        if command.startswith("verify"):
            continue
        command = command.replace("--budget-ms 20", "--budget-ms 9e9")
        code, text = told(*shlex.split(command))
        if command.startswith("train"):
            assert "all flags are known" in text, (command, text)
        else:
            assert code == 0, (command, text)
    shown = Path("runs/pets/report.html").read_text()
    assert "Labels from teachers" in shown
    assert "Worst images" in shown
    assert shown.count("<rect") > 10
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, {})
