"""The settings of a training loop: device, precision, checkpoints."""

import importlib.util
import os
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from stepwell.flags import Together, flag

Precision = Literal["32", "bf16"]


@dataclass(frozen=True)
class Loop(Together):
    """Device, precision and checkpoints of training.

    Attributes:
        device: auto takes a GPU where there is one.
        devices: processes; more than one under torchrun or on several GPUs.
        precision: bf16 is mixed precision.
        clip: largest norm of the gradient; zero: no clipping.
        accumulate: batches whose gradients make one step.
        average: decay of a moving average that is the result; zero: none.
        checkpoint_minutes: minutes between checkpoints within an epoch.
        log: csv or tensorboard: write metrics into RUN/logs, too.
    """

    TITLE: ClassVar = "device, checkpoint and log"
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], flag("{auto,cpu,..}")] = "auto"
    devices: int = 1
    precision: Precision = "32"
    clip: float = 5.0
    accumulate: int = 1
    average: float = 0.0
    checkpoint_minutes: Annotated[float, flag("M")] = 5.0
    log: Annotated[Literal["none", "csv", "tensorboard"], flag("KIND")] = "none"

    def check(self) -> str:
        """The kind of device to train on: cpu, cuda or mps.

        ValueError if there are too few, ImportError if the package is missing that writes the log.
        """
        if self.log == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "--log tensorboard needs the package tensorboard: pip install tensorboard"
            )
        counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
        here = next((k for k, n in counts.items() if n), "cpu")
        kind = here if self.device == "auto" else self.device
        if kind == "cpu":
            return kind
        if not counts[kind]:
            raise ValueError(f"--device {kind}: torch finds no such device here; use auto or cpu")
        if self.devices > counts[kind]:
            raise ValueError(f"--devices {self.devices}: torch finds {counts[kind]} of {kind} here")
        return kind


def device_of(loop: Loop) -> torch.device:
    """The device of this process that `fit` trains on with this loop; errors as for `Loop.check`."""
    kind = loop.check()
    if kind == "cpu" or loop.devices == 1:
        return torch.device(kind)
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))
