"""A cascade as one ONNX graph, in which an image stops at the depth that is sure of it.

The graph goes on with the rows of the batch that no depth has answered, however few. So there is no
host loop, and onnxruntime saves the time that `Cascade` saves.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stepwell.export.check import Sample, compare_answers
from stepwell.export.interface import INTERFACES
from stepwell.export.onnx import as_metadata, graph_of, require_onnx
from stepwell.export.subnet import about
from stepwell.files import write_whole
from stepwell.nets import NestedNet
from stepwell.nets.files.onnx import metadata_of, outputs_of, session
from stepwell.nets.nested.cascade import Answer, Cascade
from stepwell.nets.nested.steps import Request

#: The graph's outputs: logits (batch, classes), and the index of the depth that gave them (batch,).
OUTPUTS = ("logits", "depth")
#: Its file, and its name among the depths of an export.
NAME = "cascade"


class CascadeGraph(nn.Module):
    """A cascade as a module of a graph's inputs."""

    def __init__(self, cascade: Cascade) -> None:
        super().__init__()
        self.cascade, self.net = cascade, cascade.net
        self.padding: int = getattr(cascade.net.module, "padding", 0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits and the index of the depth, of images or of token ids with their mask."""
        if mask is not None:
            x = x.masked_fill(mask == 0, self.padding)
        answer = self.cascade.answer(x, Request({}, ()))
        return answer.logits, answer.depth


def export_cascade(cascade: Cascade, path: Path, sample: Sample) -> dict[str, Any]:
    """Write a cascade as an ONNX file that holds its weights, checked with onnxruntime before.

    Returns:
        The check on `sample`: "difference", the largest of logits; "same_choice", the share of images
        answered at the same depth; "images" and their "part".

    Raises:
        ValueError: the graph gives other logits or depths; a criterion of one's own.
        ImportError: the extra `onnx` is not installed.
    """
    require_onnx()
    if not isinstance(cascade.criterion, str):
        raise ValueError("a graph holds a cascade with a criterion by name, and this one has its own")
    graph = CascadeGraph(cascade).cpu().eval()
    interface = INTERFACES[cascade.net.card.input]
    facts = about(cascade.net, cascade.depths[-1]) | {"depth": NAME} | _decisions(cascade)
    inputs = torch.zeros_like(sample.images[:2])
    data = graph_of(graph, inputs, interface, facts, OUTPUTS).SerializeToString()
    parity = compare_answers(cascade, cascade_runner(session(data), cascade.net), sample, path.name)
    write_whole(path, data)
    return parity


def cascade_runner(session: Any, net: NestedNet) -> Callable[[Tensor], Answer]:
    """A session of a cascade's graph as a function of a batch of inputs of `net`."""
    interface = INTERFACES[net.card.input]
    return lambda x: Answer(
        *outputs_of(session, interface.names, interface.inputs(net.module, x), OUTPUTS)
    )


def decides_like(path: Path, cascade: Cascade) -> bool:
    """True for a graph of a cascade that decides as this one."""
    return as_metadata(_decisions(cascade)).items() <= metadata_of(path).items()


def _decisions(cascade: Cascade) -> dict[str, Any]:
    """The settings that decide at which depth an image stops."""
    return {
        "depths": list(cascade.depths), "thresholds": [*cascade.thresholds.values()],
        "criterion": cascade.criterion, "temperatures": cascade.temperatures,
        "criterion_weights": {depth: list(weights) for depth, weights in cascade.weights.items()},
    }  # fmt: skip
