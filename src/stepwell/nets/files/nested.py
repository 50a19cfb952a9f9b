"""The file of a nested net: one safetensors file with all depths; shared weights are stored once.

The full net's tensors have torchvision's own names, private tensors `depths/NAME/<name>`. One JSON
string in the header says how to build the net and how to use it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from stepwell.device import device_name
from stepwell.files import write_whole, writing
from stepwell.nets import build
from stepwell.nets.adders.layers import adder_layers
from stepwell.nets.build import builder_of, name_of
from stepwell.nets.card import Card
from stepwell.nets.decisions.deciding import use_break_even
from stepwell.nets.files.container import DETECTOR, digest, kind_of, network_file, structure_of
from stepwell.nets.files.header import card_of, read_file, read_own
from stepwell.nets.nested.exits import describe_head, make_head
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.reading import read
from stepwell.types import not_finite

#: Prefix of the tensors beside a nested net in its file.
BESIDE = "beside/"
#: Arguments of timm's builders that name other files.
FOREIGN = ("checkpoint_path", "cache_dir")
#: Largest ratio of the numbers of a whole network to those of its truncated form in the file.
CUT = 32
#: Arguments of `build` itself in a file's header.
OF_BUILD = ("stages", "kept", "adaptions", "multipliers", "adder")
#: Entries of the card that are measurements.
MEASURED = ("costs", "latency", "cascade", "break_even", "group_ms", "gate_budgets")


class Beside(NamedTuple):
    """The other parts of a network that contains a nested net, such as norms at other resolutions.

    kind: the network's kind (see `stepwell.kinds`).
    about: its settings, ready for JSON.
    tensors: by name.
    """

    kind: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]


def save(
    net: NestedNet, path: str | Path, *, beside: Beside | None = None, kind: str = "classifier"
) -> Path:
    """Write `net` with all its depths to one safetensors file, whole or not at all.

    `beside` are more parts for the same file; `load` skips them, `read_beside` returns them. `kind` is
    that of `stepwell.kinds`. OSError if the folder does not exist or the disk is full; ValueError for
    weights that are not finite, which `load` would refuse, a network that is not nested, or one of
    `build` whose layers were converted to adder layers afterwards.
    """
    if not isinstance(net, NestedNet):
        raise ValueError(
            f"a {type(net).__name__} cannot be saved here: it takes a nested network, such as "
            "`stepwell.build` gives; a run's network with its decisions is in its net.safetensors"
        )
    if net.builder is not None and bool(adder_layers(net.module)) != ("adder" in net.builder[1]):
        raise ValueError(
            f"{path} is not written: the layers of this {name_of(net.builder)} are not those that "
            "`build` made. A file holds adder layers of build(..., adder=True) alone, and none of few "
            "bits"
        )
    wrong = net.not_finite() or (beside and not_finite(beside.tensors))
    if wrong:
        raise ValueError(f"{path} is not written: {wrong} holds values that are not finite")
    header = {"kind": kind, **_structure(net), "card": net.card.as_header()}
    tensors = _on_cpu(net.tensors())
    if beside is not None:
        header |= {"format": max(3, header["format"]), "kind": beside.kind, "beside": beside.about}
        tensors |= _on_cpu(beside.tensors, BESIDE)
    return _write(Path(path), header, tensors)


def load_both(
    path: str | Path,
    module: Callable[[], nn.Module] | None = None,
    heads: Mapping[str, Callable[[], nn.Module]] | None = None,
) -> tuple[NestedNet, Beside | None]:
    """Read a nested net and the parts beside it, if any; arguments and errors as for `load`."""
    header, tensors = read_own(Path(path))
    if module is not None and "builder" in header:
        raise ValueError(
            f"{path} names its network, {header['builder']}: load it without module=FACTORY"
        )
    heads = heads or {}
    if unknown := heads.keys() - header.get("exits", {}).keys():
        raise ValueError(f"{path} has no exit {min(unknown)!r}: leave it out of heads=")
    return assemble(header, tensors, Path(path), module, heads), _beside(header, tensors)


def read_beside(path: str | Path) -> Beside | None:
    """Read the parts beside the nested net in a run or a file, if any; errors as for `load`."""
    return _beside(*read_own(Path(path)))


def _beside(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Beside | None:
    if "beside" not in header:
        return None
    beside_tensors = {k.removeprefix(BESIDE): v for k, v in tensors.items() if k.startswith(BESIDE)}
    return Beside(header.get("kind", "resolution"), header["beside"], beside_tensors)


def net_digest(net: NestedNet) -> str:
    """Compute a checksum of `net` without its card: depths, their status, and every tensor."""
    return digest(_structure(net), _on_cpu(net.tensors()))


def _structure(net: NestedNet) -> dict[str, Any]:
    """Build the header of the file of `net` without its card."""
    if net.builder is None:
        made = {"format": 2, "stages": list(net.plan.stages)}
    else:
        made = {"format": 1, "builder": net.builder[0], "arguments": net.builder[1]}
    names = net.stored_names()
    if net.exits or len(set(names.values())) < len(names):
        made["format"] = 4
    if net.exits:
        made["exits"] = {exit: describe_head(head) for exit, head in net.exits.items()}
    return made | {
        "full": net.full,
        "depths": {depth: list(blocks) for depth, blocks in net.subnets.items()},
        "norms": net.norm_sharing,
        "status": net.status,
    }


def _on_cpu(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + k: v.detach().cpu().contiguous() for k, v in tensors.items()}


def rewrite_card(path: str | Path, card: Card) -> Path:
    """Replace the card in a file that `save` wrote, whole or not at all; errors as for both."""
    file = network_file(path)
    header, tensors = read_own(file)
    return _write(file, header | {"card": card.as_header()}, tensors)


def check_writable(file: Path) -> None:
    """Check that a network's file may be replaced, before time is spent on measuring for it.

    ValueError if ONNX graphs beside it may read their weights from it, OSError if another process
    writes to it.
    """
    if graphs := sorted(file.parent.glob("*.onnx")):
        raise ValueError(
            f"{graphs[0]} may read its weights from {file}, so {file.name} must stay as it is: change "
            "the run's own file, and export again"
        )
    with writing(file):
        pass


@contextmanager
def rewriting(path: Path, measured: str) -> Iterator[tuple[Path, Card]]:
    """Lock the file of a network; give it with its card, which may have changed since it was read.

    Errors as for `check_writable`; ValueError if it no longer holds the network with the `net_digest`
    `measured`.
    """
    file = network_file(path)
    check_writable(file)
    with writing(file):
        present, _ = load_both(file)
        if net_digest(present) != measured:
            raise ValueError(
                f"{file} was replaced by another network while this one was measured: nothing was "
                "written; start the command again"
            )
        yield file, present.card


def load(
    path: str | Path,
    module: Callable[[], nn.Module] | None = None,
    *,
    heads: Mapping[str, Callable[[], nn.Module]] | None = None,
) -> NestedNet:
    """Read a nested net, in eval mode, from a run directory or a file that `save` wrote.

    A network that chooses resolutions or widths is read without its chooser; `stepwell.open_network`
    reads both. It also reads detectors.

    Args:
        module: a function that makes the full net again, for a caller's own module nested by
            `stepwell.nest`; the file's weights replace its own.
        heads: by exit, functions that make custom heads again.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: the run is not finished; the file is damaged, no safetensors file, or not
            Stepwell's, or holds a detector; `module` is missing, makes another network, or is given for
            a network that has a name; `heads` misses an exit with a custom head, or names another.
    """
    if kind_of(path) == DETECTOR:
        raise ValueError(
            f"{path} holds a detector: use stepwell.open_network({str(path)!r}).net.predict(image)"
        )
    return load_both(path, module, heads)[0]


def fingerprint(path: Path) -> str:
    """Hash the network in a run directory or a file; of a file that is not Stepwell's, all its bytes.

    New measurements, and depths calibrated after the training, do not change the hash.
    """
    header, tensors = read_file(path, plain_too=True)
    if header is None or "depths" not in header:
        with network_file(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    trained = [depth for depth, status in header["status"].items() if status != "calibrated"]
    hashed = {k: v for k, v in header.items() if k != "kind"}  # files of older versions have none
    for name in header.keys() & {"depths", "exits", "status"}:
        hashed[name] = {d: value for d, value in header[name].items() if d in trained}
    hashed["card"] = {k: v for k, v in header["card"].items() if k not in MEASURED}
    of_trained = {k: v for k, v in tensors.items() if _is_of(k, tensors, header["depths"], trained)}
    return digest(hashed, of_trained)[:16]


def _is_of(
    name: str, tensors: Mapping[str, Tensor], depths: Mapping[str, list[int]], trained: list[str]
) -> bool:
    """Check by its name whether a tensor may belong to a `trained` depth."""
    if not name.startswith("depths/"):
        return True
    _, owner, own_name = name.split("/", 2)
    later = [*depths][[*depths].index(owner) :]
    # A depth shares an earlier one's norm if both paths begin alike and it has no such tensor itself.
    return owner in trained or any(
        depth in trained
        and depths[depth][:1] == depths[owner][:1]
        and f"depths/{depth}/{own_name}" not in tensors
        for depth in later
    )


def assemble(
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: Path,
    module: Callable[[], nn.Module] | None,
    heads: Mapping[str, Callable[[], nn.Module]],
) -> NestedNet:
    """Build the network of a file's header, in eval mode, with the file's tensors.

    Args and errors as for `load`; `path` is for messages.
    """
    made = None
    if "builder" not in header:
        if module is None:
            raise ValueError(
                f"{path} holds a caller's own module, nested by stepwell.nest: give load(path, "
                "module=FACTORY), a function without arguments that makes the same module; or "
                "--module PACKAGE:FACTORY to predict, eval or export"
            )
        made = module()
    own_heads = {exit: make() for exit, make in heads.items()}
    with structure_of(path):
        norms = header.get("norms", "private")  # files of older versions had no other
        if made is None:
            _check_arguments(header["builder"], header["arguments"], tensors)
            net = build(header["builder"], norms=norms, **header["arguments"])
        else:
            net = NestedNet(made, read(made, header["stages"]), {}, header["full"], norms=norms)
        _add_depths(net, header, path, own_heads)
        try:
            net.load_tensors({k: v for k, v in tensors.items() if not k.startswith(BESIDE)})
        except RuntimeError as error:
            if made is None:
                raise
            other = f"{path} was made of another module than `module` makes"
            raise ValueError(f"{other}: {' '.join(str(error).split())}") from error
        check_finite(path, net.not_finite())
        for depth, status in header["status"].items():
            net.mark(status, depth)
        net.card = card_of(header)
        use_break_even(net.module, net.card.break_even.get(device_name(), {}))
    return net.eval()


def check_finite(path: Path, wrong: str | None) -> None:
    """Raise ValueError about the tensor `wrong` of a file, which is not finite; None passes."""
    if wrong is not None:
        raise ValueError(
            f"{path}: {wrong} holds values that are not finite, so every answer would be wrong: train "
            "again, or take an older copy"
        )


def _check_arguments(name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse arguments of a builder that read other files, or make far more weights than a file has."""
    if foreign := [a for a in arguments if a.startswith("pretrained") or a in FOREIGN]:
        raise ValueError(f"its network would read other files: {foreign[0]}")
    builder = builder_of(name)
    options = {k: v for k, v in arguments.items() if k not in OF_BUILD}
    with torch.device("meta"):
        needed = _numbers_in(builder.make(**options))
        given = sum(value.numel() for value in tensors.values())
        most = given * (CUT if arguments.get("kept") is not None else 1)
        if needed > most and needed > _numbers_in(builder.make()):
            raise ValueError(f"its network would need {needed:,} numbers, and it has {given:,}")


def _numbers_in(module: nn.Module) -> int:
    """The numbers of a module's tensors; a tensor of several names, as between glances, counts once."""
    tensors = {id(value): value.numel() for value in module.state_dict(keep_vars=True).values()}
    return sum(tensors.values())


def _add_depths(
    net: NestedNet, header: Mapping[str, Any], path: Path, heads: Mapping[str, nn.Module]
) -> None:
    exits = header.get("exits", {})
    custom = [exit for exit, described in exits.items() if described is None]
    if missing := [exit for exit in custom if exit not in heads]:
        raise ValueError(
            f"{path} has an exit {missing[0]!r} with a custom head: give load(path, "
            f"heads={{{missing[0]!r}: FACTORY}}), a function without arguments that makes the same head"
        )
    for depth, blocks in header["depths"].items():
        if depth in net.subnets:  # a width, which `build` has made
            continue
        if depth not in exits:
            net.add_depth(depth, blocks)
        else:
            head = heads[depth] if depth in custom else make_head(exits[depth])
            net.add_exit(depth, blocks, head)


def _write(path: Path, header: dict[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    header = header | {"sha256": digest(header, tensors)}
    write_whole(path, to_bytes(dict(tensors), {"stepwell": json.dumps(header)}))
    return path
