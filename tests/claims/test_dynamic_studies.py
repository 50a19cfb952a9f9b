"""The studies of dynamic inference: their claims compare what they say, and their arms run."""

import pytest

from stepwell import cli
from stepwell.claims import (
    exits,
    experts,
    frames,
    glance,
    kernels,
    pixels,
    sequences,
    skipping,
    textexits,
    widths,
)
from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.verify import verify_system
from stepwell.commands.verify import ON_TEXTS, dynamic_systems


def network(depth, macs, accuracy):
    return {"test": {f"{depth}/accuracy": accuracy}, "costs": {depth: {"macs": macs}}}


def judged(study, results):
    whole = {arm: {0: {"seconds": 1.0, "cpu_seconds": 1.0} | found} for arm, found in results.items()}
    return {claim["id"]: claim["difference"]["mean"] for claim in judge(study, whole)}


def test_cascades_are_compared_at_the_cost_of_the_static_network():
    def curve(shift):
        heights = {1: 0.5, 2: 0.6, 3: 0.7, 4: 0.72, 5: 0.74}
        return {"test": {
            key: value
            for i, y in heights.items()
            for key, value in ((f"{i}/accuracy", y + shift), (f"{i}/random_accuracy", y - 0.02),
                               (f"{i}/mean_macs", 100.0 * i))
        }}  # fmt: skip

    saved = {"macs": 300, "full_macs": 600, "ms": 4.0, "full_ms": 6.0, "oracle_accuracy": 0.8}
    trained = network("exit1", 90, 0.45)
    trained["test"]["20/accuracy"] = 0.75
    trained["cascade"] = {"test": saved}
    results = {
        exits.alone("20"): network("20", 600, 0.76), exits.alone("14"): network("14", 250, 0.63),
        exits.alone("8"): network("8", 90, 0.46), exits.EXITS: trained,
        exits.cascaded(exits.EXITS): curve(0.0),
    }  # fmt: skip
    others = [exits.TAUGHT, exits.FROZEN, exits.MSDNET]
    results |= {exits.cascaded(arm): curve(0.01) for arm in others} | dict.fromkeys(others, trained)
    results |= {exits.cascaded(exits.EXITS, how): curve(-0.01) for how in exits.HOW}
    assert results.keys() == exits.ARMS.keys()
    found = judged(exits.STUDY, results)
    assert found["better-than-static"] == pytest.approx(65 - 63)  # halfway between two cascades
    assert found["better-than-chance"] == pytest.approx(2)
    assert found["network-unharmed"] == pytest.approx(-1)
    assert found["saves/macs"] == pytest.approx(0.5)
    assert found["saves/ms"] == pytest.approx(1.5 / 2)
    assert found["static"] == pytest.approx(-2)
    assert found["exit1"] == pytest.approx(-1)
    assert found["oracle"] == pytest.approx(6)
    assert found["other/msdnet"] == pytest.approx(1)
    assert found["other/by/4"] == pytest.approx(-1)


def test_gates_are_compared_at_their_own_cost():
    def gated(accuracy, macs, mean):
        speed = [
            {"batch": 64, "speed_up": 1.2, "by_macs": 1.5},
            {"batch": 1, "speed_up": 1, "by_macs": 1},
        ]
        return network("chosen", macs, accuracy) | {
            "skipping": {"mean": mean, "random_accuracy": accuracy - 0.03, "speed": speed}
        }

    results = {
        skipping.alone("20"): network("20", 100, 0.7), skipping.alone("14"): network("14", 60, 0.66),
        skipping.alone("8"): network("8", 20, 0.5), skipping.FIRST: network("20", 100, 0.6),
        skipping.AIG: gated(0.69, 80, 0.62), skipping.TIGHT: gated(0.6, 40, 0.4),
        skipping.SKIPNET: gated(0.7, 100, 0.95), skipping.FRESH: gated(0.62, 80, 0.6),
    }  # fmt: skip
    assert results.keys() == skipping.ARMS.keys()
    found = judged(skipping.STUDY, results)
    assert found == pytest.approx({
        "keeps-accuracy": -1, "better-than-static": 69 - 68, "better-than-chance": 3,
        "saves/time": 1.2 / 1.5,
        "tight/static": 60 - 58, "skipnet/static": 0, "skipnet/cost": 5, "fresh": -7,
    })  # fmt: skip


def test_masks_are_compared_at_their_own_cost():
    def masked(accuracy, macs):
        speed = [
            {"batch": 64, "speed_up": 0.9, "by_macs": 1.8},
            {"batch": 1, "speed_up": 1, "by_macs": 1},
        ]
        record = {"random_accuracy": accuracy - 0.03, "speed": speed}
        return network("chosen", macs, accuracy) | {"pixels": record}

    results = {
        pixels.alone("20"): network("20", 100, 0.7), pixels.alone("14"): network("14", 60, 0.66),
        pixels.alone("8"): network("8", 20, 0.5), pixels.FIRST: network("20", 100, 0.6),
        pixels.MASKS: masked(0.69, 60), pixels.TIGHT: masked(0.6, 40), pixels.WIDE: masked(0.7, 80),
        pixels.CERTAIN: masked(0.68, 60), pixels.FRESH: masked(0.62, 60),
    }  # fmt: skip
    assert results.keys() == pixels.ARMS.keys()
    assert judged(pixels.STUDY, results) == pytest.approx({
        "keeps-accuracy": -1, "better-than-static": 3, "better-than-chance": 3, "saves/time": 0.5,
        "saves/clock": 0.9, "tight/static": 60 - 58, "wide/static": 70 - 68, "noise": 1, "fresh": -7,
    })  # fmt: skip


def test_exits_of_texts_are_compared_at_the_cost_of_three_layers():
    def curve(shift):
        points = [(100, 0.6), (300, 0.8)]  # patience keeps to two budgets of five
        return {"test": {
            key: value
            for i, (macs, y) in enumerate(points, start=1)
            for key, value in ((f"{i}/accuracy", y + shift), (f"{i}/random_accuracy", y - 0.02),
                               (f"{i}/mean_macs", macs))
        }}  # fmt: skip

    saved = {"macs": 300, "full_macs": 600, "ms": 4.0, "full_ms": 6.0, "oracle_accuracy": 0.9}
    trained = network("6", 600, 0.85) | {"cascade": {"test": saved}}
    results = {
        arm: trained if arm.endswith(("alone", "exits", "more", "teaches", "encoder")) else curve(0.01)
        for arm in textexits.ARMS
    } | {textexits.alone("3"): network("3", 200, 0.68), textexits.cascaded(textexits.EXITS): curve(0)}
    found = judged(textexits.STUDY, results)
    assert found["better-than-static"] == pytest.approx(70 - 68)
    assert found["better-than-chance"] == pytest.approx(2)
    assert found["network-unharmed"] == pytest.approx(0)
    assert found["saves/ms"] == pytest.approx(1.5 / 2)
    assert found["oracle"] == pytest.approx(5)
    assert found["other/patience"] == found["other/frozen"] == pytest.approx(1)
    results[textexits.PATIENCE] = {"test": {}}  # no cascade keeps to a budget
    assert "other/patience" not in judged(textexits.STUDY, results)
    results[textexits.alone("3")] = network("3", 90, 0.68)  # cheaper than every cascade
    found = judged(textexits.STUDY, results)
    assert "better-than-static" not in found
    assert "better-than-chance" in found


def test_skipped_tokens_are_compared_at_their_own_cost():
    def read(accuracy, macs, share):
        own = {"share": share, "random_accuracy": accuracy - 0.1, "even_accuracy": accuracy - 0.005}
        return {
            "test": {"chosen/accuracy": accuracy}, "costs": {"chosen": {"macs": macs},
            "all": {"macs": 1000}}, "sequences": own | rows(chosen=0.9),
        }  # fmt: skip

    results = {
        sequences.picked(pick, rate): read(0.5 + 0.4 * rate - less, 1000 * rate, rate)
        for pick, less in (("even", 0.0), ("random", 0.05)) for rate in sequences.RATES
    }  # fmt: skip
    results |= {
        sequences.EVERY: read(0.9, 1000, 1.0), sequences.GATE: read(0.85, 600, 0.55),
        sequences.CHEAP: read(0.7, 375, 0.35), sequences.LSTM: read(0.84, 700, 0.55),
    }  # fmt: skip
    assert results.keys() == sequences.ARMS.keys()
    assert judged(sequences.STUDY, results) == pytest.approx({
        "keeps-accuracy": -5, "skips": 55, "better-than-even": 85 - 74, "random": 85 - 69,
        "own/random": 10, "own/even": 0.5, "cheap": 70 - 65, "lstm": 1, "saves/macs": 0.6,
        "saves/clock": 0.9,
    })  # fmt: skip


def rows(chosen=1.2, fixed=1.0, by_macs=1.5):
    speed = {"batch": 64, "chosen": chosen, "fixed": fixed, "by_macs": by_macs}
    return {"speed": [speed | {"speed_up": chosen / fixed}, {"batch": 1}]}


def test_widths_are_compared_at_their_own_cost_and_with_their_own_controls():
    def chosen(accuracy, macs, random):
        found = network("chosen", macs, accuracy)
        found["test"] |= {"1/accuracy": 0.69, "0.25/accuracy": 0.5}
        controls = {"random": random, "line": 0.66, "oracle": 0.8}
        return found | {"widths": rows() | {"controls": controls, "cost": macs / 100}}

    results = {
        widths.alone("20"): network("20", 100, 0.7), widths.alone("14"): network("14", 60, 0.66),
        widths.alone("8"): network("8", 20, 0.5), widths.DOUBT: chosen(0.67, 50, 0.65),
        widths.STEM: chosen(0.64, 50, 0.65), widths.TIGHT: chosen(0.6, 30, 0.59),
        widths.SANDWICH: chosen(0.68, 50, 0.6), widths.SEEN: chosen(0.66, 50, 0.65),
    }  # fmt: skip
    assert results.keys() == widths.ARMS.keys()
    found = judged(widths.STUDY, results)
    assert found == pytest.approx({
        "better-than-static": 67 - 62, "better-than-chance": 2, "network-unharmed": -1,
        "saves/time": 0.8, "line": 1, "tight/static": 60 - 54, "tight/chance": 1,
        "stem/chance": -1, "seen/chance": 1, "sandwich": 0, "oracle": 13,
    })  # fmt: skip


def test_experts_are_compared_with_one_mlp():
    def trained(accuracy, cv, macs=103):
        layers = {"a": {"cv": cv}, "b": {"cv": cv + 0.2}}
        return network("6", macs, accuracy) | {"experts": rows() | {"layers": layers}}

    results = {arm: trained(0.5, 0.2) for arm in experts.ARMS}
    results |= {experts.DENSE: network("6", 100, 0.48), experts.UNBALANCED: trained(0.5, 0.9)}
    found = judged(experts.STUDY, results)
    assert found == pytest.approx({
        "better-at-equal-cost": 2, "all-are-used": 0.3, "saves-time": 0.8, "cost": 1.03, "noisy": 0,
        "two": 0, "eight": 0, "balance": 0.7,
    })  # fmt: skip


def test_kernels_are_compared_with_one_kernel():
    layers = {"first": {"by_class": 0.05}, "last": {"by_class": 0.25}}
    mixed = network("14", 102, 0.64) | {"kernels": rows(1.0, 1.5) | {"layers": layers}}
    results = dict.fromkeys(kernels.ARMS, mixed)
    results |= {
        kernels.alone("14"): network("14", 100, 0.62), kernels.alone("20"): network("20", 150, 0.65),
    }  # fmt: skip
    found = judged(kernels.STUDY, results)
    assert found == pytest.approx({
        "better-at-equal-width": 2, "by-content": 20, "costs-little": 1.5, "cost": 1.02, "deeper": -1,
        "condconv": 2, "eight": 0,
    })  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_a_quick_study_of_exits_sets_cascades_of_its_network(tmp_path):
    arms = ("14 alone", "exits, by confidence")
    result, page = verify_system(
        "exits", {}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms
    )
    test = result["arms"]["exits, by confidence"]
    assert test["1/mean_macs"]["mean"] <= test["5/mean_macs"]["mean"]
    assert "better-than-static" in page.read_text() or "At the cost of ResNet-14" in page.read_text()


@pytest.mark.usefixtures("quick")
@pytest.mark.long
def test_a_quick_study_of_masks_adds_them_to_a_trained_network(tmp_path):
    arms, few = (pixels.MASKS,), {"part": "1/12"}
    result, _ = verify_system("pixels", few, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms)
    assert {*result["arms"]} == {pixels.FIRST, pixels.MASKS}


@pytest.mark.usefixtures("quick")
@pytest.mark.long
def test_a_quick_study_of_texts_sets_cascades_of_its_encoder(tmp_path):
    arms = (textexits.PATIENCE,)
    result, _ = verify_system(
        "textexits", {}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms
    )
    assert {*result["arms"]} == {textexits.EXITS, textexits.PATIENCE}
    assert result["arms"][textexits.PATIENCE]["1/mean_macs"]["mean"] > 0


@pytest.mark.usefixtures("quick")
def test_a_quick_study_of_skipped_tokens_trains_its_arms(tmp_path):
    arms = (sequences.GATE, sequences.picked("even", 0.5))
    result, _ = verify_system(
        "sequences", {}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms
    )
    assert {*result["arms"]} == {*arms}


def looked(accuracies, controls=None, macs=10):
    """Results of a network that glances: accuracies in percent by number of glances."""
    test = {f"{i}/accuracy": a / 100 for i, a in enumerate(accuracies, start=1)}
    saved = {"macs": 30, "full_macs": 40, "ms": 4.0, "full_ms": 5.0, "oracle_accuracy": 0.9}
    return {
        "test": test, "costs": {str(i): {"macs": macs * i} for i in range(1, len(test) + 1)},
        "glance": {"oracle": 0.9, **{name: {"4": a / 100} for name, a in (controls or {}).items()}},
        "cascade": {"test": saved},
    }  # fmt: skip


def test_glances_are_compared_with_other_places_and_the_whole_image():
    results = {
        glance.POLICY: looked([40, 60, 70, 72], {"others": 65, "random": 64}),
        glance.RANDOM: looked([40, 55, 62, 66]), glance.CENTRE: looked([40, 50, 52, 53]),
        **{arm: network("8", 50, 0.6 + i / 10) for i, arm in enumerate(glance.STATIC)},
        glance.ENCODER: network("8", 12, 0.9),
    }  # fmt: skip
    assert results.keys() == glance.ARMS.keys()
    assert judged(glance.STUDY, results) == pytest.approx({
        "better-than-random": 8, "better-than-chance": 7, "better-than-static": 2, "saves/macs": 0.75,
        "saves/ms": 1.25 / (4 / 3), "glances": 12, "centre": 19, "own/random": 8, "oracle": 18,
    })  # fmt: skip


def test_frames_are_compared_with_even_ones_and_all():
    results = {
        frames.POLICY: looked([30, 60, 70, 75], {"others": 60, "fixed": 62}),
        frames.EVEN: looked([30, 50, 60, 65]), frames.RANDOM: looked([30, 48, 58, 62]),
        frames.ALL: looked([30 + 3 * i for i in range(16)]), frames.ENCODER: network("8", 12, 0.9),
    }  # fmt: skip
    assert results.keys() == frames.ARMS.keys()
    assert judged(frames.STUDY, results) == pytest.approx({
        "better-than-even": 10, "better-than-chance": 15, "saves": 0, "saves/macs": 0.25,
        "cascade/macs": 0.75, "cascade/ms": 1.25 / (4 / 3), "random": 13, "own/even": 13, "small": 45,
    })  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.long
def test_a_quick_study_of_frames_trains_its_arms(tmp_path):
    arms = (frames.POLICY,)
    result, _ = verify_system("frames", {}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms)
    assert {*result["arms"]} == {frames.ENCODER, *arms}


def test_dynamic_stands_for_every_leaf_that_is_tested(monkeypatch, tmp_path, capsys):
    assert dynamic_systems()[:2] == ["exits", "ekd"]
    assert {"skipping", "drnet", "widths", "experts", "kernels", "pixels"} <= {*dynamic_systems()}
    seen = []

    def verify(system, *, folder, **_):
        seen.append((system, folder))
        return {"system": system}, folder / "page.md"

    monkeypatch.setattr("stepwell.claims.kit.verify.verify_system", verify)
    cli.main(["verify", "dynamic", "--out", str(tmp_path), "--json"])
    of_images = [name for name in dynamic_systems() if name not in ON_TEXTS]
    assert len(of_images) < len(dynamic_systems())
    assert seen == [(name, tmp_path / name) for name in of_images]
    seen.clear()
    cli.main(["verify", "dynamic", "--quick", "--out", str(tmp_path), "--json"])
    assert [name for name, _ in seen] == dynamic_systems()
    assert '"system": "skipping"' in capsys.readouterr().out
