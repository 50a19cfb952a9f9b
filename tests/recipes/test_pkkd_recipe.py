"""The recipe of adder networks: a run, its record, and every command on it."""

import json
from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

import stepwell
from running import stopped
from stepwell import cli
from stepwell.measure.data_parts import parts_of
from stepwell.methods.pkkd import ProgressiveKernelKD
from stepwell.nets.adders.layers import adder_layers
from stepwell.nets.files.nested import load
from stepwell.nets.nested.calibrate import estimate_all
from stepwell.recipes import train
from stepwell.training import Loop

pytestmark = pytest.mark.usefixtures("quick")
FEW = {"net": "resnet8", "epochs": 2, "batch_size": 8, "val_fraction": 0.2}
FEW["loop"] = Loop(device="cpu", clip=0.0)


@pytest.fixture(scope="module")
def data(three_shades):
    return three_shades


@pytest.fixture(scope="module")
def trained(quick, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("pkkd") / "run"
    return out, train("pkkd", data=data, out=out, **FEW)


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, data, tmp_path):
    out, results = trained
    with stopped(ProgressiveKernelKD, 6):  # in the second epoch
        train("pkkd", data=data, out=tmp_path / "r", **FEW)
    again = train("pkkd", data=data, out=tmp_path / "r", **FEW)
    ours = load(tmp_path / "r").state_dict()
    for name, value in load(out).state_dict().items():
        assert_close(ours[name], value, rtol=0, atol=0)
    assert again["test"] == results["test"]
    assert again["pkkd"]["gradients"] == results["pkkd"]["gradients"]


def test_a_run_has_operations_gradients_and_the_twin(trained):
    out, results = trained
    cost, twin = results["costs"]["8"], results["pkkd"]["twin"]
    assert twin["macs"] == cost["macs"]
    assert cost["additions"] + cost["multiplications"] == 2 * cost["macs"]
    assert cost["multiplications"] == 16 * 27 * 64 + 64 * 3  # the first layer and the last one
    assert cost["model_uj"] == pytest.approx(
        (0.9 * cost["additions"] + 3.7 * cost["multiplications"]) / 1e6
    )
    assert 0 <= twin["accuracy"] <= 1
    run = stepwell.open_network(out)
    gradients = results["pkkd"]["gradients"]
    assert gradients.keys() == adder_layers(run.net.module).keys()
    assert all(value > 0 for value in gradients.values())
    # statistics are those of the training images
    settled = deepcopy(run.net)
    estimate_all(settled, parts_of(run.net, out, run.config, None).train)
    for name, value in settled.state_dict().items():
        if name.endswith("running_mean"):
            assert_close(run.net.state_dict()[name], value, rtol=0.3, atol=0.3)


def test_every_command_takes_an_adder_network(trained, data, tmp_path, capsys):
    out, results = trained
    capsys.readouterr()
    cli.main(["cost", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["8"]["additions"] == results["costs"]["8"]["additions"]
    cli.main(["eval", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["test"] == pytest.approx(results["test"])
    cli.main(["predict", str(out), f"{data}/test/dark/0.png"])
    assert "dark" in capsys.readouterr().out or torch.tensor(results["test"]["8/accuracy"]) < 1
    cli.main(["export", str(out), "--format", "onnx", "--out", str(tmp_path / "graphs")])
    assert (tmp_path / "graphs" / "8.onnx").exists()  # equal to the network, or it is not written
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert all(words in page for words in ("convolutional twin", "by a model", "layer3.0.conv2"))


def test_what_cannot_add_is_refused_before_there_is_a_run(tmp_path):
    for options, message in (
        ({"net": "vit6"}, "VisionTransformer has no convolution to convert"),
        ({"net": "mobilenet_v2"}, "a convolution of 32 groups has no adder layer"),
        ({"alpha": 1.5}, "--alpha 1.5: must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            train("pkkd", data="digits", out=tmp_path / "r", **FEW | options)
    assert not (tmp_path / "r").exists()
