"""Detectors by name: parts shared by depths, losses, places that no loss sees, one file."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.models.detection.image_list import ImageList

import stepwell
from stepwell.data.box_batches import BoxBatches
from stepwell.data.boxes import read_boxes
from stepwell.kinds import open_network
from stepwell.losses import (
    box_distance,
    map_correlation_loss,
    map_imitation_loss,
    score_distance,
)
from stepwell.methods import Detection
from stepwell.nets.detection.detector import build_detector
from stepwell.nets.detection.file import load_detector, save_detector
from stepwell.nets.detection.heads import DETECTORS
from stepwell.types import Boxes
from tiny_boxes import write_boxes


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    write_boxes(root, count=4)
    return BoxBatches(read_boxes(root / "train.json", root / "images"), 4, size=64).at(0)


def losses_of(detector, batch, **more):
    (exit,) = detector.net.forward_all(batch.images, [detector.net.full]).values()
    maps = detector.maps(exit.features)
    return detector.losses(maps, detector.outputs(maps), batch, **more)


@pytest.mark.parametrize("head", DETECTORS)
def test_every_head_trains_at_all_depths_and_its_file_finds_the_same_boxes(head, batch, tmp_path):
    detector = build_detector(f"{head}/resnet14_s4", 2, ["8"])
    objective = Detection(detector)
    objective.progress = 1.0
    before = None
    for _ in range(2):
        detector.zero_grad()
        step = objective.training_step(batch)
        step.loss.backward()
        before = before or float(step.loss.detach())
        with torch.no_grad():
            for parameter in detector.parameters():
                if parameter.requires_grad:
                    parameter -= 0.01 * parameter.grad / parameter.grad.norm().clamp(min=1)
    assert step.loss < before
    assert {name.partition("/")[0] for name in step.logs} == {"8", "14"}
    assert ("8/scores" in step.logs) == detector.sigmoid
    detector.eval()
    detector.net.card = stepwell.Card(("square", "disc"), 64)
    save_detector(detector, tmp_path / "net.safetensors")
    other = load_detector(tmp_path / "net.safetensors")
    with torch.no_grad():
        found = detector.by_depth(batch.images, batch.sizes)
        for depth, rows in found.items():
            for row, again in zip(rows, other(batch.images, batch.sizes, depth), strict=True):
                assert torch.equal(row.boxes, again.boxes)
                assert (row.labels >= 0).all()
                assert (row.labels < 2).all()  # the background is no class
                assert not row.total or row.boxes.max() <= 64
    with pytest.raises(ValueError, match=r"a detector: use stepwell.open_network.*\.net.predict"):
        stepwell.load(tmp_path / "net.safetensors")
    opened = open_network(tmp_path / "net.safetensors")
    assert opened.kind == "detector"
    opened.net.net.mark("trained")
    for image in (np.zeros((48, 96, 3), np.uint8), Image.new("RGB", (96, 48))):
        two = opened.net.predict([image, image], depth="8", min_score=0.0)
        assert two[0] == two[1] == opened.net.predict(image, depth="8", min_score=0.0)
        assert {one.label for one in two[0].objects} <= {"square", "disc"}
        boxes = torch.tensor([one.box for one in two[0].objects]).reshape(-1, 4)
        assert (boxes <= torch.tensor([96, 48, 96, 48])).all()  # in the image's own pixels
    with pytest.raises(ValueError, match=r"images of shape .* 1, 64, 64\) .* normalised batch"):
        detector(batch.images[:, :1])


def test_a_small_detector_is_small_and_any_backbone_with_maps_will_do():
    assert sum(p.numel() for p in build_detector("fcos/resnet8_s4", 10).parameters()) < 160_000
    wide = build_detector("fcos/resnet18", 3, width=64, convs=1)
    assert wide.head.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    assert build_detector("ssdlite/timm/mobilenetv3_small_050", 3).levels == [1, 3, 5]
    for name, more, message in (
        ("fcos", {}, "no detector 'fcos': write HEAD/BACKBONE"),
        ("yolo/resnet18", {}, "heads are fcos, retinanet, ssdlite, faster_rcnn"),
        ("fcos/resnet7", {}, "no network 'resnet7'"),
        ("fcos/resnet20", {}, "strides 1, 2, 4, and a pyramid needs two or more"),
        ("fcos/resnet8_s4", {"width": 48}, "--width 48"),
        ("fcos/resnet8_s4", {"depths": ["9"]}, "no depth '9'"),
        ("fcos/resnet8_s4", {"classes": 0}, "classes=0: a detector takes a number of classes"),
    ):
        with pytest.raises(ValueError, match=message):
            build_detector(name, **{"classes": 3} | more)


@pytest.mark.parametrize("head", ["fcos", "retinanet", "faster_rcnn"])
def test_losses_and_boxes_equal_those_of_torchvisions_own_forward(head, batch):
    """The same modules under torchvision's forward, with our backbone and pyramid in front."""
    detector = build_detector(f"{head}/resnet8_s4", 2)
    whole = detector.head

    class Backbone(torch.nn.Module):
        out_channels = 32

        def forward(self, images):
            (exit,) = detector.net.forward_all(images).values()
            return detector.maps(exit.features)

    class Transform(torch.nn.Module):
        def forward(self, images, targets):
            return ImageList(images, [*batch.sizes]), targets

        def postprocess(self, found, *_):
            return found

    targets = [{"boxes": own.boxes, "labels": own.labels + detector.background} for own in batch.truth]
    plain, detector_eval = type(whole).__new__(type(whole)), detector
    plain.__dict__.update(whole.__dict__)
    plain._modules = dict(whole._modules) | {"backbone": Backbone(), "transform": Transform()}
    torch.manual_seed(3)
    expected = plain(batch.images, targets)
    torch.manual_seed(3)
    assert_close(losses_of(detector, batch), expected)
    detector_eval.eval()
    plain.training = False
    with torch.no_grad():
        rows = plain(batch.images)
        for row, own in zip(rows, detector_eval(batch.images, batch.sizes), strict=True):
            assert_close(own.boxes, row["boxes"])
            assert_close(own.labels, row["labels"] - detector.background)


def test_no_loss_sees_a_crowd_or_a_class_that_nobody_labelled(batch):
    detector = build_detector("fcos/resnet8_s4", 2)
    weight = detector.head.head.classification_head.cls_logits.weight
    everywhere = Boxes.of([[0, 0, 64, 64]], [0])._replace(crowd=torch.tensor([True]))
    empty = batch._replace(truth=(everywhere,) * 4)

    def gradient(batch, **more):
        detector.zero_grad()
        loss = losses_of(detector, batch, **more)["classification"]
        loss.backward()
        return loss, weight.grad.abs().amax((1, 2, 3))

    loss, grown = gradient(empty)
    assert loss == 0
    assert not grown.any()
    known = [torch.tensor([True, False])] * 4
    nothing = batch._replace(truth=(Boxes.of([], []),) * 4)
    _, grown = gradient(nothing, known=known)
    assert grown[0] > 0
    assert grown[1] == 0
    both, _ = gradient(nothing)
    part, _ = gradient(nothing, known=known)
    assert 0 < part < both
    with pytest.raises(ValueError, match="ssdlite scores classes against each other"):
        losses_of(build_detector("ssdlite/resnet8_s4", 2), batch, known=known)
    objects = batch._replace(truth=tuple(
        Boxes(*(torch.cat(v) for v in zip(own, everywhere, strict=True))) for own in batch.truth
    ))  # fmt: skip
    assert 0 < gradient(objects)[0] < gradient(batch)[0]  # what is labelled inside a crowd still counts
    told, grown = gradient(batch, known=known)  # a disc where nobody tells of discs is one all the same
    assert 0 < told < gradient(batch)[0]
    assert grown[1] > 0


def test_a_positive_that_the_head_matches_outside_of_its_box_is_never_silent(batch):
    detector = build_detector("retinanet/resnet8_s4", 2)
    small = Boxes.of([[1.5, 1.5, 2.5, 2.5], [0, 0, 64, 64]], [1, 0])  # between the centres of anchors
    inside_crowd = small._replace(crowd=torch.tensor([False, True]))
    known = [torch.tensor([True, False])] * 4
    for truth, told in ((inside_crowd, None), (small.chosen(torch.tensor([0])), known)):
        loss = losses_of(detector, batch._replace(truth=(truth,) * 4), known=told)["classification"]
        assert 0 < loss < 100


def test_the_joint_gradients_are_those_of_the_plain_sum(batch):
    detector = build_detector("fcos/resnet14_s4", 2, ["8"]).double().eval()
    detector.head.training = True  # losses, with norms that keep still
    doubled = batch._replace(
        images=batch.images.double(),
        truth=tuple(own._replace(boxes=own.boxes.double()) for own in batch.truth),
    )
    Detection(detector).training_step(doubled).loss.backward()
    joint = [p.grad.clone() for p in detector.parameters() if p.requires_grad]
    detector.zero_grad()
    total = 0
    for exit in detector.net.forward_all(doubled.images).values():
        maps = detector.maps(exit.features)
        total = total + sum(detector.losses(maps, detector.outputs(maps), doubled).values())
    total.backward()
    for own, plain in zip(
        joint, [p.grad for p in detector.parameters() if p.requires_grad], strict=True
    ):
        assert_close(own, plain)


def test_distances_of_outputs_by_hand():
    student, teacher = torch.zeros(1, 2, 1, requires_grad=True), torch.tensor([[[0.0], [2.0]]])
    p = torch.tensor(2.0).sigmoid()
    expected = (p - 0.5) ** 2 * torch.log(torch.tensor(2.0)) / (p + 0.5)
    assert_close(score_distance(student, teacher), expected)
    boxes, true = torch.tensor([[[0.0], [0.5]]]), torch.tensor([[[3.0], [0.0]]])
    assert_close(box_distance(boxes, true, teacher, sure=0.8), torch.tensor(0.125))
    assert_close(box_distance(boxes, true, teacher), (0.5 * 2.5 + p * 0.125) / (0.5 + p))
    assert box_distance(boxes, true, teacher - 9) == 0
    score_distance(student, teacher).backward()
    assert student.grad[0, 1, 0] < 0  # a step along -gradient raises the score


def test_distances_of_maps_by_hand():
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]]], requires_grad=True)
    teacher = torch.tensor([[[[7.0, 5.0], [3.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    assert_close(map_correlation_loss(student, teacher), torch.tensor(1.5))  # -1, and none
    assert_close(map_correlation_loss(3 * student.detach() + 1, student.detach()), torch.tensor(0.5))
    inside = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    expected = torch.tensor(((36 + 1) / 2 + (9 + 0) / 2) / 2)
    assert_close(map_imitation_loss(student, teacher, inside), expected)
    assert map_imitation_loss(student, teacher, 0 * inside) == 0
    map_imitation_loss(student, teacher, inside).backward()
    assert student.grad[0, 0, 0, 0] < 0  # a step along -gradient goes to the teacher
