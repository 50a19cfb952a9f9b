"""Run benchmarks and write what they found: `python -m benchmarks [NAME ...]`."""

import json
import os
import platform
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch

from stepwell.device import processor

NAMES = (
    "fit_loop",
    "joint_step",
    "help_time",
    "subnet_latency",
    "loader",
    "file_size",
    "evaluation",
    "logit_cache",
    "netgraft",
    "drnet",
    "dynamic",
    "dynamic_graphs",
    "dynamic_places",
    "dynamic_tokens",
    "precision",
    "kg",
    "text",
    "serve",
    "freed_memory",
    "adder",
    "detection",
    "network_pictures",
)
RESULTS = Path(__file__).parent / "results"


def hardware() -> str:
    """The processor and its threads."""
    return f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"


def main() -> None:
    """Run the benchmarks named, or all."""
    for name in sys.argv[1:] or NAMES:
        load = os.getloadavg()[0]
        result = import_module(f"benchmarks.{name}").measure()
        record = {
            "benchmark": name,
            "command": f"python -m benchmarks {name}",
            "date": time.strftime("%Y-%m-%d"),
            "hardware": hardware(),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],  # before and after
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "stepwell": version("stepwell"),
            },
            "result": result,
        }
        text = json.dumps(record, indent=1) + "\n"
        (RESULTS / f"{name}.json").write_text(text)
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
