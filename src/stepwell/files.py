"""Files that are whole or absent, however the process ends, and one writer at a time."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in `path`.

    Args:
        remedy: what to do about a damaged file, for the message.

    Raises:
        ValueError: it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object): {remedy}")
    return found


def config_of(net: Path, remedy: str = "put it right") -> Mapping[str, Any]:
    """The configuration of the run whose network is in the file `net`; empty where it is of no run.

    Others keep a config.json of their own beside weights, which is none of a run.

    Args:
        remedy: as for `read_json`.

    Raises:
        ValueError: the configuration is damaged.
    """
    path = net.parent / "config.json"
    if net.name != "net.safetensors" or not path.exists():
        return {}
    config = read_json(path, remedy)
    return config if {"recipe", "arguments", "data"} <= config.keys() else {}


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one.

    The bytes go to a temporary name in the same folder (so that the rename stays on one disk), are
    flushed to the disk, and replace `path` in one step.

    Raises:
        OSError: there is no such folder, it cannot be written, or the disk is full; `path` is as it was
            before.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"cannot write {path}: there is no folder {path.parent}; make it first"
        )
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file readable by its owner alone; a result is an ordinary file.
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f"cannot write {path}: {error.strerror}; it is as it was before"
            ) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable (Windows has no such call and needs none)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def locked(file: Path, what: Path, instead: str = "use another --out") -> FileLock:
    """The lock `file`, taken for as long as this process writes to `what`, or until it ends.

    Args:
        instead: what can be done in place of waiting, for the message.

    Raises:
        OSError: another process is writing to it.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"another process is writing to {what}: wait for it, or {instead}") from None
    return lock


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """Hold the lock of a result while it changes: the lock of its run directory, else its own.

    Raises:
        OSError: another process is writing to it.
    """
    folder = file.parent
    if (folder / "config.json").exists():
        lock = locked(folder / "lock", folder)
    else:
        lock = locked(folder / f".{file.name}.lock", file)
    try:
        yield
    finally:
        lock.release()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
