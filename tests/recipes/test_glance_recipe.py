"""The recipe of glances: its run, what every command does with it, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import stepwell
from stepwell import cli
from stepwell.data import load_images
from stepwell.nets import build
from stepwell.nets.decisions.glances import policy_of
from stepwell.recipes import train
from stepwell.report.glances import framed
from stepwell.tasks.looking import start_glances
from stepwell.training import Loop

AS_FLAGS = [
    "--net", "resnet8", "--part", "1/6", "--size", "16", "--glances", "2", "--glance-size", "8",
    "--epochs", "1",
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("quick")
FEW = {
    "data": "digits", "net": "resnet8", "part": "1/6", "size": 16, "glances": 3, "glance_size": 8,
    "epochs": 1, "loop": Loop(device="cpu"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("glance") / "run"
    return out, train("glance", out=out, **FEW)


def test_a_run_has_every_glance_its_controls_and_a_cascade(trained):
    out, results = trained
    assert (results["kind"], list(results["costs"])) == ("classifier", ["1", "2", "3"])
    found = results["glance"]
    assert (found["side"], found["where"]) == (8, "policy")
    for control in ("others", "random", "fixed"):
        assert found[control].keys() == {"1", "2", "3"}
        assert found[control]["1"] == results["test"]["1/accuracy"]  # it sees the whole image
    assert [sum(map(sum, looks)) for looks in found["looks"]] == [results["examples"]] * 2
    places = np.load(out / "predictions.npz")["places"]
    assert places.shape == (results["examples"], 2, 2)
    assert found["oracle"] >= max(results["test"][f"{i}/accuracy"] for i in (1, 2, 3))
    assert {*results["cascade"]["validation"]["depths"]} <= {"1", "2", "3"}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["random", "policy", "tune"]
    assert train("glance", out=out, **FEW) == results


def test_without_a_policy_there_is_no_phase_for_it(tmp_path):
    results = train("glance", out=tmp_path / "r", where="random", **FEW)
    assert {*results["glance"]} == {"where", "side", "oracle"}
    assert "cascade" not in results
    assert "places" not in np.load(tmp_path / "r" / "predictions.npz")
    torch.manual_seed(0)
    fresh = build("glance-resnet8/3", ["1", "2"], num_classes=10, image_size=16, side=8)
    trained = stepwell.load(tmp_path / "r")
    for before, after in zip(
        policy_of(fresh.module).parameters(), policy_of(trained.module).parameters(), strict=True
    ):
        assert torch.equal(before, after)


def test_every_command_takes_the_run(trained, tmp_path, capsys, image_folder):
    out, results = trained
    pictures = image_folder(("a",), 3, (16, 16))
    cli.main(["train", "glance", "--data", "digits", "--out", str(tmp_path / "r"), *AS_FLAGS])
    assert "places of another image" in capsys.readouterr().out
    cli.main(["eval", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["test"] == results["test"]
    cli.main(["predict", str(out), str(pictures), "--cascade", "--json"])
    assert {p["depth"] for p in json.loads(capsys.readouterr().out)} <= {"1", "2", "3"}
    net = stepwell.load(out)
    net.card = replace(net.card, cascade={"depths": ["1", "2", "3"], "thresholds": [0.15, 0.15]})
    stepwell.save(net, tmp_path / "net")
    cli.main(["export", str(tmp_path / "net"), "--cascade", "--out", str(tmp_path / "e"), "--json"])
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["parity"]["same_choice"] == 1.0
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "Where the network looks" in page
    assert "sees a square of 8 pixels, placed by the policy" in page


def test_a_frame_is_around_the_crop():
    pixels = np.zeros((12, 12, 3), np.uint8)
    drawn = framed(pixels, np.array([[1.0, 0.5]]), 4).any(2)
    assert drawn.sum() == 12
    assert drawn[8, 4:8].all()
    assert drawn[11, 4:8].all()
    assert drawn[8:12, [4, 7]].all()
    drawn = framed(pixels, np.array([[0.99]]), 4).any(2)  # the last of nine frames
    assert drawn.sum() == 12
    assert drawn[8, 8:].all()


def test_what_cannot_be_is_refused(tmp_path, capsys):
    for flags, message in (
        (["--net", "vgg13_bn"], "a ResNet looks at each glance: name a ResNet, such as resnet20"),
        (["--glances", "1"], "--glances 1: must be between 2 and 16"),
        (["--glances", "17"], "--glances 17: must be between 2 and 16"),
        ([], "images of 8 pixels cannot be divided into glances of 8 pixels or more: use --size 16"),
        (["--size", "24", "--glance-size", "9"], "glances of 9 pixels do not divide images of 24"),
        (["--spread", "0"], "--spread 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", "glance", "--data", "digits", "--out", str(tmp_path / "x"), *flags])
        assert stop.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()


def test_encoders_start_from_a_trained_resnet_and_a_run_from_itself(trained, tmp_path):
    plain = stepwell.save(build("resnet8", num_classes=3), tmp_path / "plain.safetensors")
    net = start_of(plain)
    for glance in net.module.glances:
        assert torch.equal(glance.encoder.conv1.weight, stepwell.load(plain).module.conv1.weight)
    own = start_of(trained[0])
    assert torch.equal(
        own.module.conclusion.fc.weight, stepwell.load(trained[0]).module.conclusion.fc.weight
    )
    other = stepwell.save(build("resnet14", num_classes=3), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors does not fit the encoders \(layer1"):
        start_of(other)
    two = build("glance-resnet8/2", ["1"], num_classes=3, image_size=16, side=8)
    fewer = stepwell.save(two, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match="f.safetensors holds glance-resnet8/2, and this network is"):
        start_of(fewer)


def test_glances_and_frames_are_named_for_what_they_see():
    net = build("frames-resnet8/3", ["1"], image_size=32)  # 16 frames
    assert net.forward_all(torch.randn(2, 3, 32, 32), extras=("place",))["3"].extras["place"][
        0
    ].shape == (2, 1)
    with pytest.raises(ValueError, match="glance-resnet8/3: its glances are crops"):
        build("glance-resnet8/3", image_size=32, frames=4)
    with pytest.raises(ValueError, match="glances of 8.0 pixels do not divide|violates type hint"):
        build("glance-resnet8/3", image_size=32, side=8.0)


def start_of(file):
    splits = load_images("digits", 16)
    net, _ = start_glances(splits, "glance-resnet8/3", ["1", "2"], "resnet8", file, side=8)
    return net


@pytest.mark.parametrize("recipe", ["supervised", "ekd", "exits"])
def test_other_recipes_leave_its_decisions_to_it(recipe, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", recipe, "--data", "digits", "--size", "16", "--net", "glance-resnet8/3",
                  "--out", str(tmp_path / "x")])  # fmt: skip
    assert "only `stepwell train glance` teaches its decisions" in capsys.readouterr().err
