"""The study of internal representations: its arms run, and its claims compare what they say."""

from itertools import count
from pkgutil import resolve_name

import pytest

from stepwell.claims.bert.study import ARMS, PRIMARY, RIVAL, STUDY
from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.verify import verify_system
from stepwell.flags import flags_of
from stepwell.recipes import RECIPES


@pytest.fixture(scope="module")
def results():
    """Every arm with numbers that no other arm and no other depth has."""
    number = count(1)

    def one():
        return next(number) ** 0.5

    return {
        arm: {
            0: {
                "test": {f"{d}/accuracy": one() / 100 for d in ("3", "6")},
                "bert": {
                    "attention_kl": [one(), one(), one()],
                    "agreement_on_errors": one() / 100,
                },
                "costs": {d: {"macs": one()} for d in ("3", "6")},
                "seconds": 1.0,
                "cpu_seconds": one(),
            }
        }
        for arm in ARMS
    }


@pytest.fixture(scope="module")
def judged(results):
    return {claim["id"]: claim["difference"]["mean"] for claim in judge(STUDY, results)}


def test_every_claim_can_be_judged(judged):
    assert list(judged) == [claim.id for claim in STUDY.claims]
    assert set(PRIMARY) <= judged.keys()


def test_a_teacher_without_errors_leaves_the_claim_about_them_out(results, judged):
    def with_share(share, one):
        return one | {"bert": one["bert"] | {"agreement_on_errors": share}}

    for shares in ([None], [0.5, None]):  # by seed
        flawless = {
            arm: {seed: with_share(share, own[0]) for seed, share in enumerate(shares)}
            for arm, own in results.items()
        }
        names = {claim["id"] for claim in judge(STUDY, flawless)}
        assert names == judged.keys() - {"errors"}


def test_differences_are_of_the_arms_that_claims_name(judged, results):
    def points(arm, depth="3"):
        return 100 * results[arm][0]["test"][f"{depth}/accuracy"]

    def kl(arm):
        return sum(results[arm][0]["bert"]["attention_kl"]) / 3

    def seconds(*arms):
        return sum(results[arm][0]["cpu_seconds"] for arm in arms)

    ours = "nested 3 < 6"
    expected = {
        "internal-helps": points("all layers") - points("soft targets"),
        "stacked-best": points("stacked") - points("all layers"),
        "nested": min(points(ours) - points(RIVAL), points(ours, "6") - points("teacher", "6")),
        "nested-cost": seconds(ours) / seconds("teacher", RIVAL),
        "mismatch": kl("soft targets") / kl("all layers"),
        "control/shuffled": points("all layers") - points("all layers, of another text"),
    }
    assert {name: judged[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_sets_flags_that_its_recipe_has(arm):
    assert ARMS[arm].arguments.keys() <= flags_of(resolve_name(RECIPES[ARMS[arm].recipe][0]))


def test_verify_bert_quick_runs(tmp_path):
    arms = [RIVAL, "nested 3 < 6"]
    record, page = verify_system("bert", {}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms)
    assert set(record["arms"]) == {*arms, "teacher"}
    assert {claim["id"] for claim in record["claims"]} == {"nested", "nested-cost"}
    assert "One seed: no interval" in page.read_text()


def test_a_folder_that_is_not_there_is_named_with_its_flag(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*train.tsv: name the folder .* --data"):
        verify_system(
            "bert", {"data": str(tmp_path)}, quick=False, seeds=1, workers=1, folder=tmp_path / "v"
        )
