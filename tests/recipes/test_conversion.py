"""From a trained network to a nested one, with the full net watched."""

from dataclasses import replace

import pytest
import torch
import torchvision
from benchmarks.batches import random_batches
from torch.testing import assert_close

from stepwell import tasks
from stepwell.nets import Card, NestedNet, build
from stepwell.nets.files.initial_weights import Start, start_pretrained
from stepwell.nets.files.nested import load, save
from stepwell.recipes import train
from stepwell.recipes.full_net_watch import watch_full_net
from stepwell.tasks import measuring
from stepwell.tasks.task import Task
from stepwell.training import Loop, Run

ARGUMENTS = {"data": "digits", "epochs": 2, "batch_size": 128, "loop": Loop(device="cpu")}
pytestmark = pytest.mark.usefixtures("quick")
NEST = ARGUMENTS | {"net": "resnet14", "depths": ("8",), "nest_epochs": 1}


@pytest.fixture(scope="module")
def trained(quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    train("supervised", out=out, net="resnet14", **ARGUMENTS)
    return out / "net.safetensors"


def test_a_full_net_that_loses_accuracy_is_rolled_back_to_the_bit(trained, tmp_path):
    arguments = NEST | {"init": trained, "lr": 30.0, "on_drop": "rollback", "out": tmp_path / "r"}
    with pytest.warns(UserWarning, match="rolled back to what it was"):
        results = train("ekd", **arguments)
    start, net = load(trained), load(tmp_path / "r" / "net.safetensors")
    for name, value in start.module.state_dict().items():
        assert_close(net.module.state_dict()[name], value, rtol=0, atol=0)
    full_net = results["ekd"]["full_net"]
    assert full_net["rolled_back"]
    assert full_net["before"] == full_net["after"]
    assert net.status == {"8": "trained", "14": "trained"}
    with pytest.warns(UserWarning, match="rolled back"):
        assert train("ekd", **arguments) == results  # a finished run gives the same again


def test_a_full_net_that_loses_accuracy_is_told_of(trained, tmp_path):
    with pytest.warns(UserWarning, match=r"full net lost \d+\.\d points .* --on-drop rollback"):
        results = train("ekd", **NEST, init=trained, lr=30.0, out=tmp_path / "r")
    assert results["ekd"]["full_net"]["after"] < results["ekd"]["full_net"]["before"]
    assert not results["ekd"]["full_net"]["rolled_back"]


def test_a_gentle_conversion_keeps_the_full_net(trained, tmp_path, recwarn):
    results = train("ekd", **NEST, init=trained, lr=1e-4, out=tmp_path / "r")
    assert results["ekd"]["full_net"]["after"] > results["ekd"]["full_net"]["before"] - 0.02
    assert not [w for w in recwarn if "full net lost" in str(w.message)]


def test_a_network_of_other_classes_gives_no_classifier(other, tmp_path):
    with pytest.warns(UserWarning, match="classifier is for other classes; ours starts fresh"):
        train("ekd", **NEST | {"epochs": 1}, init=other, out=tmp_path / "r")
    assert {p.name for p in (tmp_path / "r" / "phases").iterdir()} == {"full", "nest"}


@pytest.fixture
def other(trained, tmp_path):
    """The trained network, said to tell other classes apart."""
    net = load(trained)
    net.card = replace(net.card, classes=tuple("abcdefghij"))
    return save(net, tmp_path / "other.safetensors")


def test_a_full_net_that_cannot_be_watched_is_said_not_to_be(other, tmp_path):
    brief = {"epochs": 1, "schedule": "one-run", "init": other, "out": tmp_path / "r"}
    with (
        pytest.warns(UserWarning, match="starts fresh$"),
        pytest.warns(UserWarning, match=r"is not watched .* \(its classifier starts fresh") as said,
    ):
        assert "ekd" not in train("ekd", **NEST | brief)
    assert not any("\n" in str(w.message) for w in said)
    net, start = build("resnet8"), Start(Card(), fresh=())
    noise = random_batches(4, 32, 2, None)
    task = Task(Run(tmp_path, {}, None), noise, None, noise)
    with pytest.warns(UserWarning, match=r"is not watched .* \(there is no validation part"):
        watch_full_net(net, task, 0.5, start, trained=True)


def test_a_sub_net_that_no_step_trained_is_calibrated_and_said_to_be(tmp_path):
    late = {"epochs": 1, "batch_size": 2048, "schedule": "one-run", "out": tmp_path / "r"}
    with pytest.warns(UserWarning, match="no step has trained depth 8: norms get statistics"):
        results = train("ekd", **NEST | late)
    net = load(tmp_path / "r" / "net.safetensors")
    assert net.status == {"8": "calibrated", "14": "trained"}
    assert all(norm.num_batches_tracked for norm in net.norms("8"))
    assert train("ekd", **NEST | late) == results  # a finished run gives the same again


def test_no_rollback_is_promised_to_a_classifier_that_nobody_trained(other, tmp_path):
    asked = {"schedule": "one-run", "on_drop": "rollback", "init": other, "out": tmp_path / "r"}
    with (
        pytest.warns(UserWarning, match="starts fresh"),
        pytest.raises(ValueError, match=r"rollback .* brings no classifier .* two-phase"),
    ):
        train("ekd", **NEST | asked)
    assert not (tmp_path / "r").exists()


def test_what_ends_a_run_is_computed_where_it_was_trained(monkeypatch, tmp_path):
    """On the task's device: calibration, validation and test; times and the file on the CPU."""
    at, seen, move = ["cpu"], [], NestedNet.to

    def to(net, device):  # a device that is not here: the network stays, and remembers
        at[0] = str(device)
        return move(net, device) if at[0] == "meta" else net

    def noting(name):
        real = getattr(measuring, name)
        return lambda *a, **k: (seen.append((name, at[0])), real(*a, **k))[1]

    monkeypatch.setattr(NestedNet, "to", to)
    monkeypatch.setattr(NestedNet, "cpu", lambda net: to(net, "cpu"))
    monkeypatch.setattr(tasks.task, "device_of", lambda loop: torch.device("cuda"))
    names = ("calibrate", "accuracy_on", "gather_logits", "cost_table", "save")
    for name in names:
        monkeypatch.setattr(measuring, name, noting(name))
    train("supervised", out=tmp_path / "run", net="resnet8", **ARGUMENTS | {"epochs": 1})
    assert dict(seen) == dict(zip(names, ["cuda"] * 3 + ["cpu"] * 2, strict=True))


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
