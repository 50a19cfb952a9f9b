"""Detectors as ONNX: graph and host loop find what the detector finds, here and without Stepwell."""

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import stepwell
from stepwell.data.box_batches import BoxBatches, collated
from stepwell.data.boxes import unlabelled
from stepwell.data.detect import boxes_of
from stepwell.export import detector as exports
from stepwell.export.detector import Heads, described, export_detector, noise
from stepwell.kinds import Network
from stepwell.measure.detection import detect
from stepwell.nets.detection.detector import build_detector
from stepwell.pseudo_labels.teachers import open_box_teachers
from stepwell.ranges import SURE
from stepwell.types import Boxes


def fresh(name, depths=()):
    torch.manual_seed(0)
    detector = build_detector(name, 3, depths).eval()
    if not hasattr(detector.head, "head"):
        return detector
    detector.net.mark("trained")
    detector.net.card = stepwell.Card(("cat", "dog", "cow"), 96)
    for name, weight in detector.head.head.classification_head.named_parameters():
        if "cls_logits" in name or detector.name == "ssdlite":  # fresh weights are sure of nothing
            torch.nn.init.normal_(weight, std=9.6 / detector.width)
    return detector


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return folder, export_detector(
        fresh("fcos/resnet14_s4", ["8"]), folder, noise(96), "noise", depth="8"
    )


def test_served_boxes_do_not_depend_on_the_other_images_of_a_batch():
    served = Network(Path("net"), "detector", fresh("fcos/resnet14_s4", ["8"]), {}).do("serve")
    inputs = []
    for image in (*noise(96, 2), noise(96)[0][:, :40]):
        content = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, "PNG")
        inputs.append(served.read(content.getvalue()))
    together = served.run(inputs, "8", 1)
    for own, given in zip(together, inputs, strict=True):
        (alone,) = served.run([given], "8", 1)
        assert [o.label for o in own.objects] == [o.label for o in alone.objects]
        boxes = [[o.box for o in answer.objects] for answer in (own, alone)]
        assert len(boxes[0])
        assert np.allclose(*boxes, atol=1e-2)


@pytest.mark.parametrize("name", ["fcos/resnet8_s4", "retinanet/resnet18", "ssdlite/resnet8_s4"])
def test_the_host_loop_finds_the_boxes_of_the_detector(name):
    detector = fresh(name)
    heads, told = Heads(detector, detector.net.full).eval(), described(detector)
    for image in noise(96, 2):
        batch, sizes = collated([image])
        with torch.inference_mode():
            values = heads(batch)
            (own,) = detector(batch, sizes)
        outputs = {n: v[0].numpy() for n, v in zip(heads.names, values, strict=True)}
        boxes, scores, labels = boxes_of(outputs, batch.shape[2:], sizes[0], told)
        assert own.total >= 20
        found = Boxes.of(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(scores))
        assert exports._equal(own, found) >= 0.98 * own.total


def test_a_depth_has_a_graph_that_teaches(exported, tmp_path):
    folder, index = exported
    assert [row["file"] for row in index["files"]] == ["8.onnx"]
    assert all(row["parity"]["same_boxes"] == 1 for row in index["files"])
    assert json.loads((folder / "export.json").read_text())["detector"]["strides"] == [4, 8, 16]
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    (teacher,) = open_box_teachers([str(folder / "8.onnx")])
    images = unlabelled([photo])
    (found,) = teacher.find(teacher.load(images))
    assert teacher.classes == ("cat", "dog", "cow")
    assert found.total
    assert found.boxes.max() <= 80


def test_the_host_loop_needs_no_stepwell(exported, tmp_path, monkeypatch):
    folder, _ = exported
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "stepwell.data.preprocess", None)
    spec = importlib.util.spec_from_file_location("detect_alone", folder / "detect.py")
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    assert alone.whole.__module__ == "preprocess"
    boxes, scores, labels = alone.Detector(folder / "8.onnx")(np.zeros((40, 64, 3), np.uint8))
    assert len(boxes) == len(scores) == len(labels)


def test_what_cannot_be_exported_says_so(exported, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="faster_rcnn has two stages"):
        export_detector(fresh("faster_rcnn/resnet8_s4"), tmp_path, noise(96), "noise")
    made = onnx.load(exported[0] / "8.onnx")
    monkeypatch.setattr(exports, "graph_of", lambda *_: made)
    monkeypatch.setattr(exports, "_equal", lambda own, found: 0)
    same = fresh("fcos/resnet14_s4", ["8"])
    with pytest.raises(ValueError, match="its host loop finds 0 % of the boxes; nothing was written"):
        export_detector(same, tmp_path, noise(96, 1), "noise", depth="8")
    assert not list(tmp_path.glob("*.onnx"))


class Session:
    """A graph of another program."""

    def __init__(self, **outputs):
        self.outputs = outputs

    def get_outputs(self):
        return [type("O", (), {"name": n, "shape": v.shape}) for n, v in self.outputs.items()]

    def get_inputs(self):
        return [type("I", (), {"name": "images"})]

    def get_modelmeta(self):
        return type("M", (), {"custom_metadata_map": {}})

    def run(self, names, feed):
        self.shape = feed["images"].shape
        return [self.outputs[name] for name in names]


@pytest.mark.parametrize(("outputs", "about"), [
    ({"b": [[2, 4, 12, 24], [0, 0, 5, 5]], "s": [0.9, 0.01], "l": [1, 0]},
     {"outputs": {"boxes": "b", "scores": "s", "labels": "l"}}),
    ({"b": [[[2, 4, 10, 20]]], "s": [[[0.1, 0.9]]]},
     {"outputs": {"boxes": "b", "scores": "s"}, "form": "xywh"}),
    ({"r": [[[2, 4, 12, 24, 0.9, 2], [9, 9, 3, 3, 0.9, 1]]]}, {"outputs": {"rows": "r"}, "first": 1}),
    ({"c": [[[7 / 64], [14 / 64], [10 / 64], [20 / 64], [0.0], [0.9]]]},
     {"outputs": {"columns": "c"}, "relative": True}),
])  # fmt: skip
def test_graphs_of_other_programs_name_their_outputs_once(outputs, about, tmp_path):
    from stepwell.nets.detection.onnx import OnnxDetector

    session = Session(**{name: np.array(value, np.float32) for name, value in outputs.items()})
    (tmp_path / "net.json").write_text(json.dumps({"classes": ["a", "b"], "size": 64, **about}))
    detector = OnnxDetector.open(tmp_path / "net.onnx", session)
    found = detector.find(torch.zeros(3, 48, 64, dtype=torch.uint8))
    best = found.scores.argmax()
    assert found.boxes[best].tolist() == pytest.approx([2, 4, 12, 24], abs=1e-4)
    assert (int(found.labels[best]), float(found.scores[best])) == (1, pytest.approx(0.9))
    assert session.shape == (1, 3, 64, 64)


def test_outputs_under_wrong_names_are_one_line(tmp_path):
    from stepwell.nets.detection.onnx import OnnxDetector

    about = {"classes": ["a"], "size": 64, "outputs": {"rows": "r"}}
    (tmp_path / "net.json").write_text(json.dumps(about))
    detector = OnnxDetector.open(tmp_path / "net.onnx", Session(r=np.zeros((3, 4), np.float32)))
    with pytest.raises(ValueError, match=r"shapes that do not fit their names \(rows \(3, 4\)\)"):
        detector.find(torch.zeros(3, 48, 64, dtype=torch.uint8))


def test_boxes_without_an_area_are_left_out(monkeypatch):
    from stepwell.data import detect as program

    described = {name: json.dumps(32) for name in ("classes", "size", "mean", "std", "detector")}
    session = SimpleNamespace(get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=described))
    boxes = np.array([[0, 0, 8, 4], [8, 0, 8, 4], [0, 4, 8, 4]], np.float32)
    found = boxes, np.array([0.9, 0.8, 0.7]), np.array([1, 2, 3])
    monkeypatch.setattr(program.Detector, "find", lambda self, pixels: found)
    kept, scores, labels = program.Detector("", session)(np.zeros((64, 64, 3), np.uint8))
    assert kept.tolist() == [[0, 0, 16, 8]]
    assert (scores.tolist(), labels.tolist()) == ([0.9], [1])


ROWS = {"classes": ["a"], "size": 64, "outputs": {"rows": "r"}}


@pytest.mark.parametrize(("about", "message"), [
    (None, "does not say what its outputs are: write"),
    ({"classes": [], "size": 64, "outputs": {"rows": "r"}}, '"classes" is no list of names'),
    ({"classes": ["a"], "size": 0, "outputs": {"rows": "r"}}, '"size" is no number of pixels'),
    ({"classes": ["a"], "size": 64, "outputs": {"boxes": "r"}}, '"outputs" names none of'),
    ({"classes": ["a"], "size": 64, "outputs": {"rows": "x"}}, "the graph has no output 'x'"),
    ({"classes": ["a"], "size": 64, "outputs": {"rows": "r"}, "form": "z"}, '"form" is none of'),
    (ROWS | {"mean": {"a": 1}}, '"mean" is neither a number nor a list of three'),
    (ROWS | {"mean": [0.1, 0.2]}, '"mean" is neither'),
    (ROWS | {"std": [0, 0, 0]}, '"std" is neither a number above 0'),
    (ROWS | {"first": None}, '"first" is no whole number'),
    (ROWS | {"relative": "no"}, '"relative" is neither true nor false'),
])  # fmt: skip
def test_a_graph_without_named_outputs_is_one_line(about, message, tmp_path):
    from stepwell.nets.detection.onnx import OnnxDetector

    if about is not None:
        (tmp_path / "net.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=message):
        OnnxDetector.open(tmp_path / "net.onnx", Session(r=np.zeros((1, 6))))


def test_a_server_finds_the_boxes_of_the_detector(tmp_path):
    detector = fresh("fcos/resnet14_s4", ["8"])
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    served = Network(photo, "detector", detector, {}).do("serve")
    assert (served.rows, served.default) == (("8", "14"), "14")
    (answer,) = served.run([served.read(photo.read_bytes())], "8", 1)
    batches = BoxBatches(unlabelled([photo], detector.net.card.classes), 1, size=96)
    (expected,) = detect(detector, batches, ["8"])["8"]
    sure = expected.scores >= SURE
    assert answer.depth == "8"
    assert len(answer.objects) == int(sure.sum()) > 0
    assert torch.allclose(
        torch.tensor([o.box for o in answer.objects]), expected.boxes[sure], atol=1e-3
    )
    with pytest.raises(ValueError, match="a detector runs in torch: leave --engine onnx out"):
        Network(photo, "detector", detector, {}).do("serve", engine="onnx")
