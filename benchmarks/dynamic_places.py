"""Time of decisions by place, and of exits on texts, over the network that makes none, on one thread.

Decisions are set, not learnt, so that each share of active work is met exactly; mask units and heads
count.
"""

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from benchmarks.dynamic import cascades
from benchmarks.text import CONFIG, LAYERS, WORDS
from benchmarks.timing import ratio, side_by_side
from stepwell import Card, build
from stepwell.cost import count_macs
from stepwell.measure.skipping import break_even_of
from stepwell.memory import keep_freed_memory
from stepwell.nets.decisions.glances import crops
from stepwell.nets.decisions.pixels import Masked, MaskedBasicBlock, MaskedBottleneck

#: Rounds, and seconds to measure a block's break-even.
ROUNDS, SECONDS = 7, 1.0
#: Other programs disturb the processor's own clock less.
CLOCK: dict[str, Any] = {"clock": time.process_time, "warmup": 2}
#: Blocks with masks: the plain and the masked class, channels, width, pixels.
CASES: dict[str, tuple[Any, Any, int, int, int]] = {
    "basic block, 64 channels, 32 pixels": (BasicBlock, MaskedBasicBlock, 64, 64, 32),
    "basic block, 16 channels, 32 pixels": (BasicBlock, MaskedBasicBlock, 16, 16, 32),
    "bottleneck, 256 channels, 56 pixels": (Bottleneck, MaskedBottleneck, 256, 64, 56),
}


class Square(nn.Module):
    """A mask unit that computes its scores and then opens a square in the middle, of a set share."""

    def __init__(self, block: Masked) -> None:
        super().__init__()
        self.gate, self.some, self.share = block.gate, block.some, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Scores that open for a share of the positions."""
        scores: Tensor = self.gate(x)
        mask = self.some(x, self.share) if self.share else torch.zeros_like(scores, dtype=torch.bool)
        return torch.where(mask, scores.abs() + 1, -1)


def pixels(name: str, batch: int) -> dict[str, Any]:
    """A residual block that runs at a share of the positions, over the same block without a mask.

    Twice: alone at these positions, and everywhere above the break-even.
    """
    plain_block, masked_block, channels, width, size = CASES[name]
    plain, block = plain_block(channels, width).eval(), masked_block(channels, width).eval()
    x = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0)).relu()
    x = x.contiguous(memory_format=torch.channels_last)
    share = break_even_of(block, x, SECONDS)
    macs = sum(block.work) * size * size
    block.gate, of_gate = Square(block), count_macs(block.gate, x[:1]) / macs
    ratios = {}
    for adaptive in (False, True):
        block.break_even = {batch: share} if adaptive else {}
        for active in (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0):
            block.gate.share = active
            runs = {"masked": partial(block, x), "dense": partial(plain, x)}
            times = side_by_side(runs, rounds=ROUNDS, **CLOCK)
            work = block.share_of(block.gate(x) > 0, x)
            key = f"active {active}" + ", dense above the break-even" * adaptive
            ratios[key] = {"over dense": ratio(times, "masked", "dense"), "by MACs": work + of_gate}
    return {"shares": ratios, "break-even": share}


def glances(size: int, batch: int) -> dict[str, Any]:
    """Four glances of a third of an image, over all four: shares of the images leave after each.

    "crops" is the time of cutting them out, over that of one glance.
    """
    net = build("glance-resnet8/4", ["1", "2", "3"], image_size=size).eval()
    net.mark("trained")
    net.card = Card(size=size)
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    places, side = torch.rand(batch, 2, generator=torch.Generator().manual_seed(1)), size // 3
    runs = {"crops": partial(crops, x, places, side), "glance": partial(net, x, "1")}
    cutting = ratio(side_by_side(runs, rounds=ROUNDS, **CLOCK), "crops", "glance")
    return {"crops": cutting, **cascades(net, x, [0.0, 0.3, 0.5], rounds=ROUNDS, **CLOCK)}


def exits_on_texts(tokens: int, batch: int) -> dict[str, Any]:
    """An encoder of MiniLM's shape with an exit behind each layer, over the encoder without exits."""
    net = build(f"bert/{LAYERS}", config=CONFIG, num_classes=2).eval()
    for layer in range(1, LAYERS):
        net.add_exit(f"exit{layer}", (layer,), input_size=(tokens,))
    net.mark("trained")
    net.card = Card(("0", "1"), tokens, input="text")
    ids = torch.randint(1000, WORDS, (batch, tokens), generator=torch.Generator().manual_seed(0))
    return cascades(net, ids, [0.0, 0.15, 0.3, 0.5], rounds=ROUNDS, **CLOCK)


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Ratios of times of blocks that run at some positions, of glances, and of exits on texts."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as the command line does
    ratios = {f"pixels, {name}, batch {batch}": pixels(name, batch)
              for name in CASES for batch in (8, 1)}  # fmt: skip
    ratios |= {f"glances, 96 pixels, batch {batch}": glances(96, batch) for batch in (64, 1)}
    return ratios | {
        f"exits of an encoder, 32 tokens, batch {batch}": exits_on_texts(32, batch) for batch in (32, 1)
    }
