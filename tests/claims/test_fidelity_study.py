"""The study of fidelity: comparisons as arms, seeds that differ, and its claims."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from stepwell.claims.fidelity.compare import compare
from stepwell.claims.fidelity.study import (
    ADAM,
    AGAINST_SUBNETS,
    COLD,
    COMBINED,
    DEEP,
    EASY,
    FAR,
    FIVE,
    GENERATED,
    LABELS,
    LONG,
    MIXUP,
    NEAR,
    NESTED,
    NOISE,
    OFFLINE_OWN,
    OTHER,
    OTHER_DOMAIN,
    SELF,
    SHARED_ONLY,
    SHARED_START,
    SLOW,
    STUDY,
    THREE,
    WHOLE,
    start,
    student,
)
from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.page import render
from stepwell.claims.kit.study import slug
from stepwell.claims.kit.verify import verify_system
from stepwell.data import Batches, load_images
from stepwell.data.distill_data import DistillData
from stepwell.evaluation import fidelity
from stepwell.measure import data_parts as parts
from stepwell.nets.files.nested import load
from stepwell.recipes import train

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    arms = [SELF, NESTED, AGAINST_SUBNETS]
    small = {"part": "1/4"}
    call = partial(verify_system, "fidelity", small, seeds=1, workers=1, folder=folder, arms=arms)
    return call(quick=True)[0], folder, call


def unit(folder, arm):
    """The folder of an arm's unit of seed 0."""
    (found,) = folder.glob(f"units/{slug(arm)}-0-*")
    return found


def config(folder, arm):
    return json.loads((unit(folder, arm) / "run" / "config.json").read_text())


def test_verify_fidelity_quick_runs_and_goes_on_where_it_stopped(verified):
    record, folder, call = verified
    ids = {claim["id"] for claim in record["claims"]}
    assert {"student-beats-teacher", "little-transfer", "sharing/transfer"} <= ids
    assert not {"mixup", "basin", "easy-task"} & ids
    page = (folder / "fidelity.md").read_text()
    assert page == render(record, STUDY, "fidelity.svg")
    assert f"| {SELF} | 1 |" in page
    assert "more accurate than its teacher" in (folder / "fidelity.svg").read_text()
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}
    assert len(stamps) == len(record["arms"]) == 10
    assert call(quick=True)[0]["claims"] == record["claims"]
    assert stamps == {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}


def test_teachers_and_students_have_seeds_of_their_own(verified):
    _, folder, _ = verified
    arms = ("teacher 1", "teacher 4", student(SELF), "student of another teacher")
    assert [config(folder, arm)["arguments"]["seed"] for arm in arms[:3]] == [1000, 4000, 0]
    assert config(folder, student(arms[3]))["arguments"]["seed"] == 0


def test_a_claims_seconds_are_those_of_all_that_it_needs(verified):
    record, _, _ = verified
    (claim,) = [c for c in record["claims"] if c["id"] == "test-agreement"]
    needs = (SELF, student(SELF), student("student of another teacher"), "teacher 1", "teacher 4")
    expected = sum(record["arms"][arm]["seconds"]["mean"] for arm in needs)
    assert claim["seconds"] == pytest.approx(expected)


def test_a_comparison_is_the_librarys_fidelity(verified):
    record, folder, _ = verified
    teacher, own, other = (
        load(unit(folder, arm) / "run" / "net.safetensors")
        for arm in ("teacher 1", student(SELF), student("student of another teacher"))
    )
    splits, card = load_images("digits"), own.card
    test = Batches(splits.test, 100, mean=card.mean, std=card.std)
    half = splits.train.part(1, 2)
    for part, batches in {"test": test, "train": test.with_images(half)}.items():
        expected = fidelity(teacher, own, batches, control=other)
        for key in ("agreement", "kl", "transfer", "gain", "accuracy", "control/kl", "teacher/ece"):
            found = record["arms"][SELF][f"{part}/{key}"]["mean"]
            assert found == pytest.approx(expected[key], abs=1e-9), (part, key)
    whole = json.loads((unit(folder, SELF) / "run" / "fidelity.json").read_text())
    assert whole["test"]["agreement/low"] < whole["test"]["agreement/high"]
    assert not any(key.endswith(("/low", "/high")) for key in record["arms"][SELF])


def test_a_sub_net_is_compared_with_the_net_that_holds_it(verified):
    record, folder, _ = verified
    net = load(unit(folder, student(NESTED)) / "run" / "net.safetensors")
    test = load_images("digits").test
    batches = Batches(test, 100, mean=net.card.mean, std=net.card.std)
    expected = fidelity(net, lambda x: net(x, "8"), batches)["agreement"]
    assert record["arms"][NESTED]["test/agreement"]["mean"] == expected


COMMON = {"data": "digits", "epochs": 1, "batch_size": 256, "val_fraction": 0.0, "part": "1/4"}


def test_images_as_the_student_saw_them_are_those_of_its_own_training(verified, tmp_path):
    _, folder, _ = verified
    teacher = str(unit(folder, "teacher 1") / "run")
    shown = DistillData(mix="mixup", synthetic="noise")
    run = tmp_path / "run"
    train(
        "distill",
        out=run,
        teacher=(teacher,),
        student="resnet8",
        ce=0.0,
        distill_data=shown,
        **COMMON,
    )
    batches, test = parts.batches_of(run)
    images, labels = batches.at(0)
    assert labels.shape == (256, 10)  # mixed, and of noise there is none
    assert (batches.seed, len(batches.images), len(test.images)) == (0, 360, 359)
    found = compare(out=tmp_path / "c", student=run / "net.safetensors", teacher=(teacher,))["test"]
    nets = [load(f"{folder}/net.safetensors") for folder in (teacher, run)]
    same = []
    for images, _ in batches:
        tops = [net(images).argmax(1) for net in nets]
        same.append(tops[0] == tops[1])
    assert found["seen/agreement"] == pytest.approx(torch.cat(same).double().mean().item())
    assert "seen/accuracy" not in found


@pytest.mark.long
def test_students_of_more_images_take_as_many_steps(verified, tmp_path):
    """A fifth of every batch is made or of another domain, in a fifth fewer passes."""
    _, folder, _ = verified
    teacher = (str(unit(folder, "teacher 1") / "run"),)
    steps = {}
    for arm in (SELF, OTHER_DOMAIN, GENERATED):
        own = STUDY.arms[student(arm)].all_arguments(COMMON | {"epochs": 10, "batch_size": 16})
        shown = own.get("distill_data", DistillData())
        if arm == GENERATED:
            shown = replace(shown, generator_steps=2, synthetic_count=20)
        own |= {"student": "resnet8", "part": "1/9", "distill_data": shown}
        train("distill", out=tmp_path / arm, teacher=teacher, **own)
        (*_, last) = (tmp_path / arm / "metrics.jsonl").read_text().splitlines()
        steps[arm] = json.loads(last)["step"]
    assert steps[OTHER_DOMAIN] == steps[GENERATED] == pytest.approx(steps[SELF], rel=0.07)


def test_the_generator_trains_for_a_share_of_the_studys_epochs():
    arm = STUDY.arms[student(GENERATED)]
    found = [arm.all_arguments(STUDY.common | {"epochs": n}) for n in (30, 1)]
    shown = DistillData(synthetic="generator", generator_steps=1500)
    assert [a["distill_data"] for a in found] == [shown, replace(shown, generator_steps=50)]
    assert [a["epochs"] for a in found] == [36, 1]


def test_a_student_with_its_teachers_seed_begins_with_its_weights(tmp_path):
    still = COMMON | {"lr": 1e-12, "weight_decay": 0.0, "seed": 5}
    train("supervised", out=tmp_path / "a", net="resnet8", **still)
    teacher = (str(tmp_path / "a"),)
    train("distill", out=tmp_path / "b", student="resnet8", teacher=teacher, **still)
    train("distill", out=tmp_path / "c", student="resnet8", teacher=teacher, **still | {"seed": 6})
    a, b, c = (load_file(tmp_path / name / "net.safetensors")["conv1.weight"] for name in "abc")
    assert torch.allclose(a, b, rtol=0, atol=1e-6)
    assert not torch.allclose(a, c, rtol=0, atol=1e-2)


def test_data_that_has_changed_is_not_compared_on(verified, monkeypatch, tmp_path):
    _, folder, _ = verified
    other = load_images("digits", 10)
    monkeypatch.setattr(parts, "load_images", lambda *_, **__: other)
    run = unit(folder, student(SELF)) / "run"
    with pytest.raises(ValueError, match="digits has changed since"):
        compare(out=tmp_path, student=run / "net.safetensors", teacher=(str(run),))


#: Test agreement, agreement as seen, accuracy and ECE of arms in percent: such as the paper found.
AS_PAPER = {
    SELF: (77.2, 79.0, 74.0, 5.0),
    EASY: (99.5, 99.5, 85.0, 5.0),
    LONG: (77.0, 83.0, 74.0, 5.0),
    ADAM: (76.0, 75.0, 72.0, 5.0),
    COMBINED: (79.0, 60.0, 73.0, 5.0),
    SHARED_START: (77.1, 79.0, 74.0, 5.0),
    MIXUP: (79.0, 70.0, 74.5, 5.0),
    COLD: (73.0, 75.0, 72.0, 5.0),
    NOISE: (77.0, 79.0, 73.0, 5.0),
    OTHER_DOMAIN: (77.5, 79.0, 74.0, 5.0),
    GENERATED: (78.0, 79.0, 74.0, 5.0),
    OTHER: (79.0, 79.0, 72.0, 5.0),
    WHOLE: (80.0, 79.0, 73.8, 5.0),
    THREE: (82.5, 84.0, 75.0, 5.0),
    FIVE: (84.5, 86.0, 75.5, 2.0),
    DEEP: (79.5, 81.0, 75.0, 5.0),
    LABELS: (76.7, 78.0, 74.0, 5.0),
    NESTED: (92.0, 92.0, 70.0, 5.0),
    AGAINST_SUBNETS: (92.0, 92.0, 70.0, 5.0),
    OFFLINE_OWN: (80.0, 81.0, 69.0, 5.0),
    **{start(share): (80.0, 80.0 + 5 * share, 72.0, 5.0) for share in FAR},
    **{start(share): (90.0, 99.9, 72.0, 5.0) for share in NEAR},
    **{start(0.0, rate): (80.0, 78.0, 72.0, 5.0) for rate in SLOW},
}
#: The same where no claim holds.
OTHERWISE = {
    SELF: (91.0, 97.0, 70.0, 5.0),
    EASY: (95.0, 95.0, 88.0, 5.0),
    LONG: (91.0, 98.0, 70.0, 5.0),
    ADAM: (91.0, 98.0, 70.0, 5.0),
    COMBINED: (90.0, 98.0, 70.0, 5.0),
    SHARED_START: (93.0, 98.0, 70.0, 5.0),
    MIXUP: (90.0, 98.0, 70.0, 5.0),
    COLD: (92.0, 98.0, 70.0, 5.0),
    NOISE: (92.0, 98.0, 70.0, 5.0),
    OTHER_DOMAIN: (92.5, 98.0, 70.0, 5.0),
    GENERATED: (90.0, 98.0, 70.0, 5.0),
    OTHER: (90.0, 98.0, 71.0, 5.0),
    WHOLE: (89.0, 98.0, 71.0, 5.0),
    THREE: (90.5, 98.0, 71.0, 2.0),
    FIVE: (90.0, 98.0, 71.0, 3.0),
    DEEP: (97.0, 98.0, 70.0, 5.0),
    LABELS: (92.0, 98.0, 70.0, 5.0),
    NESTED: (96.0, 98.0, 70.0, 5.0),
    AGAINST_SUBNETS: (96.0, 98.0, 70.0, 5.0),
    OFFLINE_OWN: (97.0, 98.0, 70.0, 5.0),
    SHARED_ONLY: (96.0, 98.0, 70.0, 5.0),
    **{start(share): (90.0, 96.0, 70.0, 5.0) for share in (*FAR, *NEAR)},
    **{start(0.0, rate): (90.0, 96.0, 70.0, 5.0) for rate in SLOW},
}


def judged_of(arms, *, gain, transfer, kl):
    """The claims' judgement of three seeds.

    gain: over the teacher, in points; transfer: of SELF at every seed, in points, others' by arm;
    kl: of SELF and of SHARED_START.
    """

    def unit(arm, seed):
        agreement, seen, accuracy, ece = arms.get(arm, (80.0, 80.0, 70.0, 5.0))
        own = transfer.get(arm, (1.0,) * 3)[seed]
        percent = {
            "test/agreement": agreement,
            "seen/agreement": seen,
            "train/agreement": seen,
            "test/accuracy": accuracy,
            "test/ece": ece,
            "test/gain": gain.get(arm, 0.0),
            "test/transfer": own,
            "test/control/agreement": agreement - own,
            "test/teacher/accuracy": accuracy - gain.get(arm, 0.0),
            "test/teacher/ece": 5.0,
        }
        test = {key: value / 100 for key, value in percent.items()}
        test["test/kl"] = kl[arm == SHARED_START]
        assert {c.key for question in STUDY.questions for c in question.columns} <= test.keys()
        return {"test": test, "seconds": 1.0, "cpu_seconds": 1.0}

    return judge(STUDY, {arm: {s: unit(arm, s) for s in range(3)} for arm in STUDY.arms})


def test_every_claim_holds_of_results_like_the_papers_and_none_of_their_contrary():
    as_paper = judged_of(
        AS_PAPER,
        gain={SELF: 3.0},
        transfer={SELF: (1.9, 2.0, 2.1), AGAINST_SUBNETS: (15.0,) * 3, OFFLINE_OWN: (3.0,) * 3},
        kl=(0.836, 0.838),
    )
    assert [c["id"] for c in as_paper] == [c.id for c in STUDY.claims]
    assert not [c["id"] for c in as_paper if c["verdict"] != "holds"]
    otherwise = judged_of(
        OTHERWISE,
        gain={SELF: -1.0, EASY: 3.0},
        # so uneven that it may be nothing, or more than a little
        transfer={
            SELF: (-9.0, 0.0, 12.0),
            THREE: (-1.0,) * 3,
            AGAINST_SUBNETS: (-2.0,) * 3,
            OFFLINE_OWN: (3.0,) * 3,
        },
        kl=(0.9, 0.8),
    )
    assert [c["id"] for c in otherwise] == [c.id for c in STUDY.claims]
    assert not [c["id"] for c in otherwise if c["verdict"] == "holds"]


def test_the_claims_of_fidelity_have_names_of_their_own_and_three_decide():
    ids = [claim.id for claim in STUDY.claims]
    assert len(set(ids)) == len(ids)
    assert len(set(STUDY.primary) & set(ids)) == len(STUDY.primary) == 3
    assert {need for arm in STUDY.arms.values() for need in arm.needed} <= STUDY.arms.keys()
