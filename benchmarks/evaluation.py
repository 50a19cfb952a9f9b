"""Evaluating all depths in one pass against the full net alone, beside the bound by MACs.

The bound runs every common prefix once: the MACs of all distinct steps over those of the full net.
"""

import statistics
from typing import Any

import torch

from benchmarks.timing import ratio, side_by_side
from stepwell.cost import count_joint_macs, count_macs
from stepwell.evaluation import evaluate
from stepwell.nets import build
from stepwell.types import Batch

CASES: dict[str, dict[str, Any]] = {
    "resnet32 > 20": {"name": "resnet32", "depths": ["20"], "batch": 64, "size": 32},
    "resnet56 > 44, 32, 20": {
        "name": "resnet56", "depths": ["44", "32", "20"], "batch": 64, "size": 32
    },
    "resnet34 > 18, 224 pixels": {
        "name": "resnet34", "depths": ["18"], "batch": 4, "size": 224
    },
}  # fmt: skip


def case(name: str, depths: list[str], batch: int, size: int) -> dict[str, Any]:
    """The evaluator (accuracy, NLL, ECE, agreement) on four batches: all depths, the full net alone."""
    torch.manual_seed(0)
    net = build(name, depths, num_classes=10).to(memory_format=torch.channels_last).eval()
    batches = [
        Batch(
            torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last),
            torch.randint(10, (batch,)),
        )
        for _ in range(4)
    ]
    x = batches[0].images[:1]
    limit = count_joint_macs(net, x) / count_macs(net.module, x)
    calls = {
        "all depths": lambda: evaluate(net.logits_by_depth, batches),
        "full net": lambda: evaluate(lambda x: {net.full: net(x)}, batches),
        "one by one": lambda: [evaluate(lambda x, d=d: {d: net(x, d)}, batches) for d in net.depths],
    }
    times = side_by_side(calls, rounds=15, warmup=2)
    all_to_full = ratio(times, "all depths", "full net")
    return {
        "images": 4 * batch,
        "bound by MACs": limit,
        "ms of the full net": 1000 * statistics.median(times["full net"]),
        "all depths / full net": all_to_full,
        "one by one / full net": ratio(times, "one by one", "full net"),
        "all depths / (bound x full net)": {k: v / limit for k, v in all_to_full.items()},
        "goal": 1.05,
    }


def measure() -> dict[str, Any]:
    """Every case."""
    return {name: case(**arguments) for name, arguments in CASES.items()}
