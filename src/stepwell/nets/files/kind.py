"""The file of a network, found by its run directory, and the kind of network in it."""

import json
from pathlib import Path

import safetensors

from stepwell.nets.files.container import GRAPH


def network_file(path: str | Path) -> Path:
    """Give the file of the network at `path`: a run directory, or the file itself.

    Raises FileNotFoundError if there is nothing, and ValueError if the run is not finished.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file or run directory {path}")
    file = path / "net.safetensors" if path.is_dir() else path
    if not file.exists() and not (path / "config.json").exists():
        raise ValueError(
            f"{path} is no run directory: name the --out folder of a `stepwell train` command, or a "
            "network's file"
        )
    if not file.exists():
        raise ValueError(
            f"{path} holds no net.safetensors, so it is no finished run: start its `stepwell train` "
            "command again to finish it"
        )
    return file


def kind_of(path: str | Path) -> str:
    """Read the kind of a network from the header of its file; no tensor is read.

    A file without a readable header counts as a classifier's, whose reader explains the problem. Older
    versions wrote no kind for networks. Errors as for `network_file`.
    """
    try:
        with safetensors.safe_open(network_file(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("stepwell", "{}"))
    except (safetensors.SafetensorError, UnicodeDecodeError, json.JSONDecodeError):
        return "classifier"
    kind = header.get("kind", "resolution" if "beside" in header else "classifier")
    return "graph" if kind == GRAPH else str(kind)
