"""An extracted sub-net's time against torchvision's own network of that depth."""

from typing import Any

import torch
import torchvision

from benchmarks.timing import ratio, side_by_side
from stepwell.nets import build


def measure() -> dict[str, Any]:
    """ResNet-18 out of 34 against torchvision's ResNet-18, one image and eight, at 224 pixels."""
    net = build("resnet34", ["18"]).eval()
    ours, theirs = net.subnet("18").eval(), torchvision.models.resnet18().eval()
    results: dict[str, Any] = {"goal": 1.02}
    for batch, rounds in ((1, 60), (8, 15)):
        x = torch.randn(batch, 3, 224, 224)

        @torch.inference_mode()
        def run(module: torch.nn.Module, x: torch.Tensor = x) -> None:
            module(x)

        calls = {"ours": lambda: run(ours), "torchvision": lambda: run(theirs)}
        times = side_by_side(calls, rounds=rounds, warmup=3)
        results[f"sub-net / torchvision, batch {batch}"] = ratio(times, "ours", "torchvision")
    return results
