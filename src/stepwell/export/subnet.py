"""One depth as plain weights under torchvision's names."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save

from stepwell.files import write_whole
from stepwell.nets import NestedNet


def export_safetensors(net: NestedNet, depth: str, path: Path) -> Path:
    """Write one depth as a safetensors file that its plain network strict-loads.

    The header's string "stepwell_card" holds class names, input size, mean and std as JSON.

    Raises:
        ValueError: the depth was never trained or calibrated.
    """
    net.require_ready(depth)
    state = {k: v.detach().cpu().contiguous() for k, v in net.subnet(depth).state_dict().items()}
    write_whole(path, save(state, {"stepwell_card": json.dumps(asdict(net.card))}))
    return path
