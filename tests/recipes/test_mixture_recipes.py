"""The recipes of experts and of mixed kernels: runs, measurements, and every command on them."""

import json
from dataclasses import replace
from shutil import copyfile

import pytest
import torch
from torch.testing import assert_close

import stepwell
from running import stopped
from stepwell import cli
from stepwell.device import device_name
from stepwell.measure.data_parts import parts_of
from stepwell.measure.mixtures import measure_break_even, observe_shares
from stepwell.methods.experts import MixtureOfExperts
from stepwell.methods.kernels import ConditionalKernels
from stepwell.nets.decisions.deciding import use_break_even
from stepwell.nets.decisions.experts import expert_layers
from stepwell.nets.files.nested import fingerprint, load, rewrite_card
from stepwell.recipes import train
from stepwell.training import Loop

pytestmark = pytest.mark.usefixtures("quick")
FEW = {"epochs": 2, "batch_size": 8, "val_fraction": 0.2, "loop": Loop(device="cpu")}
RUNS = {
    "experts": (MixtureOfExperts, {"optimizer": "adamw", "top_k": 2, "experts": 3}),
    "kernels": (ConditionalKernels, {"net": "resnet8", "kernels": 3}),
}


@pytest.fixture(scope="module")
def data(three_shades):
    return three_shades


@pytest.fixture(scope="module", params=RUNS)
def trained(request, quick, data, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, out, train(request.param, data=data, out=out, **FEW | RUNS[request.param][1])


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, data, tmp_path):
    recipe, out, results = trained
    objective, options = RUNS[recipe]
    more = {"data": data, "out": tmp_path / "r"} | FEW | options
    with stopped(objective, 6):  # in the second epoch
        train(recipe, **more)
    again = train(recipe, **more)
    ours = load(tmp_path / "r").state_dict()
    for name, value in load(out).state_dict().items():
        assert_close(ours[name], value, rtol=0, atol=0)
    assert again["test"] == results["test"]
    assert again[recipe]["layers"] == results[recipe]["layers"]


def test_a_run_has_the_use_of_every_part(trained):
    recipe, out, results = trained
    found = results[recipe]
    assert results["kind"] == "classifier"
    for use in found["layers"].values():
        assert len(use["shares"]) == 3
        mean = sum(use["shares"]) / 3
        assert sum(use["shares"]) == pytest.approx(1, abs=1e-4)
        assert use["cv"] == pytest.approx(
            (sum((s - mean) ** 2 for s in use["shares"]) / 3) ** 0.5 / mean
        )
        assert 0 <= use["by_class"] <= 1
    assert found["speed"][-1]["batch"] == 1
    assert (found["speed"][0]["by_macs"] > 1) == (recipe == "experts")
    run = stepwell.open_network(out)
    use_break_even(run.net.module, {})
    test = parts_of(run.net, out, run.config, None).test
    shares, labels = observe_shares(run.net, test)
    assert shares.shape == (len(labels), len(found["layers"]), 3)
    for i, use in enumerate(found["layers"].values()):
        assert_close(shares[:, i].double().mean(0).tolist(), use["shares"])
        classes = torch.stack([shares[labels == c, i].mean(0) for c in labels.tolist()])
        explained = classes.var(0, correction=0).sum() / shares[:, i].var(0, correction=0).sum()
        assert use["by_class"] == pytest.approx(float(explained), rel=1e-3)


def test_every_command_takes_the_run(trained, data, tmp_path, capsys):
    recipe, out, results = trained
    cli.main(["eval", str(out), "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["test"] == pytest.approx(results["test"])  # kernels lie differently in memory
    assert list(again[recipe]["layers"]) == list(results[recipe]["layers"])
    cli.main(["eval", str(out)])
    text = capsys.readouterr().out
    plain = {"experts": "all experts", "kernels": "plain kernels"}[recipe]
    assert all(word in text for word in ("by class", "CV", "speed-up", plain))
    cli.main(["predict", str(out), f"{data}/test/dark"])
    assert "depth" in capsys.readouterr().out
    if recipe == "kernels":  # a graph with experts takes long
        cli.main(["export", str(out), "--format", "pt2", "--out", str(tmp_path / "e"), "--json"])
        printed = capsys.readouterr()
        assert json.loads(printed.out)["files"][0]["parity"]["same_class"] == 1.0
        assert "note: the graph gives the network's answers, but computes every kernel" in printed.err
    cli.main(["report", str(out)])
    page = (out / "report.html").read_text()
    assert f"<h3>{recipe.capitalize()}</h3>" in page
    assert next(iter(results[recipe]["layers"])) in page


def test_break_even_shares_of_experts_are_in_the_file_and_change_no_fingerprint(trained, tmp_path):
    recipe, out, _ = trained
    if recipe == "kernels":
        assert load(out).card.break_even == {}
        return
    net = load(out)
    table = net.card.break_even[device_name()]
    layers = dict(expert_layers(net.module))
    assert table.keys() == layers.keys() == measure_break_even(net, 8, seconds=0.01).keys()
    for name, layer in layers.items():
        assert layer.break_even == {int(n): share for n, share in table[name].items()}
        assert all(0 <= share <= 1 for share in layer.break_even.values())
    copy = tmp_path / "net.safetensors"
    copyfile(out / "net.safetensors", copy)
    mark = fingerprint(copy)
    rewrite_card(copy, replace(net.card, break_even={"another machine": table}))
    assert fingerprint(copy) == mark
    assert all(not layer.break_even for _, layer in expert_layers(load(copy).module))


def test_what_cannot_be_mixed_is_refused_before_there_is_a_run(tmp_path):
    for recipe, options, message in (
        ("experts", {"top_k": 5}, "--top-k 5: there are 4 experts: name at most 4"),
        ("experts", {"top_k": 0}, "--top-k 0: must be 1 or more"),
        ("experts", {"experts": 1}, "--experts 1: must be between 2 and 1,024"),
        (
            "experts",
            {"net": "resnet20"},
            "--net resnet20: experts take the place of a transformer's MLPs",
        ),
        ("kernels", {"kernels": 0}, "--kernels 0: must be between 2 and 1,024"),
        ("kernels", {"net": "vgg13_bn"}, "--net vgg13_bn: kernels are mixed in residual blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            train(recipe, data="digits", out=tmp_path / "r", **FEW | options)
    assert not (tmp_path / "r").exists()
