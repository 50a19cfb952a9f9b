"""C compiled at first use, and kept in the user's cache folder under a hash of all it depends on."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from stepwell.files import write_whole

SOURCE = Path(__file__).parent / "kernel.c"
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-pthread")
#: Seconds that a compiler may take.
PATIENCE = 120


class CompileError(Exception):
    """No compiler, or one that fails."""


@functools.cache
def library(more: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The kernels, compiled with `more` flags; None with one warning where that is impossible."""
    try:
        return _open(_file(more))
    except (CompileError, OSError) as error:
        warnings.warn(
            f"adder layers run up to ten times slower, by torch.cdist, because their kernel is not "
            f"compiled ({' '.join(str(error).split())[:300]}): install a C compiler, or name it by CC",
            stacklevel=2,
        )
        return None


def _open(file: Path) -> ctypes.CDLL:
    opened = ctypes.CDLL(str(file))
    opened.adder_lanes()  # another library has no such function
    return opened


def cache_folder() -> Path:
    """The folder of compiled kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stepwell" / "kernels"


def _file(more: Sequence[str]) -> Path:
    """A sound library of this source for this processor.

    The name holds a hash of what it was made from and of its own bytes. So a damaged file is not
    loaded, and processes that compile at once do not disturb each other.
    """
    made_from = "\n".join([SOURCE.read_text(), *FLAGS, *more, os.environ.get("CC", ""), processor()])
    key = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    folder = cache_folder()
    if folder.is_dir():
        for file in sorted(folder.glob(f"adder-{key}-*.so")):
            if file.is_file() and file.name == _name(key, file.read_bytes()):
                return file
    binary = compile_source(more)
    file = folder / _name(key, binary)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for damaged in folder.glob(f"adder-{key}-*.so"):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                if damaged.name != _name(key, damaged.read_bytes()):
                    damaged.unlink()
        write_whole(file, binary)
    except OSError as error:
        warnings.warn(
            f"the compiled adder kernel is not kept ({error}), so each process compiles it again: set "
            "XDG_CACHE_HOME to a folder that can be written",
            stacklevel=3,
        )
        file = Path(_own_folder().name) / file.name
        file.write_bytes(binary)
    return file


def _name(key: str, binary: bytes) -> str:
    return f"adder-{key}-{hashlib.sha256(binary).hexdigest()[:16]}.so"


@functools.cache
def _own_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder of this process, removed at its end."""
    return tempfile.TemporaryDirectory(prefix="stepwell-")


def compile_source(more: Sequence[str] = ()) -> bytes:
    """The bytes of the library; CompileError says why there is none."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise CompileError("there is no C compiler")
    with tempfile.TemporaryDirectory(prefix="stepwell-") as folder:
        out = Path(folder) / "adder.so"
        command = [*compiler.split(), *FLAGS, *more, str(SOURCE), "-o", str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompileError(f"{compiler}: {error}") from error
        if done.returncode or not out.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
            wrong = next((line for line in said if "error" in line), said[0])
            raise CompileError(f"{compiler} fails: {wrong}")
        return out.read_bytes()


def processor() -> str:
    """The kind of this processor in words, for a home that several machines share."""
    words = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        words += [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    except OSError:
        pass
    return "\n".join(words)
