"""Read and check the header of a nested net's file, which says how to build the net."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from stepwell.nets.card import Card
from stepwell.nets.files.container import (
    is_pickle,
    network_file,
    read_checked,
    read_state_dict,
    structure_of,
)  # fmt: skip

#: 1: a named builder; 2: the stages given to `nest`, for a caller's own module; 3: 1 or 2 with more
#: tensors beside the nested net; 4: with exits or tied weights.
FORMAT = 4
#: The types of a header's entries; all but the card are optional here.
ENTRIES: dict[str, type] = {
    "builder": str, "arguments": dict, "stages": list, "full": str, "depths": dict, "norms": str,
    "status": dict, "exits": dict, "card": dict, "beside": dict,
}  # fmt: skip


def read_file(path: Path, plain_too: bool = False) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Read and check header and tensors; a file that is not Stepwell's has no header."""
    path = network_file(path)
    if is_pickle(path):
        if plain_too:
            return None, read_state_dict(path)
        raise ValueError(
            f"{path} is a pickle (torch.save), which can run code when it is read: Stepwell reads "
            "safetensors. Start from its weights with: stepwell train ... --init"
        )
    header, tensors, metadata = read_checked(path, "stepwell", FORMAT)
    with structure_of(path):
        if header is None and plain_too and "stepwell_card" in metadata:
            header = {"card": json.loads(metadata["stepwell_card"])}
        if header is not None:
            _check_header(header)
    return header, tensors


def read_own(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and check header and tensors; ValueError also for a file that is not Stepwell's."""
    header, tensors = read_file(path)
    if header is None:
        raise ValueError(
            f"{path} has no Stepwell header: it holds weights only. "
            "Build the network and call net.load_full(...), or train with --init"
        )
    return header, tensors


def card_of(header: Mapping[str, Any]) -> Card:
    """Read the card in a file's header."""
    values = header["card"].items()
    return Card(**dict[str, Any]((k, tuple(v) if isinstance(v, list) else v) for k, v in values))


def holds_weights_alone(path: Path) -> bool:
    """Check whether a sound file holds weights without their network; ValueError for other pickles."""
    if is_pickle(path):
        return bool(read_state_dict(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "stepwell" not in (file.metadata() or {})
    except (safetensors.SafetensorError, UnicodeDecodeError):
        return False


def _check_header(header: Mapping[str, Any]) -> None:
    """Raise ValueError for an entry of another type, and for what only newer versions write."""
    for name, value in header.items():
        if name in ENTRIES and not isinstance(value, ENTRIES[name]):
            raise ValueError(f"its {name} is {value!r:.60}")
    depths = header.get("depths", {})
    for depth, blocks in depths.items():
        if not isinstance(blocks, list) or not all(type(b) is int for b in blocks):
            raise ValueError(f"the blocks of depth {depth!r} are {blocks!r:.60}")
    known = depths.keys() | {header.get("full")}
    if "depths" in header and (missing := known ^ header["status"].keys()):
        raise ValueError(f"depth {min(map(str, missing))!r} is in one of depths and status alone")
    card_of(header)
