"""A training step under bf16 autocast against one in fp32: what `--precision bf16` is worth here.

On a processor without bf16 instructions (the results name it) autocast is many times slower.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.timing import ratio, side_by_side
from stepwell.methods import EmbeddedKD
from stepwell.nets import build
from stepwell.types import Batch

BATCH, SIZE = 128, 16


def measure() -> dict[str, Any]:
    """Forward and backward of ResNet-32 alone, and of R32 > 20 with EKD."""
    torch.manual_seed(0)
    net = build("resnet32", ["20"], num_classes=10).to(memory_format=torch.channels_last).train()
    x = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (BATCH,))
    ekd = EmbeddedKD(net, distill_from=0.0)
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "full net": lambda: cross_entropy(net(x), y),
        "joint": lambda: ekd.training_step(Batch(x, y)).loss,
    }

    def step(loss: Callable[[], torch.Tensor], bf16: bool) -> Callable[[], None]:
        def run() -> None:
            net.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss()
            value.backward()

        return run

    steps = {
        f"{name}, {kind}": step(loss, kind == "bf16")
        for name, loss in losses.items()
        for kind in ("bf16", "fp32")
    }
    times = side_by_side(steps, rounds=12, warmup=3)
    return {
        "batch": BATCH,
        "size": SIZE,
        "bf16 instructions": bool(torch.cpu._is_avx512_bf16_supported()),
        **{f"bf16 / fp32, {name}": ratio(times, f"{name}, bf16", f"{name}, fp32") for name in losses},
    }
