"""The way from one depth to a deeper one: a file of just the tensors that the deeper one adds.

Whoever holds a depth as plain weights downloads the delta, and has the other depth, bit by bit as if
it had been exported.
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
#: The string in a delta's header that says what it is.
KEY = "stepwell_delta"


class Delta(NamedTuple):
    """Bytes of a delta's file, and of the files that it leads from and to."""

    path: Path
    bytes: int
    base_bytes: int
    whole_bytes: int


def export_delta(net: NestedNet, depth: str, beyond: str, path: Path) -> Delta:
    """Write what the plain network of `depth` needs beyond that of the shallower depth `beyond`.

    The two share what the nested net stores once for both; norms behind their fork are among the rest.
    The header holds the base's name of each shared tensor, and the checksum of all the base's tensors,
    as `export_safetensors` writes `beyond`.

    Raises:
        ValueError: a depth was never trained or calibrated; `beyond` is not shallower than `depth`.
    """
    net.require_ready(depth, beyond)
    order = list(net.depths)
    if order.index(beyond) >= order.index(depth):
        raise ValueError(
            f"depth {beyond!r} is not shallower than {depth!r}: a delta leads from a depth to a "
            f"deeper one, of {', '.join(order)}"
        )
    # A Sequential that loses blocks counts the others anew: names differ where tensors are shared.
    theirs = {stored: name for name, stored in net.stored_names(beyond).items()}
    ours = sorted(net.stored_names(depth).items())
    shared = {name: theirs[stored] for name, stored in ours if stored in theirs}
    tensors = {k: v for k, v in plain_tensors(net, depth).items() if k not in shared}
    header: dict[str, Any] = {
        "format": FORMAT,
        "depth": depth,
        "beyond": beyond,
        "base_sha256": digest({}, plain_tensors(net, beyond)),
        "shared": shared,
        "metadata": plain_metadata(net),
    }
    header["sha256"] = digest(header, tensors)
    data = save(tensors, {KEY: json.dumps(header)})
    write_whole(path, data)
    base, whole = (len(plain_bytes(net, name)) for name in (beyond, depth))
    return Delta(path, len(data), base, whole)


def apply_delta(base_file: str | Path, delta_file: str | Path, out: str | Path) -> Path:
    """Write the plain weights that a delta leads to, from the base that it was made for.

    The file is the very one that exporting the deeper depth as safetensors gives.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: the base is another one; the delta is damaged, or is none.
    """
    base_file, delta_file, out = Path(base_file), Path(delta_file), Path(out)
    header, tensors, _ = read_checked(delta_file, KEY, FORMAT)
    if header is None:
        raise ValueError(
            f"{delta_file} is no delta: make one with stepwell export ... --beyond DEPTH"
        )
    _, base, _ = read_checked(base_file, KEY, FORMAT)
    if digest({}, base) != header["base_sha256"]:
        raise ValueError(
            f"{base_file} is not the base of {delta_file}: that is depth {header['beyond']!r} of one "
            "network, as `stepwell export --format safetensors` wrote it"
        )
    tensors |= {name: base[theirs] for name, theirs in header["shared"].items()}
    write_whole(out, save(tensors, header["metadata"]))
    return out
