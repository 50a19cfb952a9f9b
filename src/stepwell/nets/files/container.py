"""Files of networks: found by run directory, their kinds, checked headers, and torch's state dicts.

The checksum detects damage that safetensors does not notice. Only weights are unpickled.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from stepwell.files import damaged, result_of

#: The `kind` in the header of a knowledge graph's file.
GRAPH = "stepwell knowledge graph"
#: The kind of a detector.
DETECTOR = "detector"
#: Kinds of networks whose files hold a nested net.
NESTED = (
    "classifier", "resolution", "features", "text", "text-numbers", "sequence", "skipping", "pixels",
    "widths", DETECTOR,
)  # fmt: skip


def network_file(path: str | Path) -> Path:
    """Give the file of the network at `path`: a run directory, or the file itself.

    Errors as for `result_of`.
    """
    path = Path(path)
    return path if path.is_file() else result_of(path)


def folder_of(path: str | Path) -> Path:
    """Give the folder of a run, or of its network's file; errors as for `network_file`."""
    return network_file(path).parent


def kind_of(path: str | Path) -> str:
    """Read the kind of a network from the header of its file; errors as for `network_file`.

    A file without a readable header, or of an older version, counts as a classifier's, whose reader
    explains the problem.
    """
    try:
        with safetensors.safe_open(network_file(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("stepwell", "{}"))
    except (safetensors.SafetensorError, ValueError, RecursionError):
        return "classifier"
    if not isinstance(header, dict):
        return "classifier"
    kind = header.get("kind", "resolution" if "beside" in header else "classifier")
    return "graph" if kind == GRAPH else str(kind)


def read_checked(
    path: Path, key: str, newest: int
) -> tuple[dict[str, Any] | None, dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file and check the checksum in its header.

    Args:
        key: of the string that holds the header.
        newest: the latest format that the caller reads.

    Returns:
        The header without its checksum (None if the file has no such string); the tensors; all strings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, has a later format, or holds no nested network.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata[key]) if key in metadata else None
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}): copy it again"
        ) from error
    if header is None:
        return None, tensors, metadata
    if not isinstance(header, dict):
        raise damaged(path, "its header is no JSON object", "copy it again")
    expected = header.pop("sha256", None)
    sound = digest(header, tensors) == expected
    if (kind := header.get("kind", NESTED[0])) not in NESTED and (sound or expected is None):
        kind = str(kind).removeprefix("stepwell ")
        raise ValueError(f"{path} holds a {kind}, not a nested network")
    version = header.get("format")
    if type(version) is not int or not 1 <= version <= newest:
        raise ValueError(
            f"{path} has format {version}; this version of Stepwell reads up to {newest}: upgrade"
        )
    if not sound:
        raise damaged(path, "its checksum does not match", "copy it again")
    return header, tensors, metadata


@contextmanager
def structure_of(path: Path) -> Iterator[None]:
    """Explain whatever goes wrong with the content of a file in one line that names the file.

    A right checksum says nothing about the content: a newer version, or anybody, may have written it. A
    ValueError that names the file passes unchanged, and so does the lack of a library.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # a wrong header can cause any error
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{path} is damaged or of another version of Stepwell ({type(error).__name__}: {reason}): "
            "copy it again, or upgrade"
        ) from error


def digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Compute a checksum of a header and of names, types, shapes and bytes of CPU tensors."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """The checksum of a network's tensors, wherever they are, that tells its states apart."""
    return digest({}, {name: value.cpu() for name, value in tensors.items()})


def is_pickle(path: Path) -> bool:
    """Check whether a file is a pickle of `torch.save`, zipped or not."""
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file starts with its header's length, which may look like a pickle's first bytes.
    return start.startswith((b"PK\x03\x04", b"\x80")) and not start.endswith(b"{")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a `torch.save`d dict of tensors; ValueError for anything else, which is never unpickled."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about formats that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds here
        # not torch's own words, which advise to unpickle it
        raise ValueError(
            f"{path} holds more than weights, such as a pickled module, or is damaged. Reading it "
            "could run any code, so it is never done: where the model was made, save its weights, "
            "torch.save(model.state_dict(), FILE), or export it to ONNX"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} is no state dict: save `model.state_dict()` and try again")
    return dict(state)
