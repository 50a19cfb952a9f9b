"""From a trained network to a nested one, with the full net watched."""

from dataclasses import replace

import pytest
import torch
import torchvision
from torch.testing import assert_close

from stepwell.nets import build
from stepwell.nets.file import load, save
from stepwell.nets.pretrained import start_pretrained
from stepwell.recipes.ekd import ekd
from stepwell.recipes.supervised import supervised
from stepwell.training import Loop

ARGUMENTS = {"data": "digits", "epochs": 2, "batch_size": 128, "loop": Loop(device="cpu")}
NEST = ARGUMENTS | {"net": "resnet14", "depths": ("8",), "nest_epochs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    supervised(out=out, net="resnet14", **ARGUMENTS)
    return out / "net.safetensors"


def test_a_full_net_that_loses_accuracy_is_rolled_back_to_the_bit(trained, tmp_path):
    arguments = NEST | {"init": trained, "lr": 30.0, "on_drop": "rollback", "out": tmp_path / "r"}
    with pytest.warns(UserWarning, match="rolled back to what it was"):
        results = ekd(**arguments)
    start, net = load(trained), load(tmp_path / "r" / "net.safetensors")
    for name, value in start.module.state_dict().items():
        assert_close(net.module.state_dict()[name], value, rtol=0, atol=0)
    full_net = results["full_net"]
    assert full_net["rolled_back"]
    assert full_net["before"] == full_net["after"]
    assert net.status == {"8": "trained", "14": "trained"}
    with pytest.warns(UserWarning, match="rolled back"):
        assert ekd(**arguments) == results  # a finished run gives the same again


def test_a_full_net_that_loses_accuracy_is_told_of(trained, tmp_path):
    with pytest.warns(UserWarning, match=r"full net lost \d+\.\d points .* --on-drop rollback"):
        results = ekd(**NEST, init=trained, lr=30.0, out=tmp_path / "r")
    assert results["full_net"]["after"] < results["full_net"]["before"]
    assert not results["full_net"]["rolled_back"]


def test_a_gentle_conversion_keeps_the_full_net(trained, tmp_path, recwarn):
    results = ekd(**NEST, init=trained, lr=1e-4, out=tmp_path / "r")
    assert results["full_net"]["after"] > results["full_net"]["before"] - 0.02
    assert not [w for w in recwarn if "full net lost" in str(w.message)]


def test_a_network_of_other_classes_gives_no_classifier(trained, tmp_path):
    net = load(trained)
    net.card = replace(net.card, classes=tuple("abcdefghij"))
    other = save(net, tmp_path / "other.safetensors")
    with pytest.warns(UserWarning, match="classifier is for other classes; ours starts fresh"):
        ekd(**NEST | {"epochs": 1}, init=other, out=tmp_path / "r")
    assert {p.name for p in (tmp_path / "r" / "phases").iterdir()} == {"full", "nest"}


def test_published_weights_fill_the_full_net(monkeypatch):
    state = torchvision.models.resnet18(num_classes=1000).state_dict()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **how: state)
    net = build("resnet18", {"half": (1, 1, 1, 1)}, num_classes=7)
    start = start_pretrained(net)
    assert set(start.fresh) == {"fc.weight", "fc.bias"}
    assert start.card.mean == pytest.approx((0.485, 0.456, 0.406))
    assert_close(net.module.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_where_no_weights_are_published_or_reached(monkeypatch):
    with pytest.raises(ValueError, match="no weights for resnet20: give a file of weights instead"):
        start_pretrained(build("resnet20"))

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    with pytest.raises(ValueError, match=r"could not be downloaded \(no route to host\)"):
        start_pretrained(build("resnet18"))
