"""The recipe of adder networks: a run, its record, and every command on it."""

import json
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import stepwell
from running import stopped
from stepwell import cli
from stepwell.data import Batches, load_images
from stepwell.data.augment import Augment
from stepwell.measure.data_parts import in_random_order, parts_of
from stepwell.methods.pkkd import ProgressiveKernelKD
from stepwell.nets import build
from stepwell.nets.adders.layers import adder_layers
from stepwell.nets.detection.detector import build_detector
from stepwell.nets.files.nested import load
from stepwell.nets.nested.calibrate import estimate_all
from stepwell.recipes import train
from stepwell.tasks.measuring import settle
from stepwell.training import Loop

pytestmark = pytest.mark.usefixtures("quick")
FEW = {"net": "resnet8", "epochs": 2, "batch_size": 8, "val_fraction": 0.2}
FEW["loop"] = Loop(device="cpu", clip=0.0)
#: Then the norms' statistics are those of the images as they are.
PLAIN = FEW | {"augment": "none"}


@pytest.fixture(scope="module")
def data(three_shades):
    return three_shades


@pytest.fixture(scope="module")
def trained(quick, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("pkkd") / "run"
    return out, train("pkkd", data=data, out=out, **PLAIN)


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, data, tmp_path):
    out, results = trained
    with stopped(ProgressiveKernelKD, 6):  # in the second epoch
        train("pkkd", data=data, out=tmp_path / "r", **PLAIN)
    again = train("pkkd", data=data, out=tmp_path / "r", **PLAIN)
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
    assert results["pkkd"]["ms"] > 0
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


def test_norms_have_the_statistics_of_images_augmented_as_in_training():
    images = load_images("digits").train
    augment = Augment(pad=3, flip=True)
    batches = Batches(images, 32, mean=(0.5,) * 3, std=(0.5,) * 3, augment=augment, shuffle=True)
    net = build("resnet8", num_classes=10, adder=True)
    settle(net, batches)
    with torch.no_grad():
        seen = net.module.conv1(torch.cat([x for x, _ in batches]))
        plain = net.module.conv1(torch.cat([x for x, _ in in_random_order(batches)]))
    assert_close(net.module.bn1.running_mean, seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    assert (net.module.bn1.running_mean - plain.mean((0, 2, 3))).abs().max() > 0.05


def test_every_command_takes_an_adder_network(trained, data, tmp_path, capsys):
    out, results = trained
    capsys.readouterr()
    cli.main(["cost", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["8"]["additions"] == results["costs"]["8"]["additions"]
    cli.main(["eval", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["test"] == pytest.approx(results["test"])
    cli.main(["predict", str(out), f"{data}/test/dark/0.png"])
    answer = load(out).predict(f"{data}/test/dark/0.png").label
    assert answer in capsys.readouterr().out
    cli.main(["export", str(out), "--format", "onnx", "--out", str(tmp_path / "graphs")])
    assert (tmp_path / "graphs" / "8.onnx").exists()  # equal to the network, or it is not written
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    words = "convolutional twin", "by a model", "layer3.0.conv2", "best for the adder network"
    assert all(word in page for word in words)
    with pytest.raises(SystemExit):
        cli.main(["export", str(out), "--int8", "--out", str(tmp_path / "int8")])
    assert "--int8 is for convolutions: `stepwell eval --bits 8`" in capsys.readouterr().err


ALONE = """
import sys, torch
import stepwell.ops.adder
folder, images, expected = sys.argv[1:]
program = torch.export.load(f"{folder}/8.pt2").module()
torch.testing.assert_close(program(torch.load(images)), torch.load(expected), rtol=1e-4, atol=1e-4)
"""


def test_exported_weights_and_programs_load_as_the_docs_say(trained, tmp_path):
    out, _ = trained
    for format in ("safetensors", "pt2"):
        cli.main(["export", str(out), "--format", format, "--out", str(tmp_path / format)])
    net, images = load(out).subnet("8"), torch.randn(3, 3, 8, 8)
    expected = net(images).detach()
    plain = stepwell.build("resnet8", num_classes=3, adder=True).module.eval()
    plain.load_state_dict(load_file(tmp_path / "safetensors" / "8.safetensors"))
    assert_close(plain(images).detach(), expected)
    torch.save(images, tmp_path / "x.pt")
    torch.save(expected, tmp_path / "y.pt")
    files = [str(tmp_path / name) for name in ("pt2", "x.pt", "y.pt")]
    subprocess.run([sys.executable, "-c", ALONE, *files], check=True)


def test_both_networks_are_measured_where_the_task_is(monkeypatch, data, tmp_path):
    moved = []
    plain = ProgressiveKernelKD.to

    def watched(self, *device, **options):
        moved.extend(device)
        return plain(self, *device, **options)

    monkeypatch.setattr(ProgressiveKernelKD, "to", watched)
    monkeypatch.setattr("stepwell.tasks.adders.settle", lambda net, train: moved.append("settled"))
    train("pkkd", data=data, out=tmp_path / "r", **FEW | {"epochs": 1})
    # the training left all but the network on the CPU, whatever the task's device
    assert moved[-2:] == [torch.device("cpu"), "settled"]


def test_the_report_says_whose_best_epoch_it_is(data, tmp_path):
    out = tmp_path / "r"
    train("pkkd", data=data, out=out, **FEW | {"epochs": 1, "val_fraction": 0.0})
    cli.main(["report", str(out)])
    assert "best for the adder network" not in (out / "report.html").read_text()
    with pytest.raises(ValueError, match="gradient_factor is for local_rate=0"):
        train("pkkd", data=data, out=tmp_path / "s", gradient_factor=10.0, **FEW)


def test_the_twin_changes_nothing_where_it_does_not_teach(data, tmp_path):
    few = FEW | {"epochs": 1}
    train("supervised", data=data, out=tmp_path / "alone", **few | {"net": "adder/resnet8"})
    train("pkkd", data=data, out=tmp_path / "pkkd", alpha=1.0, features="none", **few)
    alone, other = (load(tmp_path / name).state_dict() for name in ("alone", "pkkd"))
    for name, value in alone.items():
        assert_close(other[name], value, rtol=0, atol=0)


def test_depths_of_an_adder_network_train_by_any_recipe(data, tmp_path, capsys):
    out = tmp_path / "run"
    few = PLAIN | {"epochs": 1, "net": "adder/resnet14", "depths": ("8",), "loop": Loop(device="cpu")}
    results = train("ekd", data=data, out=out, **few)
    opened = stepwell.open_network(out)
    assert opened.net.builder[1]["adder"] is True
    settled = deepcopy(opened.net)
    estimate_all(settled, parts_of(opened.net, out, opened.config, None).train)
    private = 0
    for name, value in settled.state_dict().items():
        if name.endswith("running_mean"):
            private += name.startswith("private")
            assert_close(opened.net.state_dict()[name], value, rtol=0.3, atol=0.3)
    assert private > 3  # norms of the sub-net alone
    capsys.readouterr()
    cli.main(["eval", str(out), "--bits", "8", "2", "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["test"] == pytest.approx(results["test"])
    for depth, by_bits in measured["adder_bits"].items():
        assert by_bits.keys() == {"float", "8", "2"}
        assert by_bits["float"] == pytest.approx(results["test"][f"{depth}/accuracy"])
    cli.main(["report", str(out)])
    assert "Adder layers of few bits" in (out / "report.html").read_text()
    macs = str(results["costs"]["8"]["macs"])
    cli.main(["predict", str(out), f"{data}/test/dark/0.png", "--budget-macs", macs])
    assert "depth 8" in capsys.readouterr().out


def test_what_cannot_add_is_refused_before_there_is_a_run(tmp_path):
    with pytest.raises(ValueError, match="networks that choose resolutions have no adder form"):
        train("drnet", data="digits", out=tmp_path / "r", net="adder/resnet8")
    with pytest.raises(ValueError, match="detectors have no adder form: name resnet8_s4"):
        build_detector("fcos/adder/resnet8_s4", 2)
    for options, message in (
        ({"net": "vit6"}, "VisionTransformer has no convolution to convert"),
        ({"net": "mobilenet_v2"}, "a convolution of 32 groups has no adder layer"),
        ({"alpha": 1.5}, "--alpha 1.5: must be between 0 and 1"),
        (
            {"optimizer": "adam", "local_rate": 6.0},
            "--local-rate 6 has no effect with --optimizer adam",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train("pkkd", data="digits", out=tmp_path / "r", **FEW | options)
    assert not (tmp_path / "r").exists()
