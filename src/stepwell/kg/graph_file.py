"""The file of an embedded graph: safetensors with everything in it, and a checksum."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from stepwell.data.triples import Names
from stepwell.files import damaged, write_whole
from stepwell.kg.embedding import KINDS, Kind
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.state import Settings, State
from stepwell.nets.files.container import GRAPH, digest
from stepwell.types import not_finite

#: Format 1 had no checksum.
FORMAT = 2
REMEDY = "restore a copy, or train into another --out"


def write_state(state: State, path: Path) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    tensors: dict[str, Tensor] = {}
    for kind in KINDS:
        count = len(state.count[kind])  # later names belong to a change that was not applied
        for name, table in state.tables(kind).items():
            tensors[f"{name}.{kind}"] = table[:count].contiguous()
        text = "\n".join(state.names[kind].names[:count]).encode()
        tensors[f"names.{kind}"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    if state.net.has_context:
        tensors |= {f"encoders.{k}": v for k, v in state.net.encoders.state_dict().items()}
    tensors["triples"] = torch.from_numpy(state.snapshot.index.rows.astype(np.int32))
    about = {"format": FORMAT, "kind": GRAPH, "shape": asdict(state.settings)}
    about |= {"applied": state.applied, "updates": state.updates}
    about["sha256"] = digest(about, tensors)
    write_whole(path, save(tensors, {"stepwell": json.dumps(about)}))


def read_state(path: Path) -> State:
    """Read the state in a file.

    Raises:
        ValueError: the file holds no knowledge graph, or is damaged.
        OSError: it cannot be read.
    """
    content = path.read_bytes()  # once: a writer may replace the file at any time
    try:
        tensors = load(content)
        about = dict(json.loads(metadata(content).get("stepwell", "{}")))
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error, REMEDY) from error
    if about.get("kind") != GRAPH:
        raise ValueError(f"{path} holds no knowledge graph: name a run of `stepwell train dkge`")
    version = about.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise ValueError(
            f"{path} has format {version}; this version of Stepwell reads up to {FORMAT}: upgrade"
        )
    if version != 1 and about.pop("sha256", None) != digest(about, tensors):
        raise damaged(path, "its checksum does not match", REMEDY)
    try:
        return _state_of(about, tensors)
    except Exception as error:  # a wrong header can cause any error
        raise damaged(path, " ".join(str(error).split())[:200], REMEDY) from error


def applied_in(path: Path) -> int:
    """The number of the last journal record in a file, without reading its tensors."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["stepwell"])
    return int(about["applied"])


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of safetensors in memory; the library reads them from files only."""
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return dict(header.get("__metadata__", {}))


def _state_of(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State:
    settings = Settings(**about["shape"])
    for name in ("applied", "updates"):
        if type(about[name]) is not int or about[name] < 0:
            raise ValueError(f"{name} is {about[name]!r:.60}")
    if wrong := not_finite(tensors):
        raise ValueError(f"{wrong} is not finite")
    names: dict[Kind, Names] = {}
    for kind in KINDS:
        text = tensors[f"names.{kind}"].numpy().tobytes().decode()
        names[kind] = Names(kind, text.split("\n") if text else [])
    with torch.device("meta"):  # draws nothing: the caller's generator is left alone
        net = settings.net(len(names["entity"]), len(names["relation"]))
    parts = ("knowledge.", "contextual.", "encoders.")
    net.load_state_dict({k: v for k, v in tensors.items() if k.startswith(parts)}, assign=True)
    rows = tensors["triples"].numpy().astype(np.int64)
    snapshot = Snapshot.of(rows, size=settings.context_size, seed=settings.seed)
    joint: dict[Kind, Tensor] = {kind: tensors[f"joint.{kind}"] for kind in KINDS}
    for kind, vectors in joint.items():
        if vectors.shape != (len(names[kind]), settings.dim):
            raise ValueError(f"joint.{kind} has the shape {tuple(vectors.shape)}")
    return State(settings, net, joint, snapshot, names, about["applied"], about["updates"])
