"""Atomic writes of files, and locks for one writer at a time."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def cache_folder(name: str = "") -> Path:
    """A folder for what can be made or downloaded again: below STEPWELL_DATA, or ~/.cache/stepwell.

    ValueError if neither is known.
    """
    if given := os.environ.get("STEPWELL_DATA"):
        return Path(given) / name
    try:
        return Path.home() / ".cache" / "stepwell" / name
    except RuntimeError as error:
        raise ValueError("there is no home folder: set STEPWELL_DATA to a folder for caches") from error


def export_folder(run: Path) -> Path:
    """The default folder of exports, of a run or of a network's file."""
    return (run if run.is_dir() else run.parent) / "export"


def check_folder(flag: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written; ValueError names its flag."""
    paths = (folder, *folder.absolute().parents)
    above = next(path for path in paths if os.path.exists(path))  # Path.exists may raise
    if not above.is_dir():
        raise ValueError(f"{flag} {folder}: {above} is a file: name another directory")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{flag} {folder}: {above} cannot be written: name another directory")


def damaged(path: Path, why: object, remedy: str) -> ValueError:
    """Give the error about a damaged file."""
    return ValueError(f"{path} is damaged ({why}): {remedy}")


def without_depth(run: str) -> str:
    """Give the hint to name RUN where `run` is RUN@DEPTH and RUN exists; else nothing."""
    whole, at, _ = run.rpartition("@")
    return (
        f": only a teacher is named RUN@DEPTH; here, name {whole}"
        if at and Path(whole).exists()
        else ""
    )


def result_of(run: Path, name: str = "net.safetensors") -> Path:
    """Give a file of a finished run; ValueError or FileNotFoundError if `run` is none."""
    file = run / name
    if file.is_file():
        return file
    if file.exists():
        raise ValueError(f"{file} is no regular file: put the run's own file there")
    if not run.exists():
        raise FileNotFoundError(f"no file or run directory {run}{without_depth(str(run))}")
    if not (run / "config.json").exists():
        raise ValueError(f"{run} is no run directory: name the --out folder of a `stepwell train`")
    raise ValueError(
        f"{run} holds no {name}, so it is no finished run: start its `stepwell train` command again to "
        "finish it"
    )


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read the JSON object in `path`; ValueError if it is damaged, with the fix `remedy`."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise damaged(path, "it is no regular file", remedy)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, error, remedy) from error
    except RecursionError as error:
        raise damaged(path, "it is nested too deeply", remedy) from error
    if not isinstance(value, dict):
        raise damaged(path, "it holds no JSON object", remedy)
    return value


def config_of(net: Path, remedy: str = "put it right") -> Mapping[str, Any]:
    """The configuration of the run that the file `net` belongs to; empty if it belongs to none.

    Other programs' config.json files, which lack a run's keys, are ignored. `remedy` and errors as for
    `read_json`.
    """
    path = net.parent / "config.json"
    if net.name != "net.safetensors" or not path.exists():
        return {}
    config = read_json(path, remedy)
    return config if {"recipe", "arguments", "data"} <= config.keys() else {}


def write_whole(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data` atomically: readers and crashes see the old or the new file.

    The bytes go to a temporary file in the same folder, are flushed to disk, and replace `path` by a
    rename. A symbolic link stays, and its target is replaced. A device or a pipe, such as /dev/null, is
    written to. OSError if the folder does not exist, cannot be written, or the disk is full; `path` is
    unchanged.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        try:
            path.write_bytes(data)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"cannot write {path}: there is no folder {path.parent}; create it first"
        )
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp lets only the owner read the file; a result has the usual permissions.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f"cannot write {path}: {error.strerror}; the file is unchanged"
            ) from error
        raise
    sync_folder(path.parent)


def remove_partial(run: Path) -> None:
    """Remove what killed processes left of `write_whole` in a run directory, whose lock is held."""
    for leftover in (*run.glob(".*.part"), *(run / "phases").rglob(".*.part")):
        leftover.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that renames in it survive a crash (Windows needs no such call)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def locked(file: Path, target: Path, instead: str = "use another --out") -> FileLock:
    """Take the lock `file` on `target`, until it is released or the process ends.

    OSError if another process holds it; the message suggests `instead` as the alternative to waiting.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"another process is writing to {target}: wait for it, or {instead}") from None
    return lock


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """Hold the lock of a result: its run directory's, else its own; OSError if another process does."""
    folder = file.parent
    if (folder / "config.json").exists():
        lock = locked(folder / "lock", folder)
    else:
        lock = locked(folder / f".{file.name}.lock", file)
    try:
        yield
    finally:
        lock.release()
