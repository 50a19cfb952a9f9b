"""One depth as a file of its own."""

import json
import sys
import zipfile

import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from stepwell.export import (
    check,
    check_images,
    export_onnx,
    export_pt2,
    export_safetensors,
)
from stepwell.nets.families.resnet import CifarResNet


def test_an_onnx_file_gives_the_networks_logits_at_any_batch_size(net, tmp_path):
    parity = export_onnx(net, "8", tmp_path / "d.onnx", torch.randn(5, 3, 8, 8))
    assert (parity.images, parity.same_class) == (5, 1.0)
    session = onnxruntime.InferenceSession(tmp_path / "d.onnx")
    for n in (1, 2, 7):
        x = torch.randn(n, 3, 8, 8)
        got = torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])
        assert_close(got, net(x, "8").detach(), rtol=1e-4, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["a", "b", "c"]
    assert json.loads(about["mean"]) == [0.1, 0.2, 0.3]
    assert about["depth"] == "8"


def test_a_program_gives_the_networks_logits_at_any_batch_size(net, tmp_path):
    parity = export_pt2(net, "8", tmp_path / "8.pt2", torch.randn(5, 3, 8, 8))
    assert (parity.images, parity.same_class) == (5, 1.0)
    program = torch.export.load(tmp_path / "8.pt2").module()
    for n in (1, 2, 7):
        x = torch.randn(n, 3, 8, 8)
        assert_close(program(x), net(x, "8"), rtol=1e-5, atol=1e-5)
    with zipfile.ZipFile(tmp_path / "8.pt2") as archive:
        (card,) = (n for n in archive.namelist() if n.endswith("stepwell.json"))
        assert json.loads(archive.read(card))["classes"] == ["a", "b", "c"]
        for name in archive.namelist():
            assert b"nested.py" not in archive.read(name), "paths of this machine"


def test_an_exit_is_exported_as_a_depth(net, tmp_path):
    net.add_exit("early", after=(1, 1, 0), input_size=(3, 8, 8))
    net.mark("trained")
    exporters = {"onnx": export_onnx, "pt2": export_pt2, "safetensors": export_safetensors}
    images = torch.randn(3, 3, 8, 8)
    for format, export in exporters.items():
        assert export(net, "early", tmp_path / f"early.{format}", images).same_class == 1.0
    program = torch.export.load(tmp_path / "early.pt2").module()
    assert_close(program(images[:1]), net(images[:1], "early"), rtol=1e-5, atol=1e-5)


def test_plain_weights_fit_the_plain_network(net, tmp_path):
    images = torch.randn(2, 3, 8, 8)
    parity = export_safetensors(net, "8", tmp_path / "8.safetensors", images)
    assert parity == (0.0, 1.0, 2)
    plain = CifarResNet((1, 1, 1), num_classes=3).eval()
    plain.load_state_dict(load_file(tmp_path / "8.safetensors"))
    assert_close(plain(images), net(images, "8"), rtol=0, atol=0)
    with safe_open(tmp_path / "8.safetensors", "pt") as file:
        assert json.loads(file.metadata()["stepwell_card"])["classes"] == ["a", "b", "c"]


EXPORTERS = [export_onnx, export_pt2, export_safetensors]


@pytest.mark.parametrize("export", EXPORTERS)
def test_a_file_that_differs_is_not_written(net, tmp_path, monkeypatch, export):
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="d.x differs from the network .*; nothing was written"):
        export(net, "8", tmp_path / "d.x", torch.randn(2, 3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_not_a_number_is_no_parity(net, tmp_path):
    net.module.fc.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="differs from the network by nan"):
        export_safetensors(net, "8", tmp_path / "8", torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("export", EXPORTERS)
def test_depths_that_nobody_trained_are_not_exported(net, tmp_path, export):
    net.mark("fresh", "8")
    with pytest.raises(ValueError, match="depth '8' was never trained"):
        export(net, "8", tmp_path / "x", torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="no depth '9'"):
        export(net, "9", tmp_path / "x", torch.randn(2, 3, 8, 8))


def test_a_check_takes_two_images(net, tmp_path):
    with pytest.raises(ValueError, match="at least two images"):
        export_safetensors(net, "8", tmp_path / "x", torch.randn(1, 3, 8, 8))


def test_a_missing_extra_says_which_to_install(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime: pip install 'stepwell\[onnx\]'"):
        export_onnx(net, "8", tmp_path / "d.onnx", torch.randn(2, 3, 8, 8))


def test_a_network_without_its_run_is_checked_on_noise(net, tmp_path):
    images, part = check_images(net, tmp_path)
    assert images.shape == (8, 3, 8, 8)
    assert part == "noise"
