"""Measuring trained networks from Python, without the command line."""

import pytest

import stepwell
from stepwell import measure
from stepwell.evaluation import side_by_side
from stepwell.measure.data_parts import parts_for

DIGITS = tuple("0123456789")


@pytest.fixture
def nets(tmp_path, quick):
    made = []
    for name in ("student", "teacher"):
        net = stepwell.build("resnet14", ["8"], num_classes=10)
        net.mark("trained")
        net.card = stepwell.Card(classes=DIGITS, size=8)
        made.append(stepwell.save(net.eval(), tmp_path / name))
    return made


def test_fidelity_is_measured_from_python(nets, monkeypatch):
    monkeypatch.setattr(side_by_side, "CKA_EXAMPLES", 50)
    student, teacher = nets
    tracked = []

    def track(steps, title, total):
        tracked.append((title, total))
        return steps

    with pytest.warns(UserWarning, match="compared on test images only"):
        found = measure.measure_fidelity(student, str(teacher), data="digits", track=track)
    assert tracked == [("test images", 2)]
    assert (found["depths"], list(found["parts"])) == (["8", "14"], ["test"])
    net = stepwell.load(student)
    test = parts_for(net, "digits").test
    expected = stepwell.fidelity(stepwell.load(teacher), net, test)
    numbers = found["parts"]["test"]["numbers"]
    for key in ("agreement", "kl", "teacher/nll"):
        name = key if key.startswith("teacher") else f"14/{key}"
        assert numbers[name] == pytest.approx(expected[key])


def test_depths_are_measured_as_results_hold_them(nets):
    net = stepwell.load(nets[0])
    results = measure.measure_depths(net, measure.parts_for(net, "digits").test)
    assert (results["kind"], results["rows"], results["examples"]) == ("classifier", "depth", 359)
    assert list(results["costs"]) == ["8", "14"]
    assert {"8/accuracy", "14/ece", "8/agreement"} <= results["test"].keys()
    assert "8/churn/14" in results["churn"]
    state = {name: value.clone() for name, value in net.train().state_dict().items()}
    assert measure.measure_depths(net, measure.parts_for(net, "digits").test)["test"] == results["test"]
    assert net.training
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())
    assert "measure" in stepwell.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = measure.nothing
