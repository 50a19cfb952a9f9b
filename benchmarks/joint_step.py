"""A joint training step against a step of the full net alone, beside the bound by MACs.

The bound runs every common prefix once: the MACs of all distinct steps over those of the full net.
The paper's loss needs no pass more (EKD); the default recipe's teacher, a moving average of the full
net, adds one forward pass, a third of a step of the full net alone.
Time over that bound tells what the joint step loses; time of the separate passes what it saves. Peak
memory is that of live tensors, over the weights that were there before: activations and gradients.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.timing import ratio, side_by_side
from stepwell.cost import count_joint_macs, count_macs, peak_bytes
from stepwell.methods import EmbeddedKD
from stepwell.nets import build
from stepwell.types import Batch

CASES: dict[str, dict[str, Any]] = {
    "resnet32 > 20": {"name": "resnet32", "depths": ["20"], "batch": 64, "rounds": 16},
    "resnet56 > 44, 32, 20": {
        "name": "resnet56", "depths": ["20", "32", "44"], "batch": 64, "rounds": 10
    },
    "vgg19 > 16, 13": {
        "name": "vgg19_bn", "depths": ["13", "16"], "batch": 128, "rounds": 4, "stem": "small"
    },
    "resnet34 > 18, 224 pixels": {
        "name": "resnet34", "depths": ["18"], "batch": 16, "size": 224, "rounds": 5
    },
}  # fmt: skip


def case(
    name: str, depths: list[str], batch: int, rounds: int, size: int = 32, **arguments: Any
) -> dict[str, Any]:
    """Forward and backward of the full net, joint in three ways, and in separate passes."""
    torch.manual_seed(0)
    net = build(name, depths, num_classes=10, **arguments)
    net = net.to(memory_format=torch.channels_last).train()
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    only_labels = EmbeddedKD(net, distill_from=0.0, kl=0.0, attention=0.0)
    ekd = EmbeddedKD(net, distill_from=0.0)
    moving = EmbeddedKD(net, distill_from=0.0, ema_teacher=0.99, teach_full=True)

    def separate() -> torch.Tensor:
        return torch.stack([cross_entropy(net(x, d), y) for d in net.depths]).sum()

    losses: dict[str, Callable[[], torch.Tensor]] = {
        "full net alone": lambda: cross_entropy(net(x), y),
        "joint, labels only": lambda: only_labels.training_step(Batch(x, y)).loss,
        "joint, EKD": lambda: ekd.training_step(Batch(x, y)).loss,
        "joint, EKD by a moving average": lambda: moving.training_step(Batch(x, y)).loss,
        "separate passes": separate,
    }

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            net.zero_grad()
            loss().backward()

        return run

    steps = {what: step(loss) for what, loss in losses.items()}
    times = side_by_side(steps, rounds=rounds, warmup=2)
    net.zero_grad()
    peaks = {}
    for what, run in steps.items():
        peaks[what] = peak_bytes(run)
        net.zero_grad()
    alone, *others = steps
    macs = count_joint_macs(net, x[:1]) / count_macs(net.module, x[:1])
    joint = ratio(times, "joint, labels only", alone)["median"]
    return {
        "batch": batch,
        "size": size,
        "bound by MACs": macs,
        "bound by MACs, EKD by a moving average": macs + 1 / 3,
        "joint, labels only / bound": joint / macs,
        "ms of the full net": 1000 * statistics.median(times[alone]),
        **{f"{n} / full": ratio(times, n, alone) for n in others},
        "peak bytes of the full net": peaks[alone],
        **{f"peak bytes, {n} / full": peaks[n] / peaks[alone] for n in others},
    }


def measure() -> dict[str, Any]:
    """Every case."""
    return {
        "goals": {"joint / bound": 1.05, "peak bytes, joint / full": 1.1},
        **{name: case(**arguments) for name, arguments in CASES.items()},
    }
