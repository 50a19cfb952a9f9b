"""Temperatures of depths: fitted on validation data, used wherever probabilities are given."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import stepwell
from stepwell import cli
from stepwell.data import Batches, ImageSet
from stepwell.export.subnet import about
from stepwell.kinds import Network
from stepwell.kinds.classifier import fitted_temperatures
from stepwell.measure.depths import fit_temperatures, logits_where_it_is, measure_depths
from stepwell.nets import Card, build
from stepwell.nets.predictions import labelled

CLASSES = tuple("abcde")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = build("resnet14", num_classes=5, depths={"8": (1, 1, 1)})
    net.mark("trained")
    net.card = Card(CLASSES, 8)
    return net.eval()


@pytest.fixture(scope="module")
def batches():
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    return Batches(
        ImageSet(pixels, torch.randint(0, 5, (40,)), CLASSES), 16, mean=(0.5,) * 3, std=(0.5,) * 3
    )


def likelihood(net, batches, depth, temperature):
    """The mean negative log likelihood, by torch's own cross entropy."""
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in batches:
            total += float(cross_entropy(net(x, depth) / temperature, y, reduction="sum"))
            count += len(y)
    return total / count


def test_a_fitted_temperature_is_the_likeliest_of_its_neighbours(net, batches):
    found = fit_temperatures(net, batches)
    assert list(found) == ["8", "14"]
    net.card, before = replace(net.card, temperatures=found), net.card
    try:
        measured = measure_depths(net, batches)["tempered"]
    finally:
        net.card = before
    for depth, temperature in found.items():
        assert measured[depth]["temperature"] == temperature
        best = likelihood(net, batches, depth, temperature)
        assert measured[depth]["nll"] == pytest.approx(best, rel=1e-5)
        for other in (0.9, 1.1):
            assert likelihood(net, batches, depth, other * temperature) >= best


def test_each_row_is_divided_by_the_temperature_of_the_depth_that_answered(net):
    logits = torch.tensor([[1.0, 3.0, 0.0, 0.0, 0.0]] * 3)
    card = replace(net.card, temperatures={"8": 2.0})
    found = labelled(logits, ["8", "14", "8"], card)
    expected = [(logits[0] / t).softmax(0).max().item() for t in (2.0, 1.0, 2.0)]
    assert [p.probability for p in found] == pytest.approx(expected)
    assert {p.label for p in found} == {"b"}


def test_files_without_temperatures_stay_as_they_were(net):
    assert "temperatures" not in net.card.as_header()
    assert "temperature" not in about(net, "8")
    net.card, before = replace(net.card, temperatures={"8": 2.0}), net.card
    try:
        assert (about(net, "8")["temperature"], "temperature" in about(net, "14")) == (2.0, False)
    finally:
        net.card = before


@pytest.mark.parametrize(
    "wrong", [{"8": 0}, {"8": -1.0}, {"8": 1e-300}, {"8": float("nan")}, {"8": "hot"}, [1.0]]
)
@pytest.mark.usefixtures("untyped")
def test_a_card_refuses_temperatures_that_divide_nothing(wrong):
    with pytest.raises(ValueError, match="a network's card cannot have temperatures"):
        Card(CLASSES, 8, temperatures=wrong)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("tempered") / "run"
    cli.main(
        ["train", "ekd", "--data", "digits", "--net", "resnet14", "--depths", "8", "--epochs", "1",
         "--batch-size", "256", "--out", str(out)]
    )  # fmt: skip
    return out


def test_a_temperature_at_the_end_of_its_range_is_told(capsys):
    net = build("resnet8", num_classes=2)
    torch.nn.init.zeros_(net.module.fc.weight)
    net.module.fc.bias.data = torch.tensor([1.0, 0.0])
    pixels, labels = torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.long)
    all_right = Batches(ImageSet(pixels, labels, CLASSES[:2]), 8, mean=(0.5,) * 3, std=(0.5,) * 3)
    network, parts = Network(Path("run"), "classifier", net, {}), SimpleNamespace(validation=all_right)
    assert fitted_temperatures(network, parts)["8"] == pytest.approx(0.01)
    assert "no temperature from 0.01 to 100 is best for 8: " in capsys.readouterr().err


def test_eval_saves_temperatures_that_all_predictions_then_use(run, tmp_path, capsys, image_folder):
    run = shutil.copytree(run, tmp_path / "run")
    folder = image_folder(("0", "1"), 2, (8, 8))
    before = stepwell.load(run)
    capsys.readouterr()
    cli.main(["eval", str(run), "--temper", "--json"])
    out, err = capsys.readouterr()
    assert "note: 143 validation images decide little about temperatures: fit them on more" in err
    assert "no temperature" not in err
    tried = json.loads(out)
    assert not stepwell.load(run).card.temperatures  # without --save nothing is kept
    cli.main(["eval", str(run), "--temper", "--cascade", "--save", "--json"])
    results = json.loads(capsys.readouterr().out)
    found = {d: of["temperature"] for d, of in results["tempered"].items()}
    assert results["tempered"] == tried["tempered"]
    net = stepwell.load(run).eval()
    assert dict(net.card.temperatures) == found
    assert net.card.cascade == results["cascade"]["validation"]
    files = sorted(folder.rglob("*.png"))
    x = net.preprocess(files)
    for depth in ("8", "14"):
        expected = (net(x, depth) / found[depth]).softmax(1).amax(1)
        got = [p.probability for p in net.predict(files, depth=depth)]
        assert_close(torch.tensor(got), expected.detach(), rtol=1e-4, atol=1e-5)
        assert [p.label for p in net.predict(files, depth=depth)] == [
            p.label for p in before.eval().predict(files, depth=depth)
        ]
    cli.main(["eval", str(run), "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["tempered"] == results["tempered"]
    assert again["test"] == results["test"]  # those of the logits themselves
    cli.main(["report", str(run)])
    page = (run / "report.html").read_text()
    assert "<h3>Tempered probabilities</h3>" in page
    assert f"{found['8']:.3f}" in page.partition("<h3>Tempered probabilities</h3>")[2]


def test_logits_are_not_divided(net, batches):
    net.card, before = replace(net.card, temperatures={"8": 2.0}), net.card
    try:
        x = next(iter(batches))[0]
        with torch.no_grad():
            assert torch.equal(logits_where_it_is(net)(x)["8"], net(x, "8"))
    finally:
        net.card = before
