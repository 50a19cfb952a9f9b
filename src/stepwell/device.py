"""The machine this runs on, by the name that measured times are kept under."""

import platform
from pathlib import Path

import torch


def processor() -> str:
    """The processor's own name, or its architecture where it says none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device | str = "cpu") -> str:
    """What a time depends on: the accelerator, or the processor and torch's threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    name = processor() if device.type == "cpu" else f"{processor()}, {device.type}"
    return f"{name}, {threads} thread{'s' * (threads != 1)}"
