"""What all depths together take on disk, against the full net's own file, and a way between two."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from stepwell.export import Sample, export_folder
from stepwell.export.delta import export_delta
from stepwell.export.subnet import plain_bytes
from stepwell.nets import Card, NestedNet, build
from stepwell.nets.files.nested import save

#: Networks, their sub-nets, their classes and the size of their images.
CASES: dict[str, tuple[str, list[str], int, int]] = {
    "R34 > 18": ("resnet34", ["18"], 1000, 64),
    "R101 > 50 > 26": ("resnet101", ["50", "26"], 1000, 64),
    "R56 > 44, 32, 20": ("resnet56", ["44", "32", "20"], 10, 32),
}


def value_bytes(net: NestedNet) -> int:
    """Bytes of the tensors alone, without their names."""
    return sum(v.numel() * v.element_size() for v in net.tensors().values())


def case(name: str, depths: list[str], classes: int, size: int) -> dict[str, Any]:
    """The exported folder of all depths; the full net alone; a plain file for each depth."""
    nested, full = (build(name, d, num_classes=classes).eval() for d in (depths, []))
    for net in (nested, full):
        net.card = Card(tuple(str(i) for i in range(classes)), size)
        net.mark("trained")
    noise = Sample(torch.randn(2, 3, size, size), "noise")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        alone = save(full, folder / "full.safetensors").stat().st_size
        deltas = {d: export_delta(nested, nested.full, d, folder / d) for d in nested.subnets}
        record = export_folder(nested, folder / "all", noise)
        files, weights = record["files"], record["weights"]["bytes"]
    graphs = {row["depth"]: row["bytes"] for row in files}
    apart = sum(len(plain_bytes(nested, depth)) for depth in nested.depths)
    return {
        "all-depth file, bytes": weights,
        "full net's file, bytes": alone,
        "all-depth file / full net's": weights / alone,
        "tensors of all depths / full net's": value_bytes(nested) / value_bytes(full),
        "bytes of the ONNX graphs": graphs,
        "all-depth file and graphs / full net's": (weights + sum(graphs.values())) / alone,
        "a plain file a depth / full net's": apart / alone,
        "bytes to the full net's plain file": {
            d: {"base": delta.base_bytes, "delta": delta.bytes, "whole": delta.whole_bytes}
            for d, delta in deltas.items()
        },
    }


def measure() -> dict[str, Any]:
    """Every case."""
    return {name: case(*arguments) for name, arguments in CASES.items()} | {"goal": 1.02}
