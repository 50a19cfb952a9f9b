"""A folder of exported depths, its index `export.json`, and `preprocess.py`, which prepares images."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from stepwell.cost import count_macs, measure_latencies
from stepwell.cost.table import ROUNDS
from stepwell.data import Batches
from stepwell.data.decoding import SUFFIXES
from stepwell.data.formats import format_of
from stepwell.evaluation import evaluate
from stepwell.export.cascade import NAME as CASCADE
from stepwell.export.cascade import export_cascade
from stepwell.export.check import Sample, take
from stepwell.export.onnx import CALIBRATION, export_int8, export_onnx, ranges, require_onnx
from stepwell.export.subnet import about, bytes_alone, export_pt2, export_safetensors
from stepwell.files import locked, sync_folder, write_whole
from stepwell.nets import NestedNet
from stepwell.nets.files.container import state_digest
from stepwell.nets.files.nested import save
from stepwell.nets.files.onnx import file_sha256, open_onnx, runner, weights_of
from stepwell.nets.inputs import blank_inputs
from stepwell.nets.nested.cascade import Cascade

Format = Literal["onnx", "pt2", "safetensors"]
INDEX = "export.json"
LOCK = ".lock"
#: The file that prepares images without Stepwell.
PREPROCESS = "preprocess.py"
#: Digits of a checksum in the name of the file of shared weights.
DIGITS = 8
EXPORTERS = {"onnx": export_onnx, "pt2": export_pt2, "safetensors": export_safetensors}


class Int8(NamedTuple):
    """Training images to calibrate an int8 version on, and test images to measure it on."""

    train: Batches
    test: Batches


def export_folder(
    net: NestedNet, folder: Path, sample: Sample, *, format: Format = "onnx",
    depth: str | None = None, int8: Int8 | None = None, own: bool = False,
    say: Callable[[str], None] = lambda _: None, beside: Mapping[str, bytes] | None = None,
    cascade: Cascade | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write depths of `net` to `folder`, each checked on `sample` before, and give the new entries.

    Files of earlier exports of this network stay in the folder and in `export.json`; those of a state
    with other depths are removed. Each file is replaced in one step, and weights before the graphs that
    read them: wherever the process ends, every graph is old or new, and runs. `export.json` goes last.

    Args:
        depth: one depth, whose files need no other; by default all depths, whose ONNX graphs share the
            weights in one copy of the nested net's file, named by its checksum.
        int8: adds an int8 version of each ONNX file, and the test accuracy and milliseconds an image
            of both.
        own: the folder belongs to the network's run: it may hold an export of any earlier network.
        say: gets a line about each long step.
        beside: further files by name; by default programs that prepare images, such as
            `preprocess.py`.
        cascade: write this cascade instead of depths, as one ONNX graph, `cascade.onnx`.

    Raises:
        ValueError: a depth was never trained or calibrated; a file gives other logits than the
            network; `folder` is a file, or holds another network's export.
        OSError: another process is exporting to it.
        ImportError: ONNX is asked for and the extra `onnx` is not installed.
    """
    chosen = list(net.depths) if depth is None else [depth]
    net.require_ready(*chosen)
    if format == "onnx":
        require_onnx()
    elif int8 is not None:
        raise ValueError(f"int8 versions are ONNX files: format {format!r} has none")
    network = _network(net)
    rows: list[dict[str, Any]] = []
    if beside is None:
        beside = format_of(net.card.drawing).programs()
    with put_in_place(folder, network, own=own, beside=beside) as (place, before):
        weights = None
        if cascade is not None:
            say("the cascade: onnx")
            rows.append(_write_cascade(cascade, place, sample))
            chosen = []
        elif format == "onnx" and depth is None:
            weights = named_by_content(save(net, place / "net.safetensors"))
            network["weights"] = weights_record(net, weights)
        for name in chosen:
            say(f"depth {name}: {format}")
            rows.append(_write_depth(net, name, format, place, sample, weights))
            if int8 is not None:
                say(f"depth {name}: int8, and both on {len(int8.test.images)} test images")
                rows.append(_write_int8(net, name, place, int8, beside=rows[-1]))
        write_index(place, before, network, rows)
    return network | {"files": rows}


def _write_depth(
    net: NestedNet, depth: str, format: Format, place: Path, sample: Sample, weights: Path | None
) -> dict[str, Any]:
    """Write one depth, check it, and describe the file."""
    file = place / f"{depth}.{format}"
    shared = {} if weights is None else {"weights": weights}
    parity = EXPORTERS[format](net, depth, file, sample.images, **shared)
    row = _row(net, depth, format, file)
    if weights is not None:
        row |= {
            "weights": weights.name,
            "weights_bytes": bytes_of(weights, net.stored_names(depth).values()),
        }
    return row | {"parity": parity._asdict() | {"part": sample.part}}


def _write_cascade(cascade: Cascade, place: Path, sample: Sample) -> dict[str, Any]:
    """Write a cascade as one graph, check it, and describe the file."""
    file = place / f"{CASCADE}.onnx"
    parity = export_cascade(cascade, file, sample)
    row = _row(cascade.net, cascade.depths[-1], "onnx", file)
    return row | {"depth": CASCADE, "depths": list(cascade.depths), "parity": parity}


def _write_int8(
    net: NestedNet, depth: str, place: Path, int8: Int8, *, beside: dict[str, Any]
) -> dict[str, Any]:
    """Write the int8 version of an ONNX file, and measure both; adds to the row `beside`."""
    file, small = place / beside["file"], place / f"{depth}.int8.onnx"
    export_int8(file, small, take(int8.train, CALIBRATION))
    row = _row(net, depth, "int8", small)
    measured = _measure({"int8": small, "onnx": file}, int8.test)
    beside |= measured["onnx"]
    return row | measured["int8"]


def write_index(
    place: Path, before: dict[str, Any], entries: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Write the index in `place`, with the rows of an earlier one about files that stay."""
    new = {row["file"] for row in rows}
    old = [row for row in before.get("files", ()) if row["file"] not in new]
    remaining = [row for row in old if (place.parent / row["file"]).exists()]
    index = before | entries | {"files": remaining + rows}
    write_whole(place / INDEX, json.dumps(index, indent=1).encode())


def _network(net: NestedNet) -> dict[str, Any]:
    tensors = net.tensors()
    card = about(net, net.full)
    return {
        "network": state_digest(tensors),
        "full_network": state_digest({n: tensors[n] for n in net.stored_names(net.full).values()}),
        "full": net.full,
        **{name: card[name] for name in ("classes", "size", "mean", "std", "licence")},
        "depths": {d: _about(net, d) for d, status in net.status.items() if status != "fresh"},
        **({"drawing": dict(net.card.drawing)} if net.card.drawing else {}),
        "threads": torch.get_num_threads(),
    }


def _about(net: NestedNet, depth: str) -> dict[str, Any]:
    """Describe a depth for a program that chooses one: costs, accuracy, and times by device."""
    known = {"blocks": list(net.depths[depth])} | net.card.costs.get(depth, {})
    if "macs" not in known and net.card.size:
        plain = net.subnet(depth).cpu()
        known["params"] = sum(p.numel() for p in plain.parameters())
        known["macs"] = count_macs(plain, blank_inputs(plain, net.card))
    times = {device: rows[depth] for device, rows in net.card.latency.items() if depth in rows}
    return known | {"status": net.status[depth], "latency": times}


def _earlier(folder: Path, network: dict[str, Any], own: bool) -> tuple[dict[str, Any], list[str]]:
    """Read the index of an earlier export to this folder: what stays of it, and files to remove.

    ValueError for the export of another network, unless the folder is the run's `own`.
    """
    index = folder / INDEX
    if not index.exists():
        return {}, []
    try:
        before: dict[str, Any] = json.loads(index.read_text())
        files = [str(row["file"]) for row in before["files"]]
        if before["network"] == network["network"]:
            return before, []
        full = before.get("full_network")
        own = own or (full is not None and full == network.get("full_network"))
    except (ValueError, KeyError, TypeError, AttributeError):
        files = []
    if not own:
        raise ValueError(
            f"{folder} holds the export of another network: remove it, or name another folder"
        )
    return {}, [name for name in files if Path(name).name == name]


def named_by_content(file: Path) -> Path:
    """Rename a file of shared weights by its checksum.

    A graph points at byte ranges, which move with the length of the header (a licence, measured times).
    The name keeps a graph from reading the weights of another export.
    """
    return file.rename(file.parent / f"net-{file_sha256(file)[:DIGITS]}.safetensors")


@contextmanager
def put_in_place(
    folder: Path, network: dict[str, Any], *, own: bool, beside: Mapping[str, bytes] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give a temporary folder, whose files move to `folder` at the end: weights, graphs, index.

    Gives also the index of an earlier export of this `network`. At the end, files of another state of
    it are removed, and weights without a graph that points at them. `beside` are files by name, by
    default `preprocess.py`.

    Raises:
        ValueError: `folder` is a file, holds pictures, or another network's export and is not the run's
            `own`.
        OSError: another process is exporting to it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    existed = folder.exists()
    strange = [f.name for f in folder.iterdir() if f.suffix.lower() in SUFFIXES] if existed else []
    if strange:
        raise ValueError(f"{folder} holds pictures, such as {strange[0]}: name a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    lock = locked(folder / LOCK, folder)
    try:
        for leftover in folder.glob(".export-*"):  # of an export that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        before, stale = _earlier(folder, network, own)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as place:
            if beside is None:
                source = resources.files("stepwell.data").joinpath(PREPROCESS).read_bytes()
                beside = {PREPROCESS: source}
            for name, content in beside.items():
                write_whole(Path(place) / name, content)
            yield Path(place), before
            weights = _weights_files(Path(place))
            order = {INDEX: 2} | {file.name: 0 for file in weights}
            new = {file.name for file in Path(place).iterdir()}
            for file in sorted(Path(place).iterdir(), key=lambda f: (order.get(f.name, 1), f.name)):
                os.replace(file, folder / file.name)
                sync_folder(folder)  # or a power failure could keep a later one alone
            for name in set(stale) - new:
                with suppress(OSError):  # Windows removes no file that is open: there it stays
                    (folder / name).unlink()
            if weights or stale:
                _remove_unused_weights(folder)
    finally:
        with suppress(OSError):  # Windows removes no file that is open: there it stays
            (folder / LOCK).unlink()
        lock.release()
        if not existed and not any(folder.iterdir()):
            folder.rmdir()


def _weights_files(folder: Path) -> list[Path]:
    """Find the files of shared weights by their names."""
    return list(folder.glob(f"net-{'[0-9a-f]' * DIGITS}.safetensors"))


def _remove_unused_weights(folder: Path) -> None:
    """Remove unused files of weights, except those whose name and content disagree."""
    used = {weights_of(graph) for graph in folder.glob("*.onnx")}
    for file in _weights_files(folder):
        if file.name not in used and file.name.startswith(f"net-{file_sha256(file)[:DIGITS]}."):
            with suppress(OSError):  # Windows removes no file that is open: there it stays
                file.unlink()


def _row(net: NestedNet, depth: str, format: str, file: Path) -> dict[str, Any]:
    return {
        "depth": depth, "blocks": list(net.depths[depth]), "format": format, "file": file.name,
        "bytes": file.stat().st_size,
    }  # fmt: skip


def weights_record(net: NestedNet, file: Path) -> dict[str, Any]:
    """Describe the file of shared weights, beside the size of the full net's weights alone."""
    return {
        "file": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file),
        "full_net_bytes": bytes_alone(net, net.full),
    }  # fmt: skip


def bytes_of(weights: Path, names: Iterable[str]) -> int:
    """Count the bytes of these tensors of a file, each once."""
    places = ranges(weights)
    return sum(places[name].length for name in set(names))


def _measure(files: dict[str, Path], test: Batches) -> dict[str, dict[str, Any]]:
    """Measure the test accuracy, and milliseconds of one image, of ONNX files by name.

    The last file is the reference: "agreement" is the share of equal classes.
    """
    runners = {name: runner(open_onnx(file)) for name, file in files.items()}
    results = evaluate(lambda x: {name: run(x) for name, run in runners.items()}, test)
    image = test.at(0).images[:1]
    reference = list(files)[-1]
    times = measure_latencies(
        {name: partial(run, image) for name, run in runners.items()}, seconds=0.3, rounds=ROUNDS
    )
    measured: dict[str, dict[str, Any]] = {}
    for name, time in times.items():
        measured[name] = {"accuracy": results[f"{name}/accuracy"]}
        measured[name] |= {"ms": time.ms, "ms_low": time.low, "ms_high": time.high}
        if name != reference:
            measured[name]["agreement"] = results[f"{name}/agreement"]
    return measured
