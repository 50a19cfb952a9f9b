"""The file of a network, found by its run directory, and the kind of network in it."""

import json
from pathlib import Path

import safetensors

from stepwell.files import result_of
from stepwell.nets.files.container import GRAPH


def network_file(path: str | Path) -> Path:
    """Give the file of the network at `path`: a run directory, or the file itself.

    Errors as for `result_of`.
    """
    path = Path(path)
    return path if path.is_file() else result_of(path)


def kind_of(path: str | Path) -> str:
    """Read the kind of a network from the header of its file; no tensor is read.

    A file without a readable header counts as a classifier's: the reader of classifiers says what is
    wrong with it. Older versions wrote no kind for networks.

    Raises:
        FileNotFoundError, ValueError: as for `network_file`.
    """
    try:
        with safetensors.safe_open(network_file(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("stepwell", "{}"))
    except (safetensors.SafetensorError, UnicodeDecodeError, json.JSONDecodeError):
        return "classifier"
    kind = header.get("kind", "resolution" if "beside" in header else "classifier")
    return "graph" if kind == GRAPH else str(kind)
