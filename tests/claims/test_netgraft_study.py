"""The study of grafting: draws of images and initial values as arms, and its claims."""

import json
import statistics
from functools import partial

import pytest

from stepwell.claims.few_shots import few_shots
from stepwell.claims.netgraft import ARMS, CLAIMS, FULL, KD, LABELS, NETGRAFT, PRIMARY, STUDY, at
from stepwell.claims.study import judge, slug
from stepwell.claims.verify import verify_system

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    arms = [at(way, 1) for way in (NETGRAFT, KD, LABELS)]
    call = partial(verify_system, "netgraft", {}, seeds=3, workers=1, folder=folder, arms=arms)
    return call(quick=True)[0], folder, call


def config(folder, arm, init=0):
    (unit,) = folder.glob(f"units/{slug(arm)}-0-*")
    return json.loads((unit / "run" / f"init-{init}" / "config.json").read_text())


def test_verify_netgraft_quick_runs_and_goes_on_where_it_stopped(verified):
    record, folder, call = verified
    ids = {claim["id"] for claim in record["claims"]}
    assert ids == {"kd/1", "labels/1", "stage-1/1"}
    assert (folder / "netgraft.md").read_text().count("| NetGraft, K = 1 |") == 1
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}
    assert len(stamps) == len(record["arms"]) == 4
    assert call(quick=True)[0]["claims"] == record["claims"]
    assert stamps == {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}


def test_all_ways_see_the_same_images_and_have_seeds_apart_from_the_teachers(verified):
    record, folder, _ = verified
    own = {arm: config(folder, arm) for arm in record["arms"] if arm != "teacher"}
    assert {c["arguments"]["part"] for c in own.values()} == {"1/130"}
    assert {c["arguments"]["seed"] for c in own.values()} == {1000}
    assert own[at(NETGRAFT, 1)]["data"]["train"] == 10
    assert ARMS["teacher"].seed_shift == 500
    assert record["arms"][at(NETGRAFT, 1)]["untuned"]["n"] == 1


def test_numbers_are_means_over_initial_values_of_one_draw(verified, tmp_path):
    _, folder, _ = verified
    (teacher,) = folder.glob("units/teacher-0-*/run/net.safetensors")
    options = STUDY.quick | {"student": "resnet8", "shots": 1, "seed": 2, "method": "labels"}
    del options["epochs"]
    found = few_shots(out=tmp_path, teacher=teacher, **options | {"inits": 2})
    runs = [json.loads((tmp_path / f"init-{i}" / "config.json").read_text()) for i in (0, 1)]
    assert [run["arguments"]["seed"] for run in runs] == [1002, 2002]
    assert [run["arguments"]["part"] for run in runs] == ["3/130"] * 2
    values = [
        json.loads((tmp_path / f"init-{i}" / "results.json").read_text())["test"]["8/accuracy"]
        for i in (0, 1)
    ]
    assert found["test"]["8/accuracy"] == statistics.fmean(values)
    assert found["test"]["spread"] == statistics.stdev(values)


@pytest.mark.parametrize(("student", "blocks"), [("resnet14_slim", 2), ("resnet14_slimmer", 3)])
def test_baselines_from_scratch_take_as_many_steps_as_both_stages(
    verified, tmp_path, student, blocks
):
    _, folder, _ = verified
    (teacher,) = folder.glob("units/teacher-0-*/run/net.safetensors")
    options = {k: v for k, v in STUDY.quick.items() if k != "epochs"}
    options |= {"student": student, "shots": 1, "graft_steps": 2, "join_steps": 3}

    def steps(**way):
        (tmp_path / way["method"]).mkdir()
        few_shots(out=tmp_path / way["method"], teacher=teacher, **options | way)
        lines = (tmp_path / way["method"] / "init-0" / "metrics.jsonl").read_text().splitlines()
        return {line["phase"]: line["step"] for line in map(json.loads, lines)}

    assert len(both := steps(method="netgraft")) == 2 * blocks - 1
    assert steps(method="kd") == {"train": sum(both.values())}


def test_claims_are_judged_by_their_rules():
    """Made-up numbers: what is level with full-data KD holds, what stage 2 takes away does not."""

    def result(accuracy):
        return {"test": {"14/accuracy": accuracy, "untuned": 0.5}, "seconds": 1.0}

    results = {arm: {seed: result(0.6 + seed / 1000) for seed in range(3)} for arm in ARMS}
    results[at(NETGRAFT, 10)] = {seed: result(0.59 + seed / 1000) for seed in range(3)}
    results[FULL] = {seed: result(0.605 + seed / 1000) for seed in range(3)}
    results[at(KD, 10)] = {seed: result(0.3 + seed / 1000) for seed in range(3)}
    holds = {claim["id"]: claim["holds"] for claim in judge(STUDY, results)}
    assert holds["par/10"]  # 1.5 points less, of 2
    assert holds["kd/10"]
    assert not holds["direct/10"]
    assert not holds["kd/1"]
    assert len(holds) == len(CLAIMS) == len(set(holds))
    assert holds.keys() >= PRIMARY
