"""Weights published by other libraries."""

import io

import pytest
import torch
from safetensors.torch import save_file

from stepwell.nets import build
from stepwell.nets.files import initial_weights


@pytest.mark.parametrize("reachable", [True, False])
def test_without_network_the_download_library_does_not_retry(monkeypatch, reachable):
    import timm
    from huggingface_hub import constants

    def connect(address, timeout):
        if not reachable:
            raise OSError("no network")
        return io.BytesIO()  # what is closed at once

    def create_model(name, pretrained):
        seen.append(constants.HF_HUB_OFFLINE)
        raise OSError("not in the cache")

    seen = []
    monkeypatch.setattr(initial_weights, "getproxies", dict)
    monkeypatch.setattr(initial_weights.socket, "create_connection", connect)
    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    net = build("resnet8")
    net.builder = ("timm/resnet18", {})
    with pytest.raises(ValueError, match=r"timm/resnet18 could not be downloaded \(not in the cache\)"):
        initial_weights.start_pretrained(net)
    assert seen == [not reachable]
    assert constants.HF_HUB_OFFLINE is False


def test_a_fresh_classifier_on_published_weights_gives_modest_logits(tmp_path):
    """timm draws EfficientNet's by the number of outputs: ten classes had weights up to 0.3."""
    file = tmp_path / "weights.safetensors"
    save_file(build("timm/tf_efficientnet_lite0").module.state_dict(), file)
    net = build("timm/tf_efficientnet_lite0", num_classes=10)
    drawn = net.module.classifier.weight.detach().clone()
    start = initial_weights.initialise(net, file)
    ours = net.module.classifier.weight.detach()
    assert start.fresh == ("classifier.weight", "classifier.bias")
    assert drawn.abs().max() > 0.3
    assert ours.std().item() == pytest.approx((3 * 1280) ** -0.5)
    torch.testing.assert_close(ours / ours.abs().max(), drawn / drawn.abs().max())
    assert (start.card.mean, start.card.std) == ((0.5,) * 3, (0.5,) * 3)  # as timm publishes them

    save_file(build("resnet18", num_classes=7).module.state_dict(), file)
    net = build("resnet18", num_classes=10)
    drawn = net.module.fc.weight.detach().clone()
    assert initial_weights.initialise(net, file).card.mean == initial_weights.IMAGENET_MEAN
    assert torch.equal(net.module.fc.weight, drawn)  # drawn by nn.Linear
