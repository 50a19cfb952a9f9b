"""A joint training step against a step of the full net alone, beside the bound by MACs.

The bound runs every common prefix once: the MACs of all distinct steps over those of the full net.
The paper's loss needs no pass more (EKD); the default recipe's teacher, a moving average of the full
net, adds one forward pass, a third of a step of the full net alone.
Time over that bound tells what the joint step loses; time of the separate passes what it saves. Peak
memory is that of live tensors, over the weights that were there before: activations and gradients.

`python -m benchmarks.joint_step --against SRC` compares the step with the step of another source tree,
such as the `src` of a checkout of an older commit: both run in one process in turn, in pairs, and
the processor's time is compared.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from math import comb
from pathlib import Path
from types import ModuleType
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

    steps = {label: step(loss) for label, loss in losses.items()}
    times = side_by_side(steps, rounds=rounds, warmup=2)
    net.zero_grad()
    peaks = {}
    for label, run in steps.items():
        peaks[label] = peak_bytes(run)
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
        **{f"{label} / full": ratio(times, label, alone) for label in others},
        "peak bytes of the full net": peaks[alone],
        **{f"peak bytes, {label} / full": peaks[label] / peaks[alone] for label in others},
    }


def measure() -> dict[str, Any]:
    """Every case."""
    return {
        "goals": {"joint / bound": 1.05, "peak bytes, joint / full": 1.1},
        **{name: case(**arguments) for name, arguments in CASES.items()},
    }


class Tree:
    """The package of one source tree, imported beside that of another.

    Args:
        src: the folder that holds `stepwell`.
    """

    def __init__(self, src: Path) -> None:
        self.src = str(src.resolve(strict=True))
        self.modules: dict[str, ModuleType] = {}
        self("stepwell.nets")
        assert self.modules["stepwell"].__file__ == str(Path(self.src, "stepwell", "__init__.py"))

    def __call__(self, name: str) -> Any:
        """A module of this tree by its name."""
        others = _loaded()
        for other in others:
            del sys.modules[other]
        sys.modules |= self.modules
        sys.path.insert(0, self.src)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(self.src)
            self.modules = _loaded()
            for loaded in self.modules:
                del sys.modules[loaded]
            sys.modules |= others


def _loaded() -> dict[str, ModuleType]:
    return {
        name: module for name, module in sys.modules.items() if name.partition(".")[0] == "stepwell"
    }


def against(src: Path, pairs: int, cases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The joint step of this source tree over that of another, case by case.

    Args:
        src: the other tree, the folder that holds `stepwell`.
        pairs: of steps, the other's and ours in turn; half of them in the reverse order.
        cases: keys of `CASES`.
    """
    trees = {"other": Tree(src), "ours": Tree(Path(__file__).parents[1] / "src")}
    for name in cases:
        arguments = {k: v for k, v in CASES[name].items() if k != "rounds"}
        yield {"case": name} | _compare(trees, pairs, **arguments)


def _compare(
    trees: dict[str, Tree],
    pairs: int,
    name: str,
    depths: list[str],
    batch: int,
    size: int = 32,
    **arguments: Any,
) -> dict[str, Any]:
    steps, gradients = {}, {}
    for tree, module in trees.items():
        torch.manual_seed(0)
        net = module("stepwell.nets").build(name, depths, num_classes=10, **arguments)
        net = net.to(memory_format=torch.channels_last).train()
        x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        y = torch.randint(10, (batch,))
        ekd = module("stepwell.methods").EmbeddedKD(net, distill_from=0.0)
        data = module("stepwell.types").Batch(x, y)

        def step(net: Any = net, ekd: Any = ekd, data: Any = data) -> None:
            net.zero_grad()
            ekd.training_step(data).loss.backward()

        step()
        steps[tree] = step
        gradients[tree] = [p.grad.clone() for p in net.parameters()]
    forth = side_by_side(steps, rounds=(pairs + 1) // 2, clock=time.process_time)
    back = side_by_side(dict(reversed(steps.items())), rounds=pairs // 2, clock=time.process_time)
    ratios = sorted(
        ours / other
        for times in (forth, back)
        for ours, other in zip(times["ours"], times["other"], strict=True)
    )
    low = _rank(len(ratios))
    return {
        "pairs": len(ratios),
        "ours / other, median": statistics.median(ratios),
        "90 % interval of the median": [ratios[low], ratios[-1 - low]],
        "processor's ms of the other": 1000 * statistics.median(forth["other"] + back["other"]),
        "gradients equal to the bit": all(map(torch.equal, *gradients.values())),
    }


def _rank(n: int) -> int:
    """The rank, from 0, of the order statistic below the median with a probability of 95 % or more."""
    total, rank = 1, 0
    while total + comb(n, rank + 1) <= 0.05 * 2**n:
        total += comb(n, rank + 1)
        rank += 1
    return rank


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, required=True, help="the src folder of another tree")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="some of the cases")
    options = parser.parse_args()
    for result in against(options.against, options.pairs, options.cases):
        print(json.dumps(result, indent=1), flush=True)
