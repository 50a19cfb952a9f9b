"""A resolution network as ONNX: a small graph a choice, a chooser, and the weights once.

Every graph takes images of full size and resizes them itself, by two products with constant matrices
(a bilinear resize is linear in each axis). So onnxruntime is all that is needed to run it, and the host
only loops: score, choose, run equal choices together.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stepwell.export import folder as folders
from stepwell.export.check import Sample, compare_answers
from stepwell.export.onnx import require_onnx, write_onnx
from stepwell.export.subnet import about
from stepwell.files import read_json
from stepwell.nets.decisions.executor import gathered, groups
from stepwell.nets.files.nested import BESIDE, digest
from stepwell.nets.files.onnx import open_onnx, runner
from stepwell.nets.files.resolution import save_resolution
from stepwell.nets.nested.cascade import Answer
from stepwell.nets.resolution.chooser import Chooser, ResolutionNet
from stepwell.types import Images

CHOOSER = "chooser.onnx"


class Resized(nn.Module):
    """A network that takes images of `full` pixels, and resizes them to its own `size`."""

    def __init__(self, net: nn.Module, full: int, size: int) -> None:
        super().__init__()
        self.net = net
        self.matrix: Tensor
        eye = torch.eye(full)[None, None]
        rows = interpolate(eye, (size, full), mode="bilinear", antialias=True)
        self.register_buffer("matrix", rows[0, 0])

    def forward(self, images: Tensor) -> Tensor:
        """Resize the images, and give the network's output."""
        output: Tensor = self.net(self.matrix @ images @ self.matrix.T)
        return output


class Scores(nn.Module):
    """The chooser without its own resize."""

    def __init__(self, chooser: Chooser) -> None:
        super().__init__()
        self.features, self.scores = chooser.features, chooser.scores

    def forward(self, x: Tensor) -> Tensor:
        """Score a small copy of the images."""
        scores: Tensor = self.scores(self.features(x).mean((2, 3)))
        return scores


def export_resolution(
    net: ResolutionNet, folder: Path, sample: Sample, *, own: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Write a resolution network to `folder`: its file, one graph per choice, and the chooser.

    Each graph is checked on `sample`, and so is the host loop (`OpenResolution`) over all of them,
    before anything is put in place. Gives the content of `export.json`, which has all that another host
    loop needs. Errors as for `export_folder`; ValueError too if there is no trained chooser.
    """
    require_onnx()
    if not isinstance(net.chooser, Chooser):
        raise ValueError(
            "this network was trained at several resolutions without a chooser: export it at full size "
            f"with --depth {net.net.net.full}"
        )
    nested = net.net.net
    card = about(nested, nested.full)
    record: dict[str, Any] = {
        "network": digest({}, {k: v.cpu().contiguous() for k, v in net.state_dict().items()}),
        **{name: card[name] for name in ("classes", "size", "mean", "std", "licence")},
        "choices": [f"{name}.onnx" for name in net.names],
        "price": float(net.price),
        "costs": net.costs.tolist(),
        "budgets": [{"price": b.price, "macs": b.macs, "accuracy": b.accuracy} for b in net.budgets],
    }
    with folders.put_in_place(folder, record, own=own) as (place, before):
        weights = folders.named_by_content(save_resolution(net, place / "net.safetensors"))
        record["weights"] = folders.weights_record(nested, weights)
        rows = []
        for graph in _graphs(net, sample, card):
            say(f"writing {graph[0]}")
            rows.append(_write(*graph, weights, sample))
        loop = OpenResolution(place, record)
        words = "the exported graphs in their loop"
        record["parity"] = compare_answers(net.cpu().eval().answer, loop, sample, words)
        folders.write_index(place, before, record, rows)
    return record | {"files": rows}


def _graphs(
    net: ResolutionNet, sample: Sample, card: dict[str, Any]
) -> Iterator[tuple[str, nn.Module, dict[str, Any], dict[str, str]]]:
    """Iterate over all choices, then the chooser: file, network, metadata, stored tensor names."""
    full = sample.images.shape[-1]
    for name, (depth, size) in zip(net.names, net.choices, strict=True):
        names = {f"net.{k}": _stored(v) for k, v in net.net.stored_names(size, depth).items()}
        plain = Resized(net.net.at(size).subnet(depth), full, size)
        metadata = card | {"depth": depth, "resolution": size, "choice": name}
        yield f"{name}.onnx", plain, metadata, names
    chooser = net.chooser
    assert isinstance(chooser, Chooser)
    names = {f"net.{k}": f"{BESIDE}chooser/{k}" for k in chooser.state_dict()}
    plain = Resized(Scores(chooser), full, chooser.size)
    yield CHOOSER, plain, card | {"choice": "chooser", "scores": list(net.names)}, names


def _write(
    name: str, plain: nn.Module, metadata: dict[str, Any], names: dict[str, str], weights: Path,
    sample: Sample,
) -> dict[str, Any]:  # fmt: skip
    """Write one graph, check it, and describe the file."""
    file = weights.parent / name
    parity = write_onnx(plain, file, sample.images, metadata, names, weights)
    return {
        "choice": metadata["choice"], "format": "onnx", "file": file.name,
        "bytes": file.stat().st_size, "weights": weights.name,
        "weights_bytes": folders.bytes_of(weights, names.values()),
        "parity": parity._asdict() | {"part": sample.part},
    }  # fmt: skip


class OpenResolution:
    """The host loop of an exported resolution network, run by onnxruntime.

    Args:
        folder: written by `export_resolution`.
        index: content of its export.json, if that is not written yet.
    """

    def __init__(self, folder: str | Path, index: Mapping[str, Any] | None = None) -> None:
        folder = Path(folder)
        index = read_json(folder / folders.INDEX, "export it again") if index is None else index
        if "price" not in index:
            raise ValueError(f"{folder} holds the export of a network that chooses no resolutions")
        self.price, self.costs = index["price"], torch.tensor(index["costs"])
        self.classes = len(index["classes"])
        self.names = tuple(file.removesuffix(".onnx") for file in index["choices"])
        self._chooser = runner(open_onnx(folder / CHOOSER))
        self._graphs = [runner(open_onnx(folder / file)) for file in index["choices"]]

    def __call__(self, images: Images | np.ndarray) -> Answer:
        """Give logits of normalised images of full size, and the index of each image's choice."""
        images = torch.as_tensor(images)
        if not len(images):
            return Answer(torch.empty(0, self.classes), torch.empty(0, dtype=torch.long))
        who = (self._chooser(images) - self.price * self.costs).argmax(1)
        parts = ((rows, self._graphs[i](images[rows])) for i, rows in groups(who, len(self._graphs)))
        return Answer(gathered([*parts]), who)


def _stored(name: str) -> str:
    """Name a tensor of one resolution in the file."""
    return BESIDE + name if name.partition("/")[0].isdecimal() else name
