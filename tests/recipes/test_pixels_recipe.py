"""The recipe of masks of positions: its run, its measurements, and what every command does with it."""

import json

import pytest
import torch

import stepwell
from running import same_measured
from stepwell import cli
from stepwell.cost import count_macs
from stepwell.device import device_name
from stepwell.measure.skipping import skipping_macs, without_gates
from stepwell.nets.decisions.skipping import gated_blocks
from stepwell.nets.files.container import kind_of
from stepwell.nets.files.nested import load
from stepwell.recipes import train
from stepwell.training import Loop

pytestmark = [
    pytest.mark.usefixtures("quick"),
    # flat images have few different scores
    pytest.mark.filterwarnings("ignore:the share of open gates"),
]
FEW = {"data": "digits", "net": "resnet8", "part": "1/6", "epochs": 1, "loop": Loop(device="cpu")}


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("pixels") / "run"
    return out, train("pixels", out=out, target=0.4, **FEW)


def test_a_run_has_both_rows_and_all_numbers(trained):
    out, results = trained
    assert (results["kind"], results["rows"], kind_of(out)) == ("pixels", "choice", "pixels")
    assert list(results["costs"]) == ["chosen", "all"]
    found = results["pixels"]
    assert list(found["open"]) == ["layer1.0", "layer2.0", "layer3.0"]
    assert found["target"] == 0.4
    assert 0 <= found["random_accuracy"] <= 1
    assert 0 < found["work"] < 1
    assert [row["batch"] for row in found["speed"]] == [64, 1]
    net = load(out)
    macs = skipping_macs(net, 8)
    assert macs.all == count_macs(without_gates(net), torch.zeros(1, 3, 8, 8))
    assert macs.gates == (9 + 1) * (16 * 64 + 16 * 64 + 32 * 16)  # a 3×3 kernel and one on the mean
    assert float(macs.at(torch.ones(1, 3))) == macs.all + macs.gates
    table = net.card.break_even[device_name()]
    for (name, block), shares in zip(gated_blocks(net.module), table.values(), strict=True):
        assert block.break_even == {n: shares[str(n)] for n in (1, 8, 64)}, name
        assert all(0 <= share <= 1 for share in shares.values())
    assert train("pixels", out=out, target=0.4, **FEW) == results


@pytest.mark.long
def test_every_command_takes_the_run(trained, tmp_path, capsys, image_folder):
    out, results = trained
    pictures = image_folder(("a",), 3, (8, 8))
    same_measured(capsys, out, results, "pixels", "open")
    cli.main(["eval", str(out)])
    text = capsys.readouterr().out
    assert all(
        word in text for word in ("work that runs", "layer3.0", "with the masks of another image")
    )
    (penalty, macs, _), *_ = load(out).card.gate_budgets
    cli.main(["predict", str(out), str(pictures), "--budget-macs", f"{macs}"])
    assert f"cost penalty {penalty:g}: " in capsys.readouterr().err
    cli.main(["export", str(out), "--out", str(tmp_path / "e"), "--json"])
    row = json.loads(capsys.readouterr().out)["files"][0]
    assert (row["file"], row["parity"]["same_class"]) == ("8.onnx", 1.0)
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "With the masks of another image" in page
    assert "share of its MACs" in page


def test_a_plain_network_is_a_start_and_what_cannot_be_is_refused(trained, tmp_path, capsys):
    stepwell.save(without := stepwell.build("resnet8", num_classes=10), tmp_path / "p.safetensors")
    train("pixels", out=tmp_path / "r", init=tmp_path / "p.safetensors", **FEW)
    assert without.depths == load(tmp_path / "r").depths
    for flags, message in (
        (["--net", "vgg13_bn"], "masks are for residual blocks: name a ResNet"),
        (["--target", "0"], "--target 0.0: must be between 0.01 and 1"),
        (["--target", "1.5"], "--target 1.5: must be between 0.01 and 1"),
        (["--net", "resnet8_ln"], "masks of positions need BatchNorm"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", "pixels", "--data", "digits", "--out", str(tmp_path / "x"), *flags])
        assert stop.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()
