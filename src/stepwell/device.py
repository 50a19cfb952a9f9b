"""The machine: its name, under which measured times are stored, and its cores."""

import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name, or its architecture if it has no name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """The number of cores that this process may use, of all that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name(device: torch.device | str = "cpu") -> str:
    """The accelerator, or the processor and torch's number of threads: times depend on these."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    name = processor() if device.type == "cpu" else f"{processor()}, {device.type}"
    return f"{name}, {threads} thread{'s' * (threads != 1)}"
