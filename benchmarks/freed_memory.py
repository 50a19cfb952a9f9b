"""Predictions in a process that keeps the memory it frees, against one with glibc's defaults."""

import statistics
import subprocess
import sys
from typing import Any

#: Name, side of the images, and batch size.
CASES = (("resnet32", 32, 16), ("resnet32", 96, 16), ("resnet50", 224, 1), ("resnet50", 224, 8))
ROUNDS, BATCHES = 3, 8
#: Prints milliseconds of an image, and page faults of a batch.
PROGRAM = """
import resource, sys, time
import torch
from stepwell.memory import keep_freed_memory
from stepwell.nets import build

name, side, batch, count = sys.argv[1], *map(int, sys.argv[2:5])
if sys.argv[5] == "keeps":
    assert keep_freed_memory()
torch.set_num_threads(1)
net = build(name).eval()
x = torch.randn(batch, 3, side, side)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with torch.inference_mode():
    net(x), net(x)
    start, before = time.perf_counter(), faults()
    for _ in range(count):
        net(x)
seconds = time.perf_counter() - start
print(1000 * seconds / count / batch, (faults() - before) / count)
"""


def measure() -> dict[str, Any]:
    """Milliseconds of an image and page faults of a batch, and the ratio of the times."""
    results: dict[str, Any] = {}
    for name, side, batch in CASES:
        rounds: dict[str, list[tuple[float, float]]] = {"keeps": [], "default": []}
        for _ in range(ROUNDS):
            for mode, numbers in rounds.items():
                numbers.append(run(name, side, batch, mode))
        ratios = [d[0] / k[0] for d, k in zip(rounds["default"], rounds["keeps"], strict=True)]
        results[f"{name}, {side} pixels, batch {batch}"] = {
            mode: {
                "ms": statistics.median(ms for ms, _ in numbers),
                "page_faults": statistics.median(faults for _, faults in numbers),
            }
            for mode, numbers in rounds.items()
        } | {"default / keeps": statistics.median(ratios)}
    return results


def run(name: str, side: int, batch: int, mode: str) -> tuple[float, float]:
    """Milliseconds and page faults in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, name, str(side), str(batch), str(BATCHES), mode]
    ms, faults = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(ms), float(faults)
