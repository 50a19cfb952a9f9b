"""Detectors trained on small images: measured, used, resumed; and what is refused."""

import io
import json
import shutil
import sys
from contextlib import redirect_stdout
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import stepwell
from running import stopped, told
from stepwell.data.box_files import read_parts
from stepwell.evaluation.detection import average_precision, precision_interval
from stepwell.measure import detection as measure
from stepwell.methods import Detection
from stepwell.recipes import train
from tiny_boxes import SHORT, write_boxes


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        few = partial(precision_interval, resamples=10)
        patch.setattr(measure, "precision_interval", few)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    for name, count, seed in (("train", 16, 0), ("val", 6, 1), ("test", 6, 2)):
        write_boxes(root, name, count, seed)
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train("detect", data=str(data), out=out, **SHORT)
    return out


def test_a_detector_learns_at_all_depths_in_one_run(run, data):
    results = json.loads((run / "results.json").read_text())
    assert (results["kind"], results["rows"], results["examples"]) == ("detector", "depth", 6)
    assert [*results["costs"]] == ["8", "14"]
    assert results["costs"]["8"]["params"] < results["costs"]["14"]["params"]
    assert {"8/ap", "8/ap50", "14/ap/disc", "14/ap50/square"} <= results["test"].keys()
    assert results["detect"]["boxes"] == {"square": 6, "disc": 6}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"8/scores", "14/classification", "val/8/ap", "val/14/ap50"} <= lines[-1].keys()
    found = json.loads((run / "predictions.json").read_text())
    parts = read_parts(data)
    again = average_precision(parts.test.coco(), found["8"])
    assert again["ap"] == results["test"]["8/ap"]


def test_a_run_stopped_at_any_step_ends_bit_identical(run, data, tmp_path):
    out = tmp_path / "run"
    with stopped(Detection, 4):
        train("detect", data=str(data), out=out, **SHORT)
    train("detect", data=str(data), out=out, **SHORT)
    one, two = (load_file(path / "net.safetensors") for path in (run, out))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_eval_measures_the_runs_data_and_other_data(run, data):
    code, text = told("eval", run, "--json")
    assert code == 0
    measured = json.loads(text[: text.rindex("}") + 1])
    known = json.loads((run / "results.json").read_text())["test"]
    assert known["8/ap_low"] <= known["8/ap"] <= known["8/ap_high"]
    assert measured["test"] == pytest.approx(known, abs=1e-6)
    assert measured["data"]["own"]
    code, text = told("eval", run, "--data", data / "val.json")
    assert code == 0
    assert "by class" in text
    assert "AP50 14" in text
    code, text = told("eval", run, "--cascade")
    assert (code, "--cascade is not for a detector" in text) == (2, True)


def test_a_drawn_test_part_stays_the_same_whatever_joins_the_data(data, tmp_path):
    copy, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, copy)
    (copy / "val.json").rename(tmp_path / "other.json")
    (copy / "test.json").unlink()
    with pytest.warns(UserWarning, match="of its images are set aside|no json lists 12 images"):
        results = train("detect", data=str(copy), out=out, **SHORT | {"epochs": 1, "val_fraction": 0.0})
    content = json.loads((copy / "train.json").read_text())
    content["images"] += [{"id": 99, "file_name": "test-1.png"}, {"id": 98, "file_name": "test-2.png"}]
    (copy / "train.json").write_text(json.dumps(content))
    code, text = told("eval", out, "--json")
    assert code == 0
    measured = json.loads(text[: text.rindex("}") + 1])
    assert measured["data"]["own"]
    assert measured["test"] == pytest.approx(results["test"], abs=1e-6)


def test_predict_writes_boxes_as_coco_csv_json_and_pictures(run, data, tmp_path):
    image = data / "images" / "test-1.png"
    Image.fromarray(np.full((30, 40, 3), 128, np.uint8)).save(tmp_path / "grey.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    files = ["--coco", tmp_path / "o.json", "--csv", tmp_path / "o.csv", "--draw", tmp_path / "drawn"]
    code, text = told("predict", run, image, tmp_path / "grey.png", "--min-score", "0.05", *files)
    assert code == 0
    content = json.loads((tmp_path / "o.json").read_text())
    lines = (tmp_path / "o.csv").read_text().splitlines()
    assert lines[0] == "file,class,probability,depth,error,x1,y1,x2,y2"
    first = content["annotations"][0]
    x1, y1, x2, y2 = map(float, lines[1].split(",")[-4:])
    assert first["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.02)
    assert {c["name"] for c in content["categories"]} == {"square", "disc"}
    assert [i["height"] for i in content["images"]] == [48, 30]
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["grey.png", "test-1.png"]
    (tmp_path / "twin").mkdir()
    shutil.copy(image, tmp_path / "twin")
    code, text = told("predict", run, image, tmp_path / "twin", "--draw", tmp_path / "both")
    assert code == 0
    names = {"images_test-1.png.png", "twin_test-1.png.png"}
    assert {p.name for p in (tmp_path / "both").iterdir()} == names
    code, text = told("predict", run, image, image, "--draw", tmp_path / "both")
    said = "would have the name images_test-1.png.png: predict into two --draw folders"
    assert (code, said in text) == (2, True)
    truth = tmp_path / "truth.json"
    rows = [{k: v for k, v in row.items() if k != "score"} for row in content["annotations"]]
    for other in (content | {"annotations": rows}, {"a": 1}, []):
        truth.write_text(json.dumps(other))
        code, text = told("predict", run, image, "--coco", truth)
        assert (code, "holds no boxes with scores: name another file" in text) == (2, True)
        assert json.loads(truth.read_text()) == other
    code, text = told("predict", run, image, "--coco", tmp_path / "o.json")
    assert code == 0
    code, text = told(
        "predict", run, image, "--coco", tmp_path / "x.json", "--csv", tmp_path / "x.json"
    )
    assert (code, "--csv and --coco name one file" in text) == (2, True)
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "test-1.png"))
    assert (drawn != np.asarray(Image.open(image))).any()
    code, text = told(
        "predict", run, image, tmp_path / "bad.png", "--depth", "8", "--json", "--min-score", "0"
    )
    assert code == 2
    assert "1 of 2 " in text
    assert "could not be read" in text
    assert '"box"' in text
    code, text = told("predict", run, image, "--min-score", "1")
    assert (code, "nothing" in text) == (0, True)
    code, text = told("predict", run, image, "--budget-macs", "1e12")
    assert (code, "MACs an image" in text) == (0, True)


def test_precision_equals_that_of_pycocotools():
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    true, found = [], []
    for image in range(1, 31):
        for _ in range(int(rng.integers(0, 9))):
            x, y, w, h = (float(v) for v in rng.uniform(2, 120, 4))
            kind = int(rng.choice((2, 5, 9)))
            crowd = int(rng.random() < 0.1)
            true.append({
                "id": len(true) + 1, "image_id": image, "category_id": kind, "bbox": [x, y, w, h],
                "area": w * h, "iscrowd": crowd,
            })  # fmt: skip
            near = [v + float(rng.normal(0, 6)) for v in (x, y)]
            found.append({
                "image_id": image, "category_id": kind if rng.random() < 0.8 else 5,
                "bbox": [*near, w, h], "score": float(rng.random()),
            })  # fmt: skip
    names = {2: "a", 5: "b", 9: "c", 11: "none"}
    truth = {
        "images": [{"id": i, "width": 300, "height": 300} for i in range(1, 31)], "annotations": true,
        "categories": [{"id": i, "name": n} for i, n in names.items()],
    }  # fmt: skip
    ours = average_precision(truth, found)
    with redirect_stdout(io.StringIO()):
        theirs = COCO()
        theirs.dataset = json.loads(json.dumps({"info": {}, **truth}))
        theirs.createIndex()
        measured = COCOeval(theirs, theirs.loadRes(json.loads(json.dumps(found))), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [ours[key] for key in keys] == pytest.approx(measured.stats[:6].tolist(), abs=1e-12)
    per_class = measured.eval["precision"][:, :, 2, 0, -1]
    assert ours["ap/c"] == pytest.approx(per_class.mean(), abs=1e-12)
    assert "ap/none" not in ours
    low, high = precision_interval(truth, found, resamples=20)
    assert low < ours["ap"] < high < low + 0.4
    perfect = [{**row, "score": 1.0} for row in true]
    assert average_precision(truth, perfect)["ap"] == pytest.approx(1)
    assert average_precision(truth, [])["ap"] == 0


def test_a_detector_starts_from_a_classifier_or_a_detector(run, data, tmp_path):
    from stepwell.tasks.detection import start_detector

    classifier = stepwell.build("resnet14_s4", num_classes=5)
    stepwell.save(classifier, tmp_path / "net.safetensors")
    fresh = start_detector("fcos/resnet14_s4", ("a", "b"), init=tmp_path / "net.safetensors")
    assert torch.equal(fresh.net.module.conv1.weight, classifier.module.conv1.weight)
    again = start_detector("fcos/resnet14_s4", ("square", "disc"), ["8"], init=run / "net.safetensors")
    own = stepwell.open_network(run).net
    image = torch.randn(1, 3, 64, 64)
    for depth in ("8", "14"):
        with torch.inference_mode():
            boxes = again.eval()(image, depth=depth)[0].boxes
            assert torch.equal(boxes, own(image, depth=depth)[0].boxes)
    with pytest.raises(ValueError, match="is a fcos of width 32, and this one a retinanet"):
        start_detector("retinanet/resnet14_s4", ("a", "b"), init=run / "net.safetensors")


def test_what_cannot_be_is_one_line(run, data, tmp_path, monkeypatch):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shutil.copy(copy / "images" / "train-1.png", copy / "images" / "test-1.png")
    before = (copy / "images" / "test-1.png").read_bytes()
    out = ("--out", tmp_path / "out")
    for arguments, message in (
        (("train", "detect", "--data", copy, *out), "is training image"),
        (("train", "detect", "--data", data, *out, "--net", "resnet20"), "no detector 'resnet20'"),
        (("train", "detect", "--data", data, *out, "--size", "20"), "the longer side of images"),
        (("export", run, "--format", "pt2"), "a detector is exported as onnx"),
        (("predict", run, data / "images" / "test-1.png", "--top", "2"), "--top is not for a detector"),
        (
            ("predict", run, copy / "images" / "test-1.png", "--draw", copy / "images"),
            "would write over the image",
        ),
        (("predict", run, copy / "images" / "test-1.png", "--draw", copy / "train.json"), "is a file"),
    ):
        code, text = told(*arguments)
        assert code == 2
        assert message in text
    assert (copy / "images" / "test-1.png").read_bytes() == before
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    code, text = told("train", "detect", "--data", data, *out)
    assert code == 2
    assert "detection needs faster_coco_eval: pip install 'stepwell[detection]'" in text
