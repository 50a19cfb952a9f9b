"""A joint training step against a step of the full net alone, beside the bound by MACs.

The bound runs every common prefix once: the MACs of all distinct steps over those of the full net.
"""

import statistics
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.timing import ratio, side_by_side
from stepwell.cost import count_macs
from stepwell.methods import EmbeddedKD
from stepwell.nets import NestedNet, build
from stepwell.types import Batch

CASES: dict[str, dict[str, Any]] = {
    "resnet32 > 20": {"name": "resnet32", "depths": ["20"], "batch": 64},
    "resnet34 > 18, 3x3 stem": {
        "name": "resnet34", "depths": ["18"], "batch": 16, "stem": "small"
    },
}  # fmt: skip


def bound(net: NestedNet, x: torch.Tensor) -> float:
    """MACs of one joint forward pass over those of the full net alone."""

    class All(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> object:
            return net.forward_all(x)

    return count_macs(All(), x) / count_macs(net.module, x)


def case(name: str, depths: list[str], batch: int, **arguments: Any) -> dict[str, Any]:
    """Forward and backward of: the full net, joint with labels only, EKD, and two separate passes."""
    torch.manual_seed(0)
    net = build(name, depths, num_classes=10, **arguments)
    net = net.to(memory_format=torch.channels_last).train()
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    only_labels = EmbeddedKD(net, distill_from=0.0, kl=0.0, attention=0.0)
    ekd = EmbeddedKD(net, distill_from=0.0)

    def full() -> None:
        net.zero_grad()
        cross_entropy(net(x), y).backward()

    def naive() -> None:
        net.zero_grad()
        torch.stack([cross_entropy(net(x, d), y) for d in net.depths]).sum().backward()

    def joint(objective: EmbeddedKD) -> None:
        net.zero_grad()
        objective.training_step(Batch(x, y)).loss.backward()

    calls = {
        "full net alone": full,
        "joint, labels only": lambda: joint(only_labels),
        "joint, EKD": lambda: joint(ekd),
        "separate passes": naive,
    }
    times = side_by_side(calls, rounds=12, warmup=2)
    return {
        "batch": batch,
        "bound by MACs": bound(net, x[:1]),
        "ms of the full net": 1000 * statistics.median(times["full net alone"]),
        **{f"{n} / full": ratio(times, n, "full net alone") for n in list(calls)[1:]},
    }


def measure() -> dict[str, Any]:
    """Every case."""
    return {name: case(**arguments) for name, arguments in CASES.items()}
