"""The study of pictures of complex networks: its arms run, and its claims compare what they say."""

import inspect
from itertools import count
from pkgutil import resolve_name

import numpy as np
import pytest

from stepwell.claims.cnc.arms import TASKS, numbers_of, published_split
from stepwell.claims.cnc.study import (
    ARMS,
    CBOW,
    DEGREES,
    GREY,
    PAPER,
    PICTURE,
    PRIMARY,
    STRUCTURE,
    STUDY,
)
from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.verify import verify_system
from stepwell.data.pictures.flags import Pictures
from stepwell.data.pictures.network import parse_network


def test_claims_compare_the_arms_that_they_name():
    number = count(1)
    keys = [f"{t}/{r}" for t in (*TASKS, "fields", "mean") for r in ("accuracy", "balanced_accuracy")]
    results = {
        arm: {0: {"test": {key: next(number) / 1000 for key in keys}, "seconds": 1, "cpu_seconds": 1}}
        for arm in ARMS
    }
    judged = {claim["id"]: claim["difference"]["mean"] for claim in judge(STUDY, results)}

    def rate(arm, key):
        return 100 * results[arm][0]["test"][key]

    expected = {
        PRIMARY[0]: rate(PAPER, "ba-ws/accuracy"),
        PRIMARY[1]: rate(PICTURE, "fields/balanced_accuracy")
        - rate(STRUCTURE, "fields/balanced_accuracy"),
        PRIMARY[2]: rate(GREY, "mean/accuracy") - rate(CBOW, "mean/accuracy"),
    }
    assert {name: judged[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_sets_arguments_that_its_function_has(arm):
    known = inspect.signature(resolve_name(ARMS[arm].function)).parameters
    flags = {"net", *Pictures.__dataclass_fields__} if "drawing" in known else set()
    assert {*ARMS[arm].arguments} <= known.keys() | flags


def test_statistics_are_those_of_a_triangle_with_a_tail():
    network = parse_network(b"a b\nb c\nc a\nc d\n", "", Pictures().record)
    found = numbers_of(network, "structure")
    assert found[:5] == [4, 4, 2, np.sqrt(0.5), 3]
    assert found[5:7] == pytest.approx([6 / 10, -5 / 7])  # networkx 3.6
    assert found[7] < 0 < found[-1] == pytest.approx(1)


@pytest.mark.filterwarnings(
    "ignore:the axes of", "ignore:.*images are set aside", "ignore:.*parts, which"
)
@pytest.mark.usefixtures("quick")
def test_verify_cnc_quick_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWELL_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("STEPWELL_ONE_PROCESS", "1")
    arms = [PICTURE, PAPER, DEGREES]
    record, page = verify_system("cnc", {}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms)
    assert record["arms"][PICTURE]["copies/same"]["n"] == 1
    assert {"headline", "copies", "robust/size"} <= {claim["id"] for claim in record["claims"]}
    assert page.exists()
    with pytest.raises(ValueError, match="verify cnc needs real networks"):
        verify_system("cnc", {}, quick=False, seeds=1, workers=1, folder=tmp_path, arms=arms)
    results = published_split(out=tmp_path / "sums", nodes=30, train=4, test=3, epochs=1)
    assert set(results["test"]) >= {"ba-null/accuracy"}
