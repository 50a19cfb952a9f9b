"""The claims about schedules and parts of the loss compare what their words say."""

from itertools import count

import pytest
import torch

from stepwell.claims.ablation import ARMS, STUDY, joint_macs
from stepwell.claims.kit.judging import judge
from stepwell.cost import count_macs, count_macs_of_steps
from stepwell.nets import build

TWO, FOUR = "20 < 32, EKD two phases", "8 < 14 < 20 < 32, EKD taught by 32 alone"


@pytest.fixture(scope="module")
def results():
    """Every arm with numbers that no other arm and no other depth has."""
    number = count(1)

    def result(arm):
        made = ARMS[arm].arguments
        full = made.get("net") or made["student"]
        subs = [d.partition("=")[0] for d in (*made.get("depths", ()), *made.get("calibrated", ()))]
        depths = [*subs, full.removeprefix("resnet")]
        return {
            "test": {
                f"{d}/{kind}": next(number) ** 0.5 / 100
                for kind in ("accuracy", "agreement")
                for d in depths
            },
            "costs": {d: {"macs": next(number)} for d in depths},
            "file_bytes": next(number),
            "seconds": 1.0,
            "cpu_seconds": next(number) ** 0.5,
        }

    return {arm: {0: result(arm)} for arm in ARMS}


@pytest.fixture(scope="module")
def judged(results):
    return {claim["id"]: claim for claim in judge(STUDY, results)}


def test_every_claim_can_be_judged_and_has_a_name_of_its_own(judged):
    assert list(judged) == [claim.id for claim in STUDY.claims]
    assert set(STUDY.primary) <= judged.keys()
    assert {need for arm in ARMS.values() for need in arm.needed} <= ARMS.keys()


@pytest.mark.parametrize(
    ("claim", "a", "b", "depth"),
    [
        ("sub-nets-gain/2-depths/ekd-two-phases", TWO, "20 alone", "20"),
        ("sub-nets-gain/2-depths/ekd-plain", "20 < 32, EKD plain", "20 alone", "20"),
        ("offline-kd/2-depths/ekd-one-run", "20 < 32, EKD one run", "20, offline KD", "20"),
        ("full-net-unharmed/2-depths/ekd-two-phases", TWO, "32 alone", "32"),
        ("full-net-unharmed/4-depths/ekd-taught-by-32-alone", FOUR, "32 alone", "32"),
        ("kl-helps", TWO, f"{TWO}, no KL", "20"),
        ("attention-helps", TWO, f"{TWO}, no attention", "20"),
        ("private-norms/20", TWO, f"{TWO}, shared norms", "20"),
        ("ekd-helps/32", TWO, f"{TWO}, labels only", "32"),
        ("beyond-longer/20", TWO, "20 alone, longer", "20"),
        ("beyond-longer/32", TWO, "32 alone, longer", "32"),
        ("beyond-self-taught/20", "20 < 32, EKD one run", "20, self-taught", "20"),
        ("moving-teacher/20", TWO, f"{TWO}, frozen teacher", "20"),
    ],
)
def test_a_difference_is_of_the_arms_and_the_depth_that_the_claim_names(
    judged, results, claim, a, b, depth
):
    def points(arm):
        return 100 * results[arm][0]["test"][f"{depth}/accuracy"]

    assert judged[claim]["difference"]["mean"] == pytest.approx(points(a) - points(b))
    assert {m["mean"] for m in judged[claim]["measured"].values()} >= {points(a), points(b)}


def test_of_several_sub_nets_the_one_that_fares_worst_is_judged(judged, results):
    def least(baseline):
        return min(
            results[FOUR][0]["test"][f"{d}/accuracy"]
            - results[f"{d}{baseline}"][0]["test"][f"{d}/accuracy"]
            for d in ("8", "14", "20")
        )

    for claim, baseline in (("sub-nets-gain", " alone"), ("offline-kd", ", offline KD")):
        measured = judged[f"{claim}/4-depths/ekd-taught-by-32-alone"]["difference"]["mean"]
        assert measured == pytest.approx(100 * least(baseline))


def test_a_cost_counts_the_trainings_that_came_before(judged, results):
    def seconds(*arms):
        return sum(results[arm][0]["cpu_seconds"] for arm in arms)

    assert judged["cost/2-depths/ekd-two-phases"]["difference"]["mean"] == pytest.approx(
        seconds(TWO, "32 alone") / seconds("32 alone", "20 alone")
    )
    assert judged["offline-kd-cost/2-depths/ekd-two-phases"]["difference"]["mean"] == pytest.approx(
        seconds(TWO, "32 alone") / seconds("32 alone", "20, offline KD")
    )
    one_run = judged["cost/2-depths/ekd-one-run"]
    assert one_run["difference"]["mean"] == pytest.approx(
        seconds("20 < 32, EKD one run") / seconds("32 alone", "20 alone")
    )


def test_the_bound_runs_the_common_prefix_once(judged, results):
    net, x = build("resnet32", ["20"]), torch.zeros(1, 3, 32, 32)
    full, sub = (count_macs(net.subnet(depth), x) for depth in ("32", "20"))
    shared = [a for a, b in zip(net.path("20"), net.path(), strict=False) if a is b]
    prefix = count_macs_of_steps(shared, x)[-1]
    assert joint_macs(("20",)) == pytest.approx((full + sub - prefix) / full)
    alone = results["32 alone"][0]["cpu_seconds"]
    joint = joint_macs(("20",))  # one run: the full net alone for half of it
    for kind, epochs in (("ekd-one-run", 0.5 + 0.5 * joint), ("ekd-two-phases", 1 + 0.5 * joint)):
        bound = judged[f"cost/2-depths/{kind}"]["measured"]["bound: as the MACs say"]["mean"]
        assert bound == pytest.approx(epochs * alone)
