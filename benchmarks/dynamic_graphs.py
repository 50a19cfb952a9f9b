"""Time of exported graphs that decide per image over that of the network that makes no decision.

onnxruntime on one thread, processor time. Thresholds are set so that each exit, or gate, decides for a
set share of the images that reach it; gates and heads count.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.dynamic import gated_and_plain, with_exits
from benchmarks.timing import ratio, side_by_side
from stepwell import Card, Cascade
from stepwell.export import Sample, export_onnx
from stepwell.export.cascade import export_cascade
from stepwell.measure.cascade import cascade_macs
from stepwell.nets import NestedNet
from stepwell.nets.decisions.skipping import Gated, gated_blocks
from stepwell.nets.files.onnx import open_onnx
from stepwell.types import Images

#: Images in a batch, rounds, and pixels by case.
IMAGES, ROUNDS = 64, 7
CASES = {"32 pixels": 32}
#: Shares of the images that leave at each exit, and for which each gate opens.
LEAVING, OPENED = (0.0, 0.3, 0.5), (0.0, 0.5, 1.0)


@torch.no_grad()
def open_for(block: Gated, net: NestedNet, images: Images, share: float) -> None:
    """Set the bias of a gate so that it opens for a share of these images."""
    outputs: list[Tensor] = []
    hook = block.gate.register_forward_hook(lambda module, x, scores: outputs.append(scores))
    net(images)
    hook.remove()
    margins = (outputs[0][:, 1] - outputs[0][:, 0]).sort().values
    shut = round((1 - share) * len(margins))
    ends = torch.cat([margins[:1] - 1, margins, margins[-1:] + 1])
    scores = block.gate.get_submodule("scores")
    assert isinstance(scores.bias, Tensor)
    scores.bias[1] -= (ends[shut] + ends[shut + 1]) / 2


def leaving_for(net: NestedNet, images: Images, share: float) -> Cascade:
    """A cascade in which a share of the images that come to an exit leave there."""
    with torch.no_grad():
        logits = net.logits_by_depth(images)
    remaining, thresholds = torch.ones(len(images), dtype=torch.bool), {}
    for depth in [*net.depths][:-1]:
        sure = logits[depth].softmax(1).amax(1)
        ranked = sure[remaining].sort(descending=True).values
        count = round(share * len(ranked))
        thresholds[depth] = float(ranked[count - 1]) - 1e-6 if count else 1.0
        remaining &= ~(sure >= thresholds[depth])
    return Cascade(net, thresholds)


def timed(graph: Path, plain: Path, images: Images) -> dict[str, Any]:
    """The ratio of the times of two graphs, in a batch and one image at a time."""
    sessions = {"graph": open_onnx(graph), "plain": open_onnx(plain)}
    ratios = {}
    for batch in (len(images), 1):
        feed = {"images": images[:batch].numpy()}
        runs = {name: partial(session.run, None, feed) for name, session in sessions.items()}
        times = side_by_side(runs, rounds=ROUNDS, clock=time.process_time)
        ratios[f"batch {batch}"] = ratio(times, "graph", "plain")
    return ratios


def skipping(size: int, images: Images, folder: Path) -> dict[str, Any]:
    """ResNet-20 of 64 channels throughout with gates, over the same network without."""
    net, plain = gated_and_plain()
    for network in (net, plain):
        network.mark("trained")
        network.card = Card(tuple("abcdefghij"), size)
    export_onnx(plain, "20", folder / "plain.onnx", images[:2])
    ratios = {}
    for share in OPENED:
        for _, block in gated_blocks(net.module):
            open_for(block, net, images, share)
        export_onnx(net, "20", folder / "gated.onnx", images[:2])
        ratios[f"open {share}"] = timed(folder / "gated.onnx", folder / "plain.onnx", images)
    return ratios


def exits(size: int, images: Images, folder: Path) -> dict[str, Any]:
    """ResNet-18 with three exits as one graph, over the network without exits."""
    net = with_exits(size)
    export_onnx(net, net.full, folder / "plain.onnx", images[:2])
    results = {}
    for share in LEAVING:
        cascade = leaving_for(net, images, share)
        export_cascade(cascade, folder / "cascade.onnx", Sample(images[:2], "noise"))
        costs = torch.tensor(cascade_macs(net, cascade.depths), dtype=torch.float64)
        by_macs = float(costs[cascade(images).depth].mean()) / cascade_macs(net, [net.full])[0]
        ratios = timed(folder / "cascade.onnx", folder / "plain.onnx", images)
        results[f"leaving {share}"] = {"by MACs": by_macs} | ratios
    return results


def measure() -> dict[str, Any]:
    """Ratios of processor time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {}
    for name, size in CASES.items():
        images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory() as folder:
            for run in (skipping, exits):
                results[f"{run.__name__}, {name}"] = run(size, images, Path(folder))
    return results
