"""A network that chooses widths as ONNX, see `export.choices`.

A graph of a width holds its own weights: slices of the shared ones are no ranges of their file.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stepwell.export.check import Sample
from stepwell.export.choices import CHOOSER, Graph, doubt_graph, export_choices
from stepwell.export.subnet import about
from stepwell.nets.decisions.path_gate import PathGate
from stepwell.nets.decisions.widths import WidthNet
from stepwell.nets.files.widths import save_widths


def export_widths(
    net: WidthNet, folder: Path, sample: Sample, *, own: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Write a network that chooses widths to `folder`, as `export_choices` does.

    The loop runs every choice as a group of its own: what the network joins by the times of this device
    is left apart. ValueError, too, if there is no gate.
    """
    if not isinstance(net.chooser, PathGate):
        raise ValueError(
            "this network makes the same choice for all images: export that width with --depth NAME"
        )
    card = about(net.nested, net.nested.full)
    graphs, save = _graphs(net, sample, card), partial(save_widths, net)
    times = net.times
    try:
        net.times = {}
        return export_choices(net, graphs, save, card, folder, sample, own=own, say=say)
    finally:
        net.times = times


def _graphs(net: WidthNet, sample: Sample, card: dict[str, Any]) -> Iterator[Graph]:
    for i, name in enumerate(net.names):
        names = net.nested.stored_names(name)
        yield Graph(f"{name}.onnx", net.plain(i), card | {"depth": name, "choice": name}, names)
    chooser, metadata = net.chooser, card | {"choice": "chooser", "scores": list(net.names)}
    assert isinstance(chooser, PathGate)
    if chooser.doubt:
        yield doubt_graph(net, sample, metadata, {})
        return
    yield Graph(CHOOSER, chooser.alone(), metadata, {})
