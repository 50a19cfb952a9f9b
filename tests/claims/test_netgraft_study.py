"""The study of grafting: draws of images and initial values as arms, and its claims."""

import json
import statistics
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.study import slug
from stepwell.claims.kit.verify import verify_system
from stepwell.claims.netgraft.few_shots import draw, few_shots, full_data
from stepwell.claims.netgraft.study import (
    ARMS,
    CLAIMS,
    FULL,
    KD,
    LABELS,
    NETGRAFT,
    PRIMARY,
    SLIM,
    SLIMMER,
    STUDY,
    at,
)
from stepwell.data import load_images

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    arms = [at(way, 1) for way in (NETGRAFT, KD, LABELS)]
    call = partial(verify_system, "netgraft", {}, seeds=1, workers=1, folder=folder, arms=arms)
    return call(quick=True)[0], folder, call


def test_verify_netgraft_quick_runs_and_goes_on_where_it_stopped(verified):
    record, folder, call = verified
    ids = {claim["id"] for claim in record["claims"]}
    assert ids == {"kd/1", "teacher/1"}
    assert (folder / "netgraft.md").read_text().count("| NetGraft, K = 1 |") == 1
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}
    assert len(stamps) == len(record["arms"]) == 4
    assert call(quick=True)[0]["claims"] == record["claims"]
    assert stamps == {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}


def test_an_arms_images_are_so_many_of_each_class_whatever_the_data(tmp_path):
    train = load_images("digits").train
    few, more = (draw(train, shots=k, seed=3) for k in (2, 5))
    for images, shots in ((few, 2), (more, 5)):
        assert images.labels.bincount().tolist() == [shots] * 10
    rows = {row.numpy().tobytes() for row in more.pixels}
    assert {row.numpy().tobytes() for row in few.pixels} < rows < set(map(bytes_of, train.pixels))
    assert draw(train, shots=2, seed=3).fingerprint == few.fingerprint
    assert draw(train, shots=2, seed=4).fingerprint != few.fingerprint
    least = int(train.labels.bincount().min())
    with pytest.raises(ValueError, match=f"{least + 1} images of each class .* has {least} in the"):
        draw(train, shots=least + 1, seed=0)


def bytes_of(row):
    return row.numpy().tobytes()


@pytest.fixture
def train_few(verified, tmp_path):
    """A way of training on one digit of each class, under a name."""
    _, folder, _ = verified
    (teacher,) = folder.glob("units/teacher-0-*/run/net.safetensors")
    options = {"data": "digits", "size": None, "student": SLIM, "shots": 1, "lr": 0.01}
    options |= {"graft_steps": 1, "join_steps": 1, "views": 1, "inits": 1}

    def train(name, **way):
        return few_shots(out=tmp_path / name, teacher=teacher, **options | way)

    return train


def test_all_ways_and_initial_values_of_a_seed_see_the_same_images(verified, train_few, tmp_path):
    record, folder, _ = verified
    expected = draw(load_images("digits").train, shots=1, seed=0).fingerprint
    results = {
        arm: json.loads(next(folder.glob(f"units/{slug(arm)}-0-*/result.json")).read_text())
        for arm in record["arms"]
        if arm != "teacher"
    }
    assert len(results) == 3
    assert [result["images"] for result in results.values()] == [[expected]] * 3
    two = train_few("two", inits=2, schedule="direct")
    assert two["images"] == [expected] * 2
    assert train_few("other", method="kd", seed=1)["images"] != [expected]
    seeds = [
        json.loads((tmp_path / "two" / f"init-{i}" / "config.json").read_text())["arguments"]["seed"]
        for i in (0, 1)
    ]
    assert seeds == [1000, 2000]
    assert ARMS["teacher"].seed_shift == 500


def test_numbers_are_means_over_initial_values_of_one_draw(train_few, tmp_path):
    found = train_few("two", seed=2, method="labels", inits=2)
    runs = [json.loads((tmp_path / "two" / f"init-{i}" / "results.json").read_text()) for i in (0, 1)]
    values = [run["test"]["14/accuracy"] for run in runs]
    assert found["test"]["14/accuracy"] == statistics.fmean(values)
    assert found["test"]["spread"] == statistics.stdev(values)
    assert found["test"]["run_seconds"] == found["cpu_seconds"] / 2
    assert "spread" not in train_few("one", seed=2, method="labels")["test"]


@pytest.mark.parametrize(
    ("student", "blocks"), [(SLIM, 2), pytest.param(SLIMMER, 3, marks=pytest.mark.long)]
)
def test_all_ways_take_as_many_steps_and_see_the_same_views(train_few, tmp_path, student, blocks):
    """30 views in batches of 8 are 4 steps an epoch, of which no phase is a multiple."""
    length = {"graft_steps": 9, "join_steps": 2, "batch_size": 8, "views": 3}

    def steps(name, **way):
        train_few(name, student=student, **length | way)
        lines = (tmp_path / name / "init-0" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["step"] == 4  # an epoch of 30 views
        return [step for _, step in {m["phase"]: m["step"] for m in map(json.loads, lines)}.items()]

    both = steps("both")
    assert both == [9] * blocks + [2] * (blocks - 1)
    ways = {
        "direct": {"schedule": "direct"},
        "kd": {"method": "kd"},
        "labels": {"method": "labels"},
    }
    for name, way in ways.items():
        assert steps(name, **way) == [sum(both)]
    alone = steps("graft", schedule="graft")
    assert (len(alone), sum(alone), max(alone) - min(alone) <= 1) == (blocks, sum(both), True)
    joined = steps("join", schedule="join")
    assert (len(joined), sum(joined)) == (blocks - 1, sum(both))


def test_full_data_distillation_starts_with_the_blocks_that_grafting_copies(verified, tmp_path):
    _, folder, _ = verified
    (teacher,) = folder.glob("units/teacher-0-*/run/net.safetensors")
    options = {"data": "digits", "size": None, "epochs": 1, "val_fraction": 0.0}
    found = full_data(out=tmp_path, teacher=teacher, student=SLIM, **options)
    assert 0 < found["test"]["14/accuracy"] <= 1
    begun, theirs = load_file(tmp_path / "start.safetensors"), load_file(teacher)
    same = {name.split(".")[0] for name in begun if torch.equal(begun[name], theirs[name])}
    assert same >= {"conv1", "layer1", "layer2"}
    assert not torch.equal(begun["layer3.0.conv1.weight"], theirs["layer3.0.conv1.weight"][:32])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["arguments"]["init"] == str(tmp_path / "start.safetensors")


def test_claims_are_judged_by_their_rules():
    """Made-up numbers: what is level with full-data KD holds, what stage 2 takes away does not."""

    def result(accuracy):
        return {"test": {"14/accuracy": accuracy, "untuned": 0.5}, "seconds": 1.0}

    results = {arm: {seed: result(0.6 + seed / 1000) for seed in range(3)} for arm in ARMS}
    results[at(NETGRAFT, 10)] = {seed: result(0.59 + seed / 1000) for seed in range(3)}
    results[FULL] = {seed: result(0.605 + seed / 1000) for seed in range(3)}
    results[at(KD, 10)] = {seed: result(0.3 + seed / 1000) for seed in range(3)}
    holds = {c["id"]: c["verdict"] == "holds" for c in judge(STUDY, results)}
    assert holds["par/10"]  # 1.5 points less, of 2
    assert holds["kd/10"]
    assert not holds["direct/10"]
    assert not holds["kd/1"]
    assert len(holds) == len(CLAIMS) == len(set(holds))
    assert holds.keys() >= set(PRIMARY)
