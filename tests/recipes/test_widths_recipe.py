"""The recipe of widths: its run, its measurements, its export, and what every command does with it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch.testing import assert_close

import stepwell
from running import same_measured, stopped
from stepwell import cli
from stepwell.cost import Latency, count_macs
from stepwell.data import Batches, load_images
from stepwell.device import device_name
from stepwell.export import OpenChoices
from stepwell.measure.choices import macs_of_choices, times_of_choices
from stepwell.measure.widths import measure_groups
from stepwell.methods.widths import ChooserAlone
from stepwell.nets.files.container import kind_of
from stepwell.nets.files.nested import rewrite_card
from stepwell.nets.files.widths import load_widths
from stepwell.recipes import train
from stepwell.tasks.choices import parts_for_chooser
from stepwell.training import Loop

pytestmark = pytest.mark.usefixtures("quick")
PAGE = Path(__file__).parents[2] / "docs" / "drnet.md"
FEW = {
    "data": "digits", "net": "resnet8", "part": "1/6", "epochs": 1, "gate_epochs": 3,
    "widths": (0.25, 0.5, 1.0), "gate_fraction": 0.4, "loop": Loop(device="cpu"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("widths") / "run"
    return out, train("widths", out=out, **FEW)


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, tmp_path):
    with stopped(ChooserAlone, 2):
        train("widths", out=tmp_path / "r", **FEW)
    again = train("widths", out=tmp_path / "r", **FEW)
    out, results = trained
    mine, whole = (load_widths(run).state_dict() for run in (tmp_path / "r", out))
    assert_close(mine, whole, rtol=0, atol=0)
    assert again["test"] == results["test"]


def test_a_run_has_a_row_a_width_and_all_numbers(trained):
    out, results = trained
    assert (results["kind"], results["rows"], kind_of(out)) == ("widths", "choice", "widths")
    assert list(results["costs"]) == ["chosen", "0.25", "0.5", "1"]
    assert {"chosen/accuracy", "0.25/accuracy", "1/accuracy"} <= results["test"].keys()
    found = results["widths"]
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["target"] == 0.5
    assert found["controls"].keys() == {"random", "line", "oracle", "oracle cost"}
    shares = found["shares"]
    by_chance = sum(share * results["test"][f"{w}/accuracy"] for w, share in shares.items())
    assert found["controls"]["random"] == pytest.approx(by_chance)
    own = [(results["costs"][w]["macs"], results["test"][f"{w}/accuracy"]) for w in shares]
    spent = results["costs"]["chosen"]["macs"]
    lines = [
        a + (b - a) * (spent - low) / (high - low)
        for low, a in own
        for high, b in own
        if low < spent < high
    ]
    within = [a for cost, a in own if cost <= spent]
    assert found["controls"]["line"] == pytest.approx(max(lines + within), abs=1e-3)
    assert found["controls"]["oracle"] >= results["test"]["chosen/accuracy"]
    assert [row["batch"] for row in found["speed"]] == [64, 1]
    assert train("widths", out=out, **FEW) == results
    net = load_widths(out)
    macs = macs_of_choices(net, 8)
    x = torch.zeros(1, 3, 8, 8)
    of_gate = count_macs(net.chooser, x)  # with the narrowest width, which runs once
    assert macs[1:] == [count_macs(net.nested.subnet("0.5"), x) + of_gate, of_gate]
    mean = sum(share * m for share, m in zip(shares.values(), macs, strict=True))
    assert results["costs"]["chosen"]["macs"] == pytest.approx(mean, abs=1)
    assert net.card.group_ms[device_name()].keys() == set(net.names)
    assert net.nested.for_budget(macs=macs[1]) == "0.5"
    phases = sorted(p.name for p in (out / "phases").iterdir())
    assert phases == ["gate", "widths"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"share/0.25", "mean cost", "val/chosen/accuracy"} <= lines[-1].keys()


def test_the_time_of_a_choice_counts_once_what_the_gate_has_run(trained, monkeypatch):
    ms = [3.0, 2.5, 9.0, 6.0, 2.75]  # gate, its part of the narrowest, then widths 1, 0.5, 0.25

    def measure(calls, **_):
        return {name: Latency(t, t, t) for name, t in zip(calls, ms, strict=True)}

    monkeypatch.setattr("stepwell.measure.choices.measure_latencies", measure)
    assert times_of_choices(load_widths(trained[0]), 8) == [12.0, 9.0, 3.25]


def test_the_gate_has_images_of_its_own():
    images = load_images("digits").train
    batches = Batches(images, 32, mean=(0.5,) * 3, std=(0.5,) * 3, shuffle=True)
    network, gate = parts_for_chooser(batches, 0.25)
    both = len(network.images), len(gate.images)
    assert sum(both) == len(batches.images)
    assert both[1] / sum(both) == pytest.approx(0.25, abs=0.02)
    assert (network.shuffle, gate.shuffle) == (True, True)
    assert gate.seed != network.seed
    same, again = parts_for_chooser(batches, 0.0)
    assert same is batches
    assert again.images is same.images


def test_times_of_groups_are_measured_where_the_file_has_none(trained, tmp_path):
    out, _ = trained
    net = load_widths(out)
    assert measure_groups(net, 8, seconds=0.01).keys() == set(net.names)
    copy = tmp_path / "net.safetensors"
    copy.write_bytes((out / "net.safetensors").read_bytes())
    rewrite_card(copy, replace(net.card, group_ms={"another machine": {}}))
    network = stepwell.open_network(copy)
    assert not network.net.times
    again = network.do("evaluate", data="digits")
    assert network.net.times.keys() == set(net.names)
    # the times change no answer that is measured
    net.times = {}
    assert again["test"] == stepwell.open_network(out).do("evaluate", data="digits")["test"]


def test_every_command_takes_the_run(trained, tmp_path, capsys, image_folder):
    out, results = trained
    pictures = image_folder(("a",), 3, (8, 8))
    same_measured(capsys, out, results, "widths", "shares")
    cli.main(["eval", str(out)])
    text = capsys.readouterr().out
    for words in ("0.25", "chosen: 1 ", "at random, each choice as often", "full width, images/s"):
        assert words in text
    cli.main(["eval", str(out), "--cascade", "--json"])
    assert json.loads(capsys.readouterr().out)["rows"] == "width"
    for more, words in {
        (): "chosen of 1, 0.5, 0.25", ("--depth", "0.25"): "width 0.25",
        ("--budget-macs", "1e9"): "cost penalty",
    }.items():  # fmt: skip
        cli.main(["predict", str(out), str(pictures), *more])
        captured = capsys.readouterr()
        assert words in captured.out + captured.err
    cli.main(["cost", str(out)])
    assert "0.25" in capsys.readouterr().out
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert all(
        words in page for words in ("<h3>Choices</h3>", "the cheapest that is right", "full width")
    )
    capsys.readouterr()
    for command in (["calibrate"], ["export", "--int8"], ["predict", str(pictures), "--depth", "0.3"]):
        with pytest.raises(SystemExit):
            cli.main([command[0], str(out), *command[1:]])
        assert capsys.readouterr().err.count("\n") == 1


def test_the_loop_over_exported_graphs_is_the_network(trained, tmp_path, capsys):
    pytest.importorskip("onnx")
    out, _ = trained
    folder = tmp_path / "e"
    cli.main(["export", str(out), "--out", str(folder), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in result["files"]] == [
        "1.onnx", "0.5.onnx", "0.25.onnx", "chooser.onnx",
    ]  # fmt: skip
    assert result["parity"]["same_choice"] == 1.0
    net, loop = load_widths(out), OpenChoices(folder)
    x = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net.times = {}
    with torch.inference_mode():
        expected = net.answer(x)
    found = loop(x)
    assert found.depth.equal(expected.depth)
    assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    # the gate reads the logits of the narrowest width, whose weights are not in its graph
    assert json.loads((folder / "export.json").read_text())["chooser_reads"] == "0.25"
    assert onnxruntime.InferenceSession(folder / "chooser.onnx").get_inputs()[0].name == "choice_logits"
    assert (folder / "chooser.onnx").stat().st_size < (folder / "0.25.onnx").stat().st_size / 2
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(import json\n.*?)```", PAGE.read_text(), re.DOTALL)[0], names)
    assert_close(torch.from_numpy(names["load"](folder)(x.numpy())), found.logits, rtol=1e-4, atol=1e-4)
    one = ["--format", "safetensors", "--depth", "0.25", "--out", str(tmp_path / "one"), "--json"]
    cli.main(["export", str(out), *one])
    assert json.loads(capsys.readouterr().out)["files"][0]["parity"]["same_class"] == 1.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"net": "mobilenet_v2"},
            "--net mobilenet_v2 --widths 0.25 0.5 1: the grouped convolution .* has no narrower form",
        ),
        ({"widths": (0.3, 1.0)}, "--widths 0.3 1: a width of 0.3: .* 0.3 of 16 is 4.8"),
        ({"widths": (1.0,)}, "--widths 1: at least two widths are needed, got 1"),
        ({"target_cost": 1.2}, "--target-cost 1.2: must be between 0 and 1"),
        (
            {"target_cost": 0.01},
            "--target-cost: a target of 0.01 of the full cost cannot be reached: the cheapest",
        ),
        ({"gate_fraction": 1.0}, "--gate-fraction 1.0: must be 0 or more and below 1"),
        ({"estimator": "threshold"}, "estimator 'threshold' teaches a decision nothing"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_run(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        train("widths", out=tmp_path / "r", **FEW | flags)
    assert not (tmp_path / "r").exists()
