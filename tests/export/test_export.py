import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from stepwell.export import check_images, export_onnx, export_safetensors, onnx
from stepwell.nets import Card, build
from stepwell.nets.resnet import CifarResNet


@pytest.fixture
def net():
    net = build("resnet20", ["8"], num_classes=3)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    net.card = Card(("a", "b", "c"), 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    net.mark("trained")
    return net.eval()


@pytest.mark.parametrize("depth", ["8", "20"])
def test_an_onnx_file_gives_the_networks_logits_at_any_batch_size(net, tmp_path, depth):
    import onnxruntime

    parity = export_onnx(net, depth, tmp_path / "d.onnx", torch.randn(5, 3, 8, 8))
    assert (parity.images, parity.same_class) == (5, 1.0)
    session = onnxruntime.InferenceSession(tmp_path / "d.onnx")
    for n in (1, 2, 7):
        x = torch.randn(n, 3, 8, 8)
        got = torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])
        assert_close(got, net(x, depth).detach(), rtol=1e-4, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["a", "b", "c"]
    assert json.loads(about["mean"]) == [0.1, 0.2, 0.3]
    assert about["depth"] == depth


def test_an_onnx_file_that_differs_is_not_written(net, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="differs from the network .*; nothing was written"):
        export_onnx(net, "8", tmp_path / "d.onnx", torch.randn(2, 3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_says_which_to_install(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime: pip install 'stepwell\[onnx\]'"):
        export_onnx(net, "8", tmp_path / "d.onnx", torch.randn(2, 3, 8, 8))


def test_plain_weights_fit_the_plain_network(net, tmp_path):
    path = export_safetensors(net, "8", tmp_path / "8.safetensors")
    plain = CifarResNet((1, 1, 1), num_classes=3).eval()
    plain.load_state_dict(load_file(path))
    x = torch.randn(2, 3, 8, 8)
    assert_close(plain(x), net(x, "8"), rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["stepwell_card"])["classes"] == ["a", "b", "c"]


def test_depths_that_nobody_trained_are_not_exported(net, tmp_path):
    net.mark("fresh", "8")
    for export in (
        lambda: export_onnx(net, "8", tmp_path / "x", torch.randn(2, 3, 8, 8)),
        lambda: export_safetensors(net, "8", tmp_path / "x"),
    ):
        with pytest.raises(ValueError, match="depth '8' was never trained"):
            export()


def test_a_network_without_its_run_is_checked_on_noise(net, tmp_path):
    images, real = check_images(net, tmp_path)
    assert images.shape == (8, 3, 8, 8)
    assert not real
