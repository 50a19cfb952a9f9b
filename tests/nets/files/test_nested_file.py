import json
import pickle
from dataclasses import replace

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import stepwell
from stepwell.nets import Card, build
from stepwell.nets.files.initial_weights import initialise

EXACT = {"rtol": 0, "atol": 0}
CARD = Card(("a", "b", "c"), 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "CC0")


@pytest.fixture
def net():
    net = build("resnet20", {"b": (1, 2, 2), "a": (1, 1, 1)}, num_classes=3)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    net.train()(torch.randn(4, 3, 8, 8), "a")
    net.card = CARD
    net.mark("trained", "a", "20")
    return net.eval()


def test_a_file_gives_back_everything(net, tmp_path):
    path = stepwell.save(net, tmp_path / "net.safetensors")
    back = stepwell.load(path)
    x = torch.randn(2, 3, 8, 8)
    for depth in net.depths:
        assert_close(back(x, depth), net(x, depth), **EXACT)
    assert (back.depths, back.status, back.card) == (net.depths, net.status, CARD)
    assert back.status == {"a": "trained", "b": "fresh", "20": "trained"}
    assert not back.training


def test_saving_twice_gives_the_same_bytes(net, tmp_path):
    first = stepwell.save(net, tmp_path / "1").read_bytes()
    assert stepwell.save(stepwell.load(tmp_path / "1"), tmp_path / "2").read_bytes() == first


def test_whoever_knows_torchvision_can_read_the_file(tmp_path):
    net = build("resnet34", ["18"], num_classes=1000)
    stepwell.save(net, tmp_path / "net.safetensors")
    tensors = load_file(tmp_path / "net.safetensors")
    full = {k: v for k, v in tensors.items() if not k.startswith("depths/")}
    torchvision.models.resnet34().load_state_dict(full)
    assert {k.split("/")[1] for k in tensors.keys() - full.keys()} == {"18"}
    size = (tmp_path / "net.safetensors").stat().st_size
    assert size <= 1.02 * sum(v.numel() * v.element_size() for v in full.values())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_never_loaded(net, tmp_path, data):
    whole = stepwell.save(net, tmp_path / "whole").read_bytes()
    if data.draw(st.booleans()):
        bad = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        # half of the flips in the header, where most of the ways to go wrong are
        last = data.draw(st.sampled_from([int.from_bytes(whole[:8], "little"), len(whole) - 1]))
        where = data.draw(st.integers(0, last))
        flipped = whole[where] ^ (1 << data.draw(st.integers(0, 7)))
        bad = whole[:where] + bytes([flipped]) + whole[where + 1 :]
    path = tmp_path / "bad"
    path.write_bytes(bad)
    with pytest.raises(ValueError, match="damaged|no safetensors|no Stepwell header|format") as caught:
        stepwell.load(path)
    assert str(path) in str(caught.value)


def test_pickles_are_refused_and_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    for name, write in {
        "zip": torch.save,
        "raw": lambda o, p: p.write_bytes(pickle.dumps(o)),
    }.items():
        path = tmp_path / name
        write(Bomb(), path)
        with pytest.raises(ValueError, match="is a pickle"):
            stepwell.load(path)
        with pytest.raises(ValueError, match="more than weights, .* or is damaged"):
            initialise(build("resnet20", num_classes=3), path)
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_named_for_what_they_are(net, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*missing"):
        stepwell.load(tmp_path / "missing")
    save_file({"w": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="no Stepwell header"):
        stepwell.load(tmp_path / "foreign")
    save_file({"w": torch.zeros(1)}, tmp_path / "new", {"stepwell": json.dumps({"format": 99})})
    with pytest.raises(ValueError, match="format 99; this version of Stepwell reads up to 4: upgrade"):
        stepwell.load(tmp_path / "new")


def test_a_net_without_a_builder_takes_a_module_to_be_loaded_again(net, tmp_path):
    net.builder = None
    path = stepwell.save(net, tmp_path / "net")
    with pytest.raises(ValueError, match=r"a caller's own module, .* load\(path, module=FACTORY\)"):
        stepwell.load(path)
    back = stepwell.load(path, lambda: build("resnet20", num_classes=3).module)
    x = torch.randn(2, 3, 8, 8)
    for depth in net.depths:
        assert_close(back(x, depth), net(x, depth), **EXACT)
    assert (back.depths, back.status, back.card) == (net.depths, net.status, CARD)
    with pytest.raises(ValueError, match="made of another module than `module` makes"):
        stepwell.load(path, lambda: build("resnet20", num_classes=4).module)
    other = build("resnet20", {"a": (1, 1, 1)}, num_classes=4).eval()
    assert initialise(other, path).fresh == ("fc.weight", "fc.bias")
    full, sub = net.subnet("a").state_dict(), other.subnet("a").state_dict()
    assert_close(sub["layer2.0.bn1.weight"], full["layer2.0.bn1.weight"], **EXACT)


def test_a_net_starts_from_a_stepwell_file(net, tmp_path):
    path = stepwell.save(net, tmp_path / "net")
    other = build("resnet20", {"a": (1, 1, 1), "c": (2, 2, 2)}, num_classes=3).eval()
    start = initialise(other, path)
    assert (start.card, start.fresh) == (CARD, ())
    x = torch.randn(2, 3, 8, 8)
    for depth in ("a", "20"):
        assert_close(other(x, depth), net(x, depth), **EXACT)


@pytest.mark.parametrize("kinds", [("private", "shared"), ("shared", "private")])
def test_a_start_across_kinds_of_norms_gives_the_full_net_and_no_other(tmp_path, kinds):
    theirs, ours = (build("resnet20", {"a": (1, 1, 1)}, num_classes=3, norms=n) for n in kinds)
    theirs.train()(torch.randn(4, 3, 8, 8), "a")
    for norm in theirs.private_norms:
        torch.nn.init.normal_(norm.weight)
    initialise(ours, stepwell.save(theirs, tmp_path / "net"))
    assert_close(ours.module.state_dict(), theirs.module.state_dict(), **EXACT)
    assert_close(ours.subnet("a").state_dict(), _copy_of_full(ours), **EXACT)


def _copy_of_full(net):
    full = net.module.state_dict()
    return {name: full[name] for name in net.subnet("a").state_dict()}


def test_a_net_starts_from_torchvision_weights_with_another_classifier(tmp_path):
    weights = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.save(weights, tmp_path / "w.pth")
    net = build("resnet18", num_classes=3)
    start = initialise(net, tmp_path / "w.pth")
    assert start.fresh == ("fc.weight", "fc.bias")
    assert start.card.mean == (0.485, 0.456, 0.406)
    assert_close(net.module.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"], **EXACT)
    with pytest.raises(ValueError, match="w.pth does not fit this resnet18: conv1.weight is"):
        initialise(build("resnet18", num_classes=3, stem="small"), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not fit this resnet20: .* names differ"):
        initialise(build("resnet20", num_classes=3), tmp_path / "w.pth")
    stepwell_file = stepwell.save(build("resnet8", num_classes=3), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"net.safetensors \(a resnet8\) does not fit this resnet20"):
        initialise(build("resnet20", num_classes=3), stepwell_file)
    stepwell_file = stepwell.save(build("resnet20@2,2,1", num_classes=3), tmp_path / "cut.safetensors")
    message = r"\(a resnet20@2,2,1\) does not fit this adder/resnet20@14: .* names differ"
    with pytest.raises(ValueError, match=message):
        initialise(build("adder/resnet20@14", num_classes=3), stepwell_file)


def test_files_of_every_header_length_are_read(tmp_path):
    """A header's length stands first in the file, and may look like the mark of a pickle."""
    small = build("resnet8", num_classes=3)
    small.mark("trained")
    for n in range(0, 264, 8):
        small.card = Card(CARD.classes, 8, licence="x" * n)
        assert stepwell.load(stepwell.save(small, tmp_path / "net")).card == small.card


def test_a_depth_that_was_exported_keeps_its_card_as_a_start(net, tmp_path):
    from stepwell.export import export_safetensors

    export_safetensors(net, "20", tmp_path / "20", torch.randn(2, 3, 8, 8))
    start = initialise(build("resnet20", num_classes=3), tmp_path / "20")
    assert (start.card, start.fresh) == (CARD, ())


def test_weights_saved_from_inside_a_wrapper_are_told_apart(tmp_path):
    net = build("resnet20", num_classes=3)
    wrapped = {f"module.{name}": value for name, value in net.module.state_dict().items()}
    torch.save(wrapped, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"all begin with 'module\.'"):
        initialise(net, tmp_path / "w.pth")


def test_a_card_says_what_a_network_takes(net, tmp_path):
    path = stepwell.save(net, tmp_path / "net")
    assert stepwell.load(path).card.input == "image"
    assert '"input"' not in json.dumps(net.card.as_header())  # as in files without the field
    net.card = replace(net.card, input="text")
    assert stepwell.load(stepwell.save(net, path)).card == net.card
