"""Deltas: files with only the tensors that a deeper depth adds to a shallower one.

With the shallower depth's plain weights, a delta gives the deeper depth, identical to its export.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save

from stepwell.export.subnet import plain_bytes, plain_metadata, plain_tensors
from stepwell.files import write_whole
from stepwell.nets import NestedNet
from stepwell.nets.files.container import digest, read_checked

FORMAT = 1
#: The string in a header that identifies a delta.
KEY = "stepwell_delta"


class Delta(NamedTuple):
    """Bytes of a delta's file, of its base and of its target."""

    path: Path
    bytes: int
    base_bytes: int
    whole_bytes: int


def export_delta(net: NestedNet, depth: str, beyond: str, path: Path) -> Delta:
    """Write the tensors of `depth` that the shallower depth `beyond` lacks.

    Tensors that the nested net stores once for both are shared; private norms are not. The header holds
    the base's name of each shared tensor, and the checksum of the base as `export_safetensors` writes
    it. ValueError if a depth was never trained or calibrated, or `beyond` is not shallower.
    """
    net.require_ready(depth, beyond)
    order = list(net.depths)
    if order.index(beyond) >= order.index(depth):
        raise ValueError(
            f"depth {beyond!r} is not shallower than {depth!r}: a delta leads from a depth to a "
            f"deeper one, of {', '.join(order)}"
        )
    # A Sequential with fewer blocks renumbers them: shared tensors may have different names.
    theirs = {stored: name for name, stored in net.stored_names(beyond).items()}
    ours = sorted(net.stored_names(depth).items())
    shared = {name: theirs[stored] for name, stored in ours if stored in theirs}
    tensors = {k: v for k, v in plain_tensors(net, depth).items() if k not in shared}
    header: dict[str, Any] = {
        "format": FORMAT, "depth": depth, "beyond": beyond,
        "base_sha256": digest({}, plain_tensors(net, beyond)), "shared": shared,
        "metadata": plain_metadata(net),
    }  # fmt: skip
    header["sha256"] = digest(header, tensors)
    data = save(tensors, {KEY: json.dumps(header)})
    write_whole(path, data)
    base, whole = (len(plain_bytes(net, name)) for name in (beyond, depth))
    return Delta(path, len(data), base, whole)


def apply_delta(base_file: str | Path, delta_file: str | Path, out: str | Path) -> Path:
    """Write the deeper depth's plain weights, as its export is, from a delta and its base.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the base is of another network; the delta is damaged, or not a delta.
    """
    base_file, delta_file, out = Path(base_file), Path(delta_file), Path(out)
    header, tensors, _ = read_checked(delta_file, KEY, FORMAT)
    if header is None:
        raise ValueError(f"{delta_file} is no delta: make one with stepwell export ... --beyond DEPTH")
    _, base, _ = read_checked(base_file, KEY, FORMAT)
    if digest({}, base) != header["base_sha256"]:
        raise ValueError(
            f"{base_file} is not the base of {delta_file}: that is depth {header['beyond']!r} of one "
            "network, as `stepwell export --format safetensors` wrote it"
        )
    tensors |= {name: base[theirs] for name, theirs in header["shared"].items()}
    write_whole(out, save(tensors, header["metadata"]))
    return out
