"""The study of pseudo labels: its arms run, and its claims compare what they say."""

import inspect
import json
from dataclasses import replace
from functools import partial
from itertools import count
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from PIL import Image

from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.study import only, slug
from stepwell.claims.kit.verify import verify_system
from stepwell.claims.pseudo.arms import FeatureTaught, read_apart
from stepwell.claims.pseudo.composites import write_composites
from stepwell.claims.pseudo.study import (
    ALONE,
    ARMS,
    DEEP_ALONE,
    FEW,
    FUSED,
    NESTED,
    PKD,
    PRIMARY,
    PRIMARY_ARMS,
    PSEUDO,
    SAME,
    SECOND,
    STUDY,
    TEACHER,
    UNION,
    UNLABELLED,
)
from stepwell.data.box_batches import BoxBatches
from stepwell.data.box_files import BoxFiles
from stepwell.data.boxes import read_boxes
from stepwell.evaluation.detection import precision_interval
from stepwell.measure import detection as measure
from stepwell.nets.detection.detector import build_detector
from stepwell.types import Boxes
from tiny_boxes import write_boxes


def test_claims_compare_the_arms_that_they_name():
    number = count(1)
    results = {
        arm: {0: {
            "test": {f"{d}/{key}": next(number) ** 0.5 / 100 for d in ("8", "14")
                     for key in ("ap", "ap50")},
            "costs": {d: {"macs": 1.0} for d in ("8", "14")}, "seconds": 1.0, "cpu_seconds": 1.0,
        }}
        for arm in ARMS
    }  # fmt: skip
    judged = {claim["id"]: claim["difference"]["mean"] for claim in judge(STUDY, results)}
    assert list(judged) == [claim.id for claim in STUDY.claims]

    def ap(arm, depth="8"):
        return 100 * results[arm][0]["test"][f"{depth}/ap"]

    expected = {
        PRIMARY[0]: ap(PSEUDO) - ap(PKD),
        PRIMARY[1]: ap(PSEUDO) - ap(ALONE),
        PRIMARY[2]: min(ap(NESTED) - ap(ALONE), ap(NESTED, "14") - ap(DEEP_ALONE, "14")),
        "against/labels": ap(PSEUDO) - ap(FEW),
        "unlabelled": ap(PSEUDO) - ap(SAME),
        "fused": ap(FUSED) - max(ap(PSEUDO), ap(SECOND)),
        "disjoint": ap(UNION) / ap(FUSED),
    }
    assert {name: judged[name] for name in expected} == pytest.approx(expected)


def test_primary_claims_need_six_arms():
    for id in PRIMARY:
        (claim,) = (claim for claim in STUDY.claims if claim.id == id)
        assert {*PRIMARY_ARMS} >= {name.partition(": ")[0] for name in claim.measured}
    assert only(STUDY, PRIMARY_ARMS).arms.keys() == {*PRIMARY_ARMS}
    assert (len(PRIMARY_ARMS), len(ARMS)) == (6, 14)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_sets_arguments_that_its_function_has(arm):
    known = inspect.signature(resolve_name(ARMS[arm].function)).parameters
    assert {*ARMS[arm].arguments, *ARMS[arm].needs} <= known.keys()


@pytest.fixture(scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        patch.setattr(measure, "precision_interval", partial(precision_interval, resamples=3))
        yield


@pytest.mark.long
def test_all_arms_of_a_quick_run_take_equal_steps(quick, tmp_path):
    arms = [PSEUDO, PKD, UNLABELLED, SAME]
    record, page = verify_system(
        "pseudo", {"epochs": 2}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms
    )
    assert set(record["arms"]) == {*arms, TEACHER}
    judged = {claim["id"] for claim in record["claims"]}
    assert judged == {PRIMARY[0], "against/labels-later", "unlabelled"}
    assert "One seed: no interval" in page.read_text()
    found = {}
    for file in tmp_path.glob("units/*/run/metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        by_phase = {line["phase"]: line["step"] for line in lines}
        found[file.parts[-3].rpartition("-0-")[0]] = sum(by_phase.values())
    assert len(found) == 5
    assert set(found.values()) == {4}  # 20 images in batches of 16, twice
    images = {
        unit: json.loads((file / "config.json").read_text())["data"]
        for unit in found
        for file in tmp_path.glob(f"units/{unit}-0-*/run")
    }
    assert images[slug(PSEUDO)]["train"] == 20
    assert images[slug(PKD)]["train"] == 16 + 4 * 4  # images with labels repeat: half of a batch
    assert images[slug(SAME)]["train"] == images[slug(PSEUDO)]["labels"] == 4


def test_parts_of_a_seed_share_no_image(tmp_path):
    write_boxes(tmp_path, "train", 30)
    write_boxes(tmp_path, "val", 6, seed=1)
    write_boxes(tmp_path, "test", 4, seed=2)
    files = BoxFiles(size=64)
    parts = read_apart(str(tmp_path), tmp_path, files, 0)
    assert [len(part) for part in parts] == [12, 12, 12, 4]  # a third at most for validation
    names = [file for part in parts for file in part.files]
    assert len({*names}) == 40
    assert read_apart(str(tmp_path), tmp_path, files, 0).students.files == parts.students.files
    assert read_apart(str(tmp_path), tmp_path, files, 1).students.files != parts.students.files


@pytest.mark.parametrize("features", ["pkd", "imitation"])
def test_features_are_imitated_on_images_without_labels_too(features, tmp_path):
    images = read_boxes(write_boxes(tmp_path), tmp_path / "images")
    torch.manual_seed(0)
    student, teacher = (build_detector(f"fcos/resnet{n}_s4", 2) for n in (8, 14))
    for parameter in teacher.head.head.classification_head.cls_logits.parameters():
        torch.nn.init.constant_(parameter, 1.0)  # sure of everything
    objective = FeatureTaught(student, teacher, features=features, weight=1.0)
    none = replace(
        images, truth=(Boxes.of([], []),) * len(images),
        known=torch.zeros(len(images), 2, dtype=torch.bool),
    )  # fmt: skip
    step = objective.training_step(BoxBatches(none, 8, size=64).at(0))
    step.loss.backward()
    assert step.logs["classification"] == 0
    assert step.logs["features"] > 0
    assert any(p.grad is not None and p.grad.any() for p in student.pyramid.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_composites_have_tight_boxes_of_unseen_digits(tmp_path):
    for part in ("train", "test"):
        write_composites(tmp_path, part, 6, classes=3)
    images = read_boxes(tmp_path / "train.json", tmp_path / "images")
    assert images.classes == ("0", "1", "2")
    assert all(1 <= own.total <= 4 for own in images.truth)
    write_composites(tmp_path / "shifted", "test", 6, classes=3, shifted=True)
    plain, shifted = (np.asarray(Image.open(root / "images" / "test-00001.png"), float)
                      for root in (tmp_path, tmp_path / "shifted"))  # fmt: skip
    assert np.corrcoef(plain.ravel(), shifted.ravel())[0, 1] < -0.5
