"""Time of recurrent networks that skip tokens, over torch's own layer, on one thread.

Which tokens are read is set, not learnt, so that each share is met exactly; the gate counts.
"""

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.text import WORDS
from benchmarks.timing import ratio, side_by_side
from stepwell import Card, build
from stepwell.export.onnx import export_onnx
from stepwell.measure.sequences import EveryToken, sequence_macs
from stepwell.memory import keep_freed_memory
from stepwell.nets.decisions.estimators import Draw
from stepwell.nets.decisions.sequences import skip_cell
from stepwell.nets.files.onnx import session

ROUNDS = 7
#: Numbers of a word's vector, tokens of a text, and widths of the state.
INPUTS, READ, WIDTHS = 384, 100, (128, 512, 1024)
CELLS = ("gru", "lstm")


def sequences(cell: str, width: int) -> dict[str, Any]:
    """A recurrent network that reads a share of the tokens, over torch's own layer, which reads all.

    Also as an ONNX graph, and the same loop reading every token.
    """
    net = build(f"skip-{cell}/{width}", inputs=INPUTS, words=WORDS, num_classes=2).eval()
    net.card = Card(("0", "1"), READ, input="text")
    net.mark("trained")
    every, gate, macs = EveryToken(net).eval(), skip_cell(net.module).gate, sequence_macs(net)
    nn.init.zeros_(gate.weight)
    ratios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        ids = torch.randint(3, WORDS, (32, READ), generator=torch.Generator().manual_seed(0))
        export_onnx(net, "1", Path(name) / "1.onnx", ids)
        model = onnx.load(Path(name) / "1.onnx")
    (bias,) = (weight for weight in model.graph.initializer if weight.name.endswith("gate.bias"))
    for apart in (1, 2, 4, 10):  # tokens from one update to the next
        nn.init.constant_(gate.bias, -math.log(2 * apart - 2) if apart > 1 else 99.0)
        bias.CopyFrom(onnx.numpy_helper.from_array(gate.bias.detach().numpy(), bias.name))
        graph = session(model.SerializeToString())
        for x in (ids, ids[:1]):
            feed = {"input_ids": x.numpy(), "attention_mask": np.ones_like(x.numpy())}
            runs: dict[str, Callable[[], object]] = {
                "skips": partial(net, x), "graph": partial(graph.run, None, feed),
                "loop": partial(net, x, given={"draw": Draw("always")}), "layer": partial(every, x),
            }  # fmt: skip
            times = side_by_side(runs, rounds=ROUNDS, warmup=2, clock=time.process_time)
            ratios[f"1 of {apart} tokens, batch {len(x)}"] = {
                "by MACs": macs.at(-(-READ // apart)) / macs.every(READ),
                **{f"{run} over layer": ratio(times, run, "layer") for run in [*runs][:3]},
            }
    return ratios


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Ratios of times of texts that are read in part."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as the command line does
    return {f"{cell}, {width} wide": sequences(cell, width) for cell in CELLS for width in WIDTHS}
