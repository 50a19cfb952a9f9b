"""A resolution network as ONNX, see `export.choices`.

Every graph takes images of full size and resizes them itself, by two products with constant matrices
(a bilinear resize is linear in each axis), so onnxruntime is all that is needed to run it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stepwell.export.check import Sample
from stepwell.export.choices import CHOOSER, Graph, doubt_graph, export_choices
from stepwell.export.subnet import about
from stepwell.nets.decisions.path_gate import PathGate
from stepwell.nets.files.nested import BESIDE
from stepwell.nets.files.resolution import save_resolution
from stepwell.nets.resolution.chooser import Chooser, ResolutionNet


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
    """Write a resolution network to `folder`, as `export_choices` does.

    ValueError, too, if there is no trained chooser.
    """
    if not isinstance(net.chooser, Chooser | PathGate):
        raise ValueError(
            "this network was trained at several resolutions without a chooser: export it at full size "
            f"with --depth {net.nested.full}"
        )
    card = about(net.nested, net.nested.full)
    graphs, save = _graphs(net, sample, card), partial(save_resolution, net)
    return export_choices(net, graphs, save, card, folder, sample, own=own, say=say)


def _graphs(net: ResolutionNet, sample: Sample, card: dict[str, Any]) -> Iterator[Graph]:
    """Iterate over all choices, then the chooser: file, network, metadata, stored tensor names."""
    full = sample.images.shape[-1]
    for name, (depth, size) in zip(net.names, net.choices, strict=True):
        names = {f"net.{k}": _stored(v) for k, v in net.net.stored_names(size, depth).items()}
        plain = Resized(net.net.at(size).subnet(depth), full, size)
        metadata = card | {"depth": depth, "resolution": size, "choice": name}
        yield Graph(f"{name}.onnx", plain, metadata, names)
    chooser, metadata = net.chooser, card | {"choice": "chooser", "scores": list(net.names)}
    names = {k: f"{BESIDE}chooser/{k}" for k in chooser.state_dict()}
    if not isinstance(chooser, Chooser):
        yield doubt_graph(net, sample, metadata, names)
        return
    inside = {f"net.{k}": name for k, name in names.items()}
    yield Graph(CHOOSER, Resized(Scores(chooser), full, chooser.size), metadata, inside)


def _stored(name: str) -> str:
    """Name a tensor of one resolution in the file."""
    return BESIDE + name if name.partition("/")[0].isdecimal() else name
