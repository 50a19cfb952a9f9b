"""One depth as plain weights under torchvision's names."""

import json
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors.torch import load, save
from torch import Tensor

from stepwell.export.check import Parity, compare
from stepwell.files import write_whole
from stepwell.nets import NestedNet
from stepwell.types import Images


def export_safetensors(net: NestedNet, depth: str, path: Path, images: Images) -> Parity:
    """Write one depth as a safetensors file that its plain network strict-loads.

    The header's string "stepwell_card" holds class names, input size, mean and std as JSON. Nothing is
    written unless a network that loads it gives the same logits.

    Args:
        images: normalised images for the check; at least two, preferably real ones.

    Raises:
        ValueError: the depth was never trained or calibrated; fewer than two images; other logits.
    """
    net.require_ready(depth)
    data = plain_bytes(net, depth)
    plain, back = net.subnet(depth).cpu().eval(), net.subnet(depth).cpu().eval()
    for tensor in back.state_dict().values():
        tensor.zero_()  # so that a tensor that is not loaded shows
    back.load_state_dict(load(data))
    parity = compare(plain, back, images, path.name)
    write_whole(path, data)
    return parity


def plain_bytes(net: NestedNet, depth: str) -> bytes:
    """The file of one depth's plain weights; the same network gives the same bytes."""
    return save(plain_tensors(net, depth), plain_metadata(net))


def plain_tensors(net: NestedNet, depth: str) -> dict[str, Shaped[Tensor, "..."]]:
    """The tensors of one depth's plain network under its own names, on the CPU.

    A tied tensor stands under each of its names, as the plain network loads it.
    """
    state = net.subnet(depth).state_dict()
    whole = torch.contiguous_format
    return {name: value.cpu().clone(memory_format=whole) for name, value in state.items()}


def plain_metadata(net: NestedNet) -> dict[str, str]:
    """The strings in the header of a plain network's file."""
    return {"stepwell_card": json.dumps(net.card.as_header())}
