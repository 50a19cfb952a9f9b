"""The studies of other networks compare what their words say, and their arms start alike."""

import pytest

from claims.example_results import distinct_results
from stepwell.claims.ablation import UNTAUGHT
from stepwell.claims.kit.judging import judge
from stepwell.claims.networks import PRETRAINED, VIT
from stepwell.nets import build


@pytest.mark.parametrize(
    ("study", "small", "full"), [(PRETRAINED, "1-1-1-2-2-2-1", "full"), (VIT, "3", "6")]
)
def test_each_depth_is_compared_with_its_own_rival(study, small, full):
    results = distinct_results(study.arms, (small, full))
    ours, alone = f"{small} < {full}, nested", f"{full} alone"

    def gain(rival, depth):
        a, b = (100 * results[arm][0]["test"][f"{depth}/accuracy"] for arm in (ours, rival))
        return a - b

    judged = {claim["id"]: claim["difference"]["mean"] for claim in judge(study, results)}
    assert judged["better-than-offline"] == pytest.approx(gain(f"{small}, offline KD", small))
    assert judged["full-net-unharmed"] == pytest.approx(gain(alone, full))
    assert judged["teaching-pays"] == pytest.approx(gain(f"{ours}, labels only", small))
    seconds = {arm: result[0]["cpu_seconds"] for arm, result in results.items()}
    offline = sum(seconds[f"{d}, offline KD"] for d in (small, full))
    expected = (seconds[ours] + seconds[alone]) / (offline + seconds[alone])
    assert judged["cost"] == pytest.approx(expected)


@pytest.mark.parametrize("study", [PRETRAINED, VIT])
def test_the_rival_of_a_depth_is_that_depth_alone_from_the_same_start(study):
    full, small, again, *nested = study.arms.values()
    name, (depth,) = nested[0].arguments["net"], nested[0].arguments["depths"]
    net = build(name, [depth])
    rival = build(small.arguments["student"])
    assert list(rival.depths.values()) == [net.depths[next(iter(net.depths))]]
    start = study.common.get("init")
    for arm in (full, small, again):
        assert arm.all_arguments(study.common).get("init") == start
    assert UNTAUGHT.items() <= nested[1].arguments.items()
    assert nested[1].arguments.items() - UNTAUGHT.items() == nested[0].arguments.items()
    assert all(arm.needs == {"init": f"{net.full} alone"} for arm in nested)
    assert study.quick.get("init") is None  # it downloads nothing
