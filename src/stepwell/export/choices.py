"""A network that chooses as ONNX: a small graph a choice, one for the chooser, and the weights once.

The host only loops: score, choose, run equal choices together. onnxruntime is all that it needs. A
chooser that scores by how sure a choice is reads the logits of this choice, which runs first, for all
images.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stepwell.export import folder as folders
from stepwell.export.check import Sample, compare_answers
from stepwell.export.interface import INTERFACES, Interface
from stepwell.export.onnx import require_onnx, write_onnx
from stepwell.export.opening import exported_state, sessions_of
from stepwell.files import read_json
from stepwell.nets.decisions.choosing import ChoosingNet
from stepwell.nets.decisions.executor import gathered, groups
from stepwell.nets.decisions.path_gate import PathGate
from stepwell.nets.files.container import state_digest
from stepwell.nets.files.onnx import runner
from stepwell.nets.nested.cascade import Answer
from stepwell.types import Images, Logits

CHOOSER = "chooser.onnx"
#: The chooser's input, where it scores by how sure a choice is.
OF_LOGITS = Interface(("choice_logits",), (("batch",),), lambda plain, x: (x,))


class Graph(NamedTuple):
    """A graph to write.

    file: its name. plain: the network. metadata: for the file. names: the stored name of each tensor
    that it reads from the shared weights. interface: its inputs. batch: what to check it on, in
    place of the sample's images.
    """

    file: str
    plain: nn.Module
    metadata: dict[str, Any]
    names: dict[str, str]
    interface: Interface = INTERFACES["image"]
    batch: Tensor | None = None


@torch.inference_mode()
def doubt_graph(
    net: ChoosingNet, sample: Sample, metadata: dict[str, Any], names: dict[str, str]
) -> Graph:
    """Give the graph of a gate by doubt, which reads the logits of the choice that it looks at.

    Args:
        names: the stored name of each tensor of the gate, by its name in the chooser.
    """
    chooser = net.chooser
    assert isinstance(chooser, PathGate)
    assert chooser.doubt
    logits = net.plain(chooser.looks_at).cpu().eval()(sample.images)
    return Graph(CHOOSER, chooser.of_looked(), metadata, names, OF_LOGITS, logits)


def export_choices(
    net: ChoosingNet, graphs: Iterable[Graph], save: Callable[[Path], Path], card: Mapping[str, Any],
    folder: Path, sample: Sample, *, own: bool = False, say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Write a network that chooses to `folder`: its file, one graph per choice, and the chooser.

    Each graph is checked on `sample`, and so is the host loop (`OpenChoices`) over all of them, before
    anything is put in place. Gives the content of `export.json`, which has all that another host loop
    needs. Errors as for `export_folder`.

    Args:
        graphs: of all choices, in the order of the network's names, then of the chooser (`CHOOSER`).
        save: writes the network's file, and gives its place.
        card: of the nested net, see `about`.
    """
    require_onnx()
    record: dict[str, Any] = {
        "network": state_digest(net.state_dict()),
        **{name: card[name] for name in ("classes", "size", "mean", "std", "licence")},
        "choices": [f"{name}.onnx" for name in net.names],
        "price": float(net.price),
        "costs": net.costs.tolist(),
        "budgets": [{"price": b.price, "macs": b.macs, "accuracy": b.accuracy} for b in net.budgets],
    }
    if isinstance(net.chooser, PathGate) and net.chooser.doubt:
        record["chooser_reads"] = net.names[net.chooser.looks_at]
    with folders.put_in_place(folder, record, own=own) as (place, before):
        weights = folders.named_by_content(save(place / "net.safetensors"))
        record["weights"] = folders.weights_record(net.nested, weights)
        rows = []
        for graph in graphs:
            say(f"writing {graph.file}")
            rows.append(_write(graph, weights, sample))
        loop = OpenChoices(place, record)
        words = "the exported graphs in their loop"
        record["parity"] = compare_answers(net.cpu().eval().answer, loop, sample, words)
        folders.write_index(place, before, record, rows)
    return record | {"files": rows}


def _write(graph: Graph, weights: Path, sample: Sample) -> dict[str, Any]:
    """Write one graph, check it, and describe the file."""
    file = weights.parent / graph.file
    batch = sample.images if graph.batch is None else graph.batch
    parity = write_onnx(graph.plain, file, batch, graph.metadata, graph.names, weights, graph.interface)
    return {
        "choice": graph.metadata["choice"], "format": "onnx", "file": file.name,
        "bytes": file.stat().st_size, "weights": weights.name,
        "weights_bytes": folders.bytes_of(weights, graph.names.values()),
        "parity": parity._asdict() | {"part": sample.part},
    }  # fmt: skip


def open_choices(
    net: ChoosingNet, folder: Path, *, share: bool = True, advice: str = "export it"
) -> "OpenChoices":
    """Open the export of a network that chooses; args and errors as for `open_depths`."""
    index = exported_state(folder, state_digest(net.state_dict()), advice)
    return OpenChoices(folder, index, share=share)


class OpenChoices:
    """The host loop of an exported network that chooses, run by onnxruntime.

    Args:
        folder: written by `export_choices`.
        index: content of its export.json, if that is not written yet.
        share: keep the weights in memory once, see `open_sharing`.
    """

    def __init__(
        self, folder: str | Path, index: Mapping[str, Any] | None = None, *, share: bool = False
    ) -> None:
        folder = Path(folder)
        index = read_json(folder / folders.INDEX, "export it again") if index is None else index
        if "price" not in index:
            raise ValueError(f"{folder} holds the export of a network that chooses nothing")
        self.price, self.costs = index["price"], torch.tensor(index["costs"])
        self.classes = len(index["classes"])
        self.names = tuple(file.removesuffix(".onnx") for file in index["choices"])
        paths = [folder / file for file in (CHOOSER, *index["choices"])]
        chooser, *graphs = sessions_of(paths, share=share)
        read = index.get("chooser_reads")
        #: The index of the choice whose logits the chooser reads; None: it takes the images.
        self.looks_at = None if read is None else self.names.index(read)
        self._chooser = runner(chooser) if read is None else runner(chooser, OF_LOGITS.names)
        self._graphs = [*map(runner, graphs)]

    def at(self, images: Images, name: str) -> Logits:
        """The logits of a batch at one choice."""
        return self._graphs[self.names.index(name)](images)

    def __call__(self, images: Images | np.ndarray) -> Answer:
        """Give logits of normalised images of full size, and the index of each image's choice."""
        images = torch.as_tensor(images)
        if not len(images):
            return Answer(torch.empty(0, self.classes), torch.empty(0, dtype=torch.long))
        looked = images if self.looks_at is None else self._graphs[self.looks_at](images)
        who = (self._chooser(looked) - self.price * self.costs).argmax(1)
        parts = [
            (rows, looked[rows] if i == self.looks_at else self._graphs[i](images[rows]))
            for i, rows in groups(who, len(self._graphs))
        ]
        return Answer(gathered(parts), who)
