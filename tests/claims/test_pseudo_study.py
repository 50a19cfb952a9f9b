"""The study of pseudo labels: its arms run, and its claims compare what they say."""

import inspect
from functools import partial
from itertools import count
from pkgutil import resolve_name

import numpy as np
import pytest
from PIL import Image

from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.verify import verify_system
from stepwell.claims.pseudo.composites import write_composites
from stepwell.claims.pseudo.study import ARMS, NESTED, PKD, PRIMARY, PSEUDO, STUDY, UNION
from stepwell.cost import costs_of
from stepwell.data.boxes import read_boxes
from stepwell.evaluation.detection import precision_interval
from stepwell.measure import detection as measure


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
        PRIMARY[0]: ap(PSEUDO) - ap("20 % of the labels alone"),
        PRIMARY[1]: ap(PSEUDO) - ap("labels alone"),
        PRIMARY[2]: min(ap(NESTED) - ap("labels alone"), ap(NESTED, "14") - ap("teacher", "14")),
        "disjoint": ap(UNION) / ap(PSEUDO),
    }
    assert {name: judged[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_sets_arguments_that_its_function_has(arm):
    known = inspect.signature(resolve_name(ARMS[arm].function)).parameters
    assert {*ARMS[arm].arguments, *ARMS[arm].needs} <= known.keys()


def test_verify_pseudo_quick_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "costs_of", partial(costs_of, seconds=0.01))
    few = partial(precision_interval, resamples=3)
    monkeypatch.setattr(measure, "precision_interval", few)
    arms = [PSEUDO, PKD]
    record, page = verify_system(
        "pseudo", {}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms
    )
    assert set(record["arms"]) == {*arms, "teacher"}
    assert {claim["id"] for claim in record["claims"]} == {"against/pkd"}
    assert "One seed: no interval" in page.read_text()


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
