"""One depth as a program of `torch.export`."""

import io
import json
import warnings
from pathlib import Path

import torch

from stepwell.export.card import about
from stepwell.export.check import Parity, compare
from stepwell.files import write_whole
from stepwell.nets import NestedNet
from stepwell.types import Images

#: The entry of the file that holds class names, size, mean and std as JSON.
CARD = "stepwell.json"


def export_pt2(net: NestedNet, depth: str, path: Path, images: Images) -> Parity:
    """Write one depth as a program that `torch.export.load(path).module()` runs at any batch size.

    The file's entry "stepwell.json" holds class names, size, mean and std. Nothing is written unless
    the reloaded program gives the network's logits.

    Args:
        images: normalised images for the check; at least two, preferably real ones.

    Raises:
        ValueError: the depth was never trained or calibrated; fewer than two images; other logits.
    """
    net.require_ready(depth)
    plain = net.subnet(depth).cpu().eval()
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        blank = torch.zeros(2, *images.shape[1:])  # the file keeps it: no image of somebody's
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(plain, (blank,), dynamic_shapes=shapes, strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine, on every line
        torch.export.save(program, data, extra_files={CARD: json.dumps(about(net, depth))})
        data.seek(0)
        back = torch.export.load(data).module()
    parity = compare(plain, back, images, path.name)
    write_whole(path, data.getvalue())
    return parity
