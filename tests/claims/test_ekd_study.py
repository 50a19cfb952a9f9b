"""The claims about the default recipe compare what their words say, and its arms are that recipe."""

import pytest

from claims.example_results import distinct_results
from stepwell.claims import deep
from stepwell.claims.ekd import ARMS, PRIMARY, STUDY
from stepwell.claims.kit.judging import judge
from stepwell.recipes.ekd import Losses, Training

DEPTHS = ("8", "14", "20", "32")
NESTED = "8 < 14 < 20 < 32, nested"


@pytest.fixture(scope="module")
def results():
    return distinct_results(ARMS, DEPTHS)


@pytest.fixture(scope="module")
def judged(results):
    return {claim["id"]: claim for claim in judge(STUDY, results)}


@pytest.fixture(scope="module")
def gain(results):
    def points(arm, depth):
        return 100 * results[arm][0]["test"][f"{depth}/accuracy"]

    return lambda rival, depth: points(NESTED, depth) - points(rival.format(depth), depth)


OFFLINE, LABELS = "{}, offline KD", f"{NESTED}, labels only"


def test_every_claim_can_be_judged_and_has_a_name_of_its_own(judged):
    assert list(judged) == [claim.id for claim in STUDY.claims]
    assert set(PRIMARY) <= judged.keys()


@pytest.mark.parametrize(
    ("claim", "rival"), [("better-than-offline", OFFLINE), ("teaching-pays", LABELS)]
)
def test_a_primary_claim_is_the_lesser_of_the_mean_and_of_depth_8(judged, gain, claim, rival):
    mean = sum(gain(rival, d) for d in DEPTHS) / 4
    expected = min(mean, gain(rival, "8") - 0.5)
    assert judged[claim]["difference"]["mean"] == pytest.approx(expected)


def test_the_full_net_is_compared_with_labels_only_and_with_itself_alone(judged, gain):
    expected = min(gain(LABELS, "32") + 0.5, gain("{} alone", "32") - 1.0)
    assert judged["full-net-unharmed"]["difference"]["mean"] == pytest.approx(expected)


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_is_compared_with_its_own_rival(judged, gain, depth):
    rivals = {"offline": OFFLINE, "labels": LABELS, "alone": "{} alone",
              "apart": "{} alone, equal seconds"}  # fmt: skip
    for slug, rival in rivals.items():
        found = judged[f"{slug}/{depth}"]["difference"]["mean"]
        assert found == pytest.approx(gain(rival, depth))


def test_a_cost_counts_the_full_net_once(judged, results):
    def seconds(*arms):
        return sum(results[arm][0]["cpu_seconds"] for arm in arms)

    for depths, subs in (("4", DEPTHS), ("2", ("20", "32"))):
        ours = f"{' < '.join(subs)}, nested"
        expected = seconds(ours, "32 alone") / seconds("32 alone", *map(OFFLINE.format, subs))
        assert judged[f"cost/{depths}-depths"]["difference"]["mean"] == pytest.approx(expected)


def test_the_nested_arms_are_the_default_recipe():
    own = {"net", "depths", "calibrated", "init", "nest_epochs"}
    for arm in (NESTED, "20 < 32, nested"):
        assert ARMS[arm].arguments.keys() <= own
        assert ARMS[arm].scaled == {"nest_epochs": 1.0}  # as --epochs
    assert (Training.schedule, Training.nest_epochs) == ("two-phase", None)
    assert (Losses.attention, Losses.full_weight) == (0.0, None)


def test_the_deep_study_asks_the_same_of_another_network():
    depths, nested = ("8", "20", "32", "56"), "8 < 20 < 32 < 56, nested"
    results = distinct_results(deep.ARMS, depths)

    def points(arm, depth):
        return 100 * results[arm][0]["test"][f"{depth}/accuracy"]

    judged = {claim["id"]: claim["difference"]["mean"] for claim in judge(deep.STUDY, results)}
    for claim, rival in (("better-than-offline", OFFLINE), ("teaching-pays", f"{nested}, labels only")):
        gains = {d: points(nested, d) - points(rival.format(d), d) for d in depths}
        assert judged[claim] == pytest.approx(min(sum(gains.values()) / 4, gains["8"] - 0.5))
    full = points(nested, "56")
    against = (points(f"{nested}, labels only", "56") - 0.5, points("56 alone", "56") + 1.0)
    assert judged["full-net-unharmed"] == pytest.approx(min(full - other for other in against))
    arms = deep.ARMS[nested].arguments, deep.ARMS[f"{nested}, labels only"].arguments
    assert arms[0]["depths"] == arms[1]["depths"] == ("8=1,1,1", "20=3,3,3", "32=5,5,5")
    assert (arms[0]["net"], deep.ARMS["20, offline KD"].arguments["student"]) == (
        "resnet56",
        "resnet20",
    )
    assert deep.STUDY.common["mix"] == "mixup"
