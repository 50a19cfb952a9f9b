"""One depth as plain weights under torchvision's names, or as a program of `torch.export`."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors.torch import load, save
from torch import Tensor

from stepwell.export.check import Parity, compare
from stepwell.export.interface import INTERFACES
from stepwell.files import write_whole
from stepwell.nets import NestedNet

#: The entry of a program's file that holds class names, size, mean and std as JSON.
CARD = "stepwell.json"


def about(net: NestedNet, depth: str) -> dict[str, Any]:
    """Depth, blocks per stage, class names, input size, mean, std and licence, ready for JSON.

    Also the depth's temperature, if it has one: logits in the file are not divided by it.
    """
    card = net.card
    return {
        "depth": depth, "blocks": list(net.depths[depth]), "classes": list(card.classes),
        "size": card.size, "mean": list(card.mean), "std": list(card.std), "licence": card.licence,
        **({"temperature": card.temperatures[depth]} if depth in card.temperatures else {}),
    }  # fmt: skip


def export_safetensors(net: NestedNet, depth: str, path: Path, images: Tensor) -> Parity:
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


def export_pt2(net: NestedNet, depth: str, path: Path, images: Tensor) -> Parity:
    """Write one depth as a program that `torch.export.load(path).module()` runs at any batch size.

    The file's entry "stepwell.json" holds class names, size, mean and std. Nothing is written unless
    the reloaded program gives the network's logits. Arguments and errors as for `export_safetensors`.
    """
    net.require_ready(depth)
    plain = net.subnet(depth).cpu().eval()
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        blank = torch.zeros_like(images[:2])  # the file keeps it: no image of somebody's
        shapes = INTERFACES[net.card.input].dynamic_shapes(net.card.size)[:1]
        program = torch.export.export(plain, (blank,), dynamic_shapes=shapes, strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine, on every line
        torch.export.save(program, data, extra_files={CARD: json.dumps(about(net, depth))})
        data.seek(0)
        back = torch.export.load(data).module()
    parity = compare(plain, back, images, path.name)
    write_whole(path, data.getvalue())
    return parity


def plain_bytes(net: NestedNet, depth: str) -> bytes:
    """The file of one depth's plain weights; the same network gives the same bytes."""
    return save(plain_tensors(net, depth), plain_metadata(net))


def bytes_alone(net: NestedNet, depth: str) -> int:
    """The size of one depth's plain weights in a file, where a tied tensor stands once."""
    tensors = plain_tensors(net, depth)
    once = {stored: name for name, stored in net.stored_names(depth).items()}
    return len(save({name: tensors[name] for name in once.values()}, plain_metadata(net)))


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
