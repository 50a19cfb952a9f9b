"""The recipe of layer skipping: its run, its measurements, and what every command does with it."""

import json
from dataclasses import replace
from shutil import copyfile

import pytest
import torch
from torch.testing import assert_close

import stepwell
from running import same_measured, stopped
from stepwell import cli
from stepwell.cost import count_macs
from stepwell.device import device_name
from stepwell.measure.data_parts import parts_of
from stepwell.measure.open_rate import settle_open_rate
from stepwell.measure.skipping import (
    at_random,
    measure_break_even,
    observe_skipping,
    skipping_macs,
    without_gates,
)
from stepwell.methods.skipping import Skipping
from stepwell.nets.decisions.skipping import gated_blocks, priced
from stepwell.nets.files.container import kind_of
from stepwell.nets.files.nested import fingerprint, load, rewrite_card
from stepwell.recipes import train
from stepwell.training import Loop
from stepwell.types import Batch

pytestmark = [
    pytest.mark.usefixtures("quick"),
    # flat images have few different scores
    pytest.mark.filterwarnings("ignore:the share of open gates"),
]
FEW = {"data": "digits", "net": "resnet8", "part": "1/6", "epochs": 1, "loop": Loop(device="cpu")}


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("skipping") / "run"
    return out, train("skipping", out=out, target=0.5, **FEW | {"epochs": 2})


def test_a_budget_shifts_all_gates(trained, capsys, image_folder):
    out, _ = trained
    net = load(out)
    budgets = net.card.gate_budgets
    assert [b[1] for b in budgets] == sorted({b[1] for b in budgets})
    assert [b[2] for b in budgets] == sorted({b[2] for b in budgets})  # none costs more for nothing
    low, high = budgets[0][1], budgets[-1][1]
    (part := parts_of(net, out, json.loads((out / "config.json").read_text()), None).validation)
    settled = observe_skipping(net, part).open.mean()
    with priced(net.module, 2.0):
        assert observe_skipping(net, part).open.mean() <= settled
    assert observe_skipping(net, part).open.mean() == settled
    results = stepwell.open_network(out).do("evaluate", budget_macs=low)
    most = skipping_macs(net, 8).all
    assert results["costs"]["chosen"]["macs"] < most
    opened = stepwell.open_network(out)  # a budget holds for its call alone
    free = opened.do("evaluate")["costs"]["chosen"]["macs"]
    opened.do("evaluate", budget_macs=low)
    assert opened.do("evaluate")["costs"]["chosen"]["macs"] == free
    photo = image_folder(("a",), 1, (8, 8))
    cli.main(["predict", str(out), str(photo), "--budget-macs", f"{high}"])
    assert f"cost penalty {budgets[-1][0]:g}: " in capsys.readouterr().err
    for flags, message in (
        (["--budget-macs", "10"], "no budget gives 10 MACs an image: "),
        (["--budget-ms", "10"], "the time depends on the image: give --budget-macs instead"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["predict", str(out), str(photo), *flags])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, tmp_path):
    more = {"out": tmp_path / "r", "target": 0.5} | FEW | {"epochs": 2}
    with stopped(Skipping, 4):  # in the second epoch
        train("skipping", **more)
    again = train("skipping", **more)
    out, results = trained
    ours = load(tmp_path / "r").state_dict()
    for name, value in load(out).state_dict().items():
        assert_close(ours[name], value, rtol=0, atol=0)
    assert again["test"] == results["test"]


def test_a_run_has_both_rows_and_all_numbers(trained):
    out, results = trained
    assert (results["kind"], results["rows"], kind_of(out)) == ("skipping", "choice", "skipping")
    assert list(results["costs"]) == ["chosen", "all"]
    assert {"chosen/accuracy", "all/accuracy"} <= results["test"].keys()
    found = results["skipping"]
    assert list(found["open"]) == ["layer1.0", "layer2.0", "layer3.0"]
    assert found["mean"] == pytest.approx(sum(found["open"].values()) / 3)
    assert found["target"] == 0.5
    assert [row["batch"] for row in found["speed"]] == [64, 1]
    assert train("skipping", out=out, target=0.5, **FEW | {"epochs": 2}) == results
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"8/open", "8/rate", "val/8/accuracy"} <= lines[-1].keys()


def test_macs_are_those_of_the_blocks_that_run(trained):
    out, results = trained
    net = load(out)
    macs = skipping_macs(net, 8)
    assert macs.all == count_macs(without_gates(net), torch.zeros(1, 3, 8, 8))
    everything = macs.at(torch.ones(1, 3))
    assert float(everything) == macs.all + macs.gates
    branch = net.module.layer2[0]
    x = torch.zeros(1, 16, 8, 8)
    convs = count_macs(branch.conv1, x) + count_macs(branch.conv2, torch.zeros(1, 32, 4, 4))
    assert macs.branches[1] == convs
    assert float(everything - macs.at(torch.tensor([[1.0, 0.0, 1.0]]))) == convs
    run = stepwell.open_network(out)
    seen = observe_skipping(net, parts_of(run.net, out, run.config, None).test)
    mean = float(macs.at(seen.open).mean())
    assert results["costs"]["chosen"]["macs"] == round(mean)
    assert results["skipping"]["cost"] == pytest.approx(mean / macs.all, rel=1e-4)


def test_break_even_shares_are_in_the_file_by_device_and_change_no_fingerprint(trained, tmp_path):
    out, _ = trained
    net = load(out)
    table = net.card.break_even[device_name()]
    names = [name for name, _ in gated_blocks(net.module)]
    assert list(table) == names
    for (name, block), shares in zip(gated_blocks(net.module), table.values(), strict=True):
        assert block.break_even == {n: shares[str(n)] for n in (1, 8, 64)}, name
        assert all(0 <= share <= 1 for share in shares.values())
    copy = tmp_path / "net.safetensors"
    copyfile(out / "net.safetensors", copy)
    mark = fingerprint(copy)
    rewrite_card(copy, replace(net.card, break_even={"another machine": table}))
    assert fingerprint(copy) == mark
    other = load(copy)  # no entry for this device: only the chosen images run
    assert all(not block.break_even for _, block in gated_blocks(other.module))
    x = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        assert_close(other(x), net(x), rtol=1e-4, atol=1e-4)
    assert measure_break_even(net, 8, seconds=0.01).keys() == set(names)


def test_every_command_takes_the_run(trained, tmp_path, capsys, image_folder):
    out, results = trained
    pictures = image_folder(("a",), 3, (8, 8))
    same_measured(capsys, out, results, "skipping", "open")
    cli.main(["eval", str(out)])
    text = capsys.readouterr().out
    assert all(word in text for word in ("open rates", "layer3.0", "gates included", "speed-up"))
    cli.main(["predict", str(out), str(pictures)])
    assert "depth 8" in capsys.readouterr().out
    cli.main(["export", str(out), "--out", str(tmp_path / "e"), "--json"])
    row = json.loads(capsys.readouterr().out)["files"][0]
    assert (row["file"], row["parity"]["same_class"]) == ("8.onnx", 1.0)
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert "right as chosen" in page
    assert "<h3>Gates</h3>" in page
    assert "all blocks, images/s" in page
    capsys.readouterr()
    for command in (["calibrate"], ["eval", "--cascade"], ["cost"]):
        with pytest.raises(SystemExit):
            cli.main([command[0], str(out), *command[1:]])
        assert capsys.readouterr().err.count("\n") == 1


def test_skipnet_has_two_phases_and_a_plain_network_is_a_start(tmp_path):
    train("supervised", out=tmp_path / "plain", **FEW)
    out = tmp_path / "r"
    results = train("skipping", out=out, method="skipnet", init=tmp_path / "plain", **FEW)
    phases = sorted((out / "phases").iterdir(), key=lambda p: p.stat().st_mtime)
    assert [p.name for p in phases] == ["supervised", "policy"]
    assert "target" not in results["skipping"]


def test_what_cannot_skip_is_refused_before_there_is_a_run(tmp_path):
    with pytest.raises(ValueError, match="networks with gates have no adder form: name resnet14"):
        train("skipping", data="digits", out=tmp_path / "adder", net="adder/resnet14")
    with pytest.raises(ValueError, match="gates are for residual blocks: name a ResNet"):
        train("skipping", out=tmp_path / "r", **FEW | {"net": "vgg13_bn"})
    with pytest.raises(ValueError, match="--target 1.2: must be between 0.01 and 1"):
        train("skipping", out=tmp_path / "r", target=1.2, **FEW)
    with pytest.raises(ValueError, match="--target is for --method aig: SkipNet's reward decides"):
        train("skipping", out=tmp_path / "r", method="skipnet", target=0.3, **FEW)
    with pytest.raises(ValueError, match="estimator 'threshold' teaches a decision nothing"):
        train("skipping", out=tmp_path / "r", estimator="threshold", **FEW)
    assert not (tmp_path / "r").exists()


def test_gates_that_open_by_chance_open_as_often(trained):
    out, results = trained
    net = load(out)
    assert 0 <= results["skipping"]["random_accuracy"] <= 1
    gates = [block.gate for _, block in gated_blocks(net.module)]
    rates = torch.tensor([0.0, 0.3, 1.0])
    with at_random(net.eval(), rates) as given, torch.no_grad():
        exits = net.forward_all(torch.randn(4000, 3, 8, 8), ["8"], given=given, extras=("choice",))
    opened = torch.stack(exits["8"].extras["choice"], 2)[:, 1].mean(0)
    assert_close(opened, rates, rtol=0, atol=0.03)
    assert opened[[0, 2]].tolist() == [0, 1]
    assert [block.gate for _, block in gated_blocks(net.module)] == gates


def test_gates_in_use_keep_the_mean_of_their_target(trained):
    net = load(trained[0]).eval()
    for _, block in gated_blocks(net.module):
        torch.nn.init.normal_(block.gate.scores.weight, std=3.0)
    images = torch.randn(600, 3, 8, 8)
    for target in (0.3, 0.8):
        settle_open_rate(net, [Batch(images, torch.zeros(600, dtype=torch.long))], target)
        with torch.no_grad():
            exit = net.forward_all(images, ["8"], extras=("choice",))["8"]
        rate = torch.stack(exit.extras["choice"])[:, :, 1].mean()
        assert float(rate) == pytest.approx(target, abs=0.02)
