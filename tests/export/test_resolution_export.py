"""Export of a network that chooses resolutions: graphs that share one file, and their loop."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nets.example_nets import lively
from stepwell.export import OpenChoices, Sample, export_resolution
from stepwell.export.check import compare_answers
from stepwell.export.resolution import Resized
from stepwell.nets import Card, build
from stepwell.nets.files.resolution import load_resolution
from stepwell.nets.nested.cascade import Answer
from stepwell.nets.resolution.chooser import Always, Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions, resize

onnx = pytest.importorskip("onnx")
SIZES = (12, 8)


@pytest.fixture(scope="module")
def net(images):
    torch.manual_seed(0)
    made = Resolutions(lively(build("resnet14", ["8"], num_classes=5)), SIZES)
    lively(made.own_norms)
    choices = [Choice("14", 12), Choice("8", 8)]
    found = ResolutionNet(made, choices, Chooser(2, 6)).eval()
    nn.init.normal_(found.chooser.scores.weight)
    found.costs.copy_(torch.tensor([1.0, 0.2]))
    with torch.no_grad():
        apart = found.chooser(images).diff(dim=1).sort(0).values
    found.price.fill_(-float(apart[5] + apart[6]) / 2 / 0.8)  # half of the images choose each
    made.net.mark("trained")
    made.net.card = Card(tuple("abcde"), 12)
    return found


@pytest.fixture(scope="module")
def images():
    return torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(net, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "export"
    return folder, export_resolution(net, folder, Sample(images, "noise"))


def test_the_loop_over_the_graphs_is_the_network(net, images, exported):
    folder, result = exported
    loop = OpenChoices(folder)
    assert loop.names == net.names == ("14@12", "8@8")
    with torch.inference_mode():
        expected, found = net.answer(images), loop(images)
    assert expected.depth.sum() == 6
    assert found.depth.equal(expected.depth)
    assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert_close(loop(images.numpy()).logits, found.logits, rtol=0, atol=0)
    none = OpenChoices(str(folder))(images[:0])
    assert (none.logits.shape, none.depth.shape) == ((0, 5), (0,))
    assert result["parity"]["same_choice"] == 1.0
    assert {row["parity"]["same_class"] for row in result["files"]} == {1.0}


def test_weights_are_stored_once_and_norms_by_resolution(net, exported):
    folder, result = exported
    files = {row["file"] for row in result["files"]}
    assert files == {"14@12.onnx", "8@8.onnx", "chooser.onnx"}
    (weights,) = folder.glob("*.safetensors")
    assert {row["weights"] for row in result["files"]} == {weights.name}
    assert max(row["bytes"] for row in result["files"]) < weights.stat().st_size / 4
    assert load_resolution(weights).names == net.names
    places = {}
    for name in net.names:
        graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
        places[name] = {
            t.name: next(e.value for e in t.external_data if e.key == "offset")
            for t in graph.initializer
            if t.external_data
        }
    same = {name for name, at in places["14@12"].items() if places["8@8"].get(name) == at}
    assert "net.conv1.weight" in same
    assert not any("bn" in name for name in same)
    index = json.loads((folder / "export.json").read_text())
    assert index["choices"] == [f"{name}.onnx" for name in net.names]
    assert index["parity"] == result["parity"]


def test_another_network_does_not_mix_in_and_nothing_half_is_left(net, images, exported):
    folder, _ = exported
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    price = float(net.price)
    net.price.fill_(price + 1)
    try:
        with pytest.raises(ValueError, match="holds the export of another network"):
            export_resolution(net, folder, Sample(images, "noise"))
    finally:
        net.price.fill_(price)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_loop_that_gives_other_logits_or_choices_is_no_export(net, images):
    sample = Sample(images, "noise")
    for other in (lambda x: net.answer(x + 0.1), lambda x: Answer(net(x), 1 - net.choose(x))):
        with pytest.raises(ValueError, match="graphs differ .* nothing was written"):
            compare_answers(net.answer, other, sample, "graphs")
    assert compare_answers(net.answer, net.answer, sample, "graphs")["same_choice"] == 1.0


def test_without_a_chooser_there_is_nothing_to_loop_over(net, images, tmp_path):
    fixed = ResolutionNet(net.net, net.choices, Always(2))
    with pytest.raises(ValueError, match="without a chooser: export it at full size with --depth"):
        export_resolution(fixed, tmp_path / "export", Sample(images, "noise"))


def test_a_resize_by_matrices_is_the_resize(images):
    for size in (12, 9, 5, 1):
        found = Resized(nn.Identity(), 12, size)(images)
        assert_close(found, resize(images, size), rtol=1e-5, atol=1e-5)
        assert_close(np.asarray(Resized(nn.Identity(), 12, size).matrix.sum(1)), np.ones(size, "f"))
