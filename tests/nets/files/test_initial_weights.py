"""Weights published by other libraries."""

import io

import pytest

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
