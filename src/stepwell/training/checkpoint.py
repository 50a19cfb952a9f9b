"""The file of a phase of training: written whole, checked when it is read."""

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepwell.files import write_whole

#: What last.ckpt holds.
LAST = {
    "position", "finished", "objective", "optimizer", "average", "sums", "best", "seconds",
    "cpu_seconds",
}  # fmt: skip


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint whole: into memory first, so that a full disk is an ordinary `OSError`."""
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    write_whole(path, buffer.getvalue())


def read_checkpoint(path: Path, keys: Collection[str] = ("objective",)) -> dict[str, Any] | None:
    """A checkpoint's content on the CPU; None without a file. Torch writes checksums and checks none.

    Args:
        keys: what the checkpoint must hold.

    Raises:
        ValueError: the file is damaged, or no checkpoint of a training.
    """
    if not path.exists():
        return None
    fix = remedy(path)
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise a dozen kinds here
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}): {fix}") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged (the checksum of {damaged} does not match): {fix}")
    if not isinstance(checkpoint, dict) or not set(keys) <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of a training: {fix}")
    return checkpoint


def remedy(checkpoint: Path) -> str:
    """The way out of a damaged checkpoint in words."""
    return f"remove {checkpoint.parent} to train this phase from its beginning"


def load_checked(module: nn.Module, state: Mapping[str, Any], file: Path) -> None:
    """Load a module's state from a checkpoint; ValueError if it belongs to another module."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"{file} is of another network or method ({reason}): use another run directory"
        ) from error
