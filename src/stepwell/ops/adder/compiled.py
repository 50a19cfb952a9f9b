"""C compiled at first use, and kept in the user's cache folder under a hash of all it depends on."""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
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
COMPILE_TIMEOUT = 120
#: What to do without a compiler, and where no folder takes the library.
INSTALL = "install a C compiler, or name it by CC"
PLACE = "set XDG_CACHE_HOME to a folder that can be written and holds programs"
RETRY = f"{PLACE}, or name another compiler by CC"


class CompileError(Exception):
    """No compiler, or one that fails."""


class UnloadableError(OSError):
    """A compiled library that cannot be opened."""


@functools.cache
def library(extra_flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The kernels, compiled with `extra_flags`; warns once and returns None if that fails."""
    try:
        try:
            return _load(_file(extra_flags))
        except UnloadableError:  # its file is removed
            return _load(_file(extra_flags))
    except (CompileError, OSError) as error:
        advice = INSTALL if isinstance(error, CompileError) else RETRY
        warnings.warn(
            f"adder layers run some 20 times slower, in plain torch, because their kernel is not "
            f"compiled ({' '.join(str(error).split())[:300]}): {advice}",
            stacklevel=2,
        )
        return None


def _load(file: Path) -> ctypes.CDLL:
    """Open a library, or a copy of it where its folder holds no programs.

    UnloadableError if neither can be opened: the file is no library of ours, and is removed.
    """
    try:
        return _open(file)
    except OSError as error:
        copy = _copied(file.name, file.read_bytes())
        try:
            opened = _open(copy)
        except OSError:
            with contextlib.suppress(OSError):
                file.unlink()
            raise UnloadableError(f"{file} cannot be loaded ({error})") from error
        _note_copy(f"cannot be loaded ({error})")
        return opened


def _open(file: Path) -> ctypes.CDLL:
    opened = ctypes.CDLL(str(file))
    if not hasattr(opened, "adder_lanes"):
        raise OSError("it is another library")
    return opened


def cache_folder() -> Path | None:
    """The folder of compiled kernels; None where the user has no home folder.

    As XDG's rules ask, a relative XDG_CACHE_HOME does not count.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "stepwell" / "kernels"


def _file(extra_flags: Sequence[str]) -> Path:
    """An undamaged library of this source for this processor, compiled if there is none.

    The name holds a hash of what it was made from and of its own bytes. So a damaged file is not
    loaded, and processes that compile at once do not disturb each other. Another compiler, or another
    version of it, makes a file of its own; without a compiler, the file of any compiler is taken.
    """
    made_from = "\n".join([SOURCE.read_text(), *FLAGS, *extra_flags, processor()])
    key, version = hash_of(made_from), compiler_version()
    any_compiler, key = key, f"{key}-{hash_of(version)}"
    folder = cache_folder()
    if folder and os.path.isdir(folder):  # False, too, for a name that the system cannot have
        for file in sorted(folder.glob(f"adder-{key if version else any_compiler}-*.so")):
            if _undamaged(file):
                return file
    binary = compile_source(extra_flags)
    name = _name(f"adder-{key}", binary)
    if folder is None:
        _note_copy("is not kept (there is no home folder)")
        return _copied(name, binary)
    file = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kept in folder.glob(f"adder-{key}-*.so"):
            with contextlib.suppress(OSError):  # another process has removed it, or it is a folder
                if not _undamaged(kept):
                    kept.unlink()
        write_whole(file, binary)
    except OSError as error:
        _note_copy(f"is not kept ({error})")
        return _copied(file.name, binary)
    return file


def _undamaged(file: Path) -> bool:
    """Check that a kept library can be read, and that its name was made from its bytes."""
    try:
        return file.is_file() and file.name == _name(file.name.rpartition("-")[0], file.read_bytes())
    except OSError:
        return False


def _note_copy(problem: str) -> None:
    warnings.warn(
        f"the compiled adder kernel {problem}, so each process makes a copy of its own: {PLACE}",
        stacklevel=5,
    )


def _copied(name: str, binary: bytes) -> Path:
    """A library in a folder of this process."""
    # a new folder each time: a library that is open must not be written over
    file = Path(tempfile.mkdtemp(dir=_own_folder().name)) / name
    file.write_bytes(binary)
    return file


def hash_of(text: str | bytes) -> str:
    """Sixteen digits of a hash."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:16]


def _name(stem: str, binary: bytes) -> str:
    return f"{stem}-{hash_of(binary)}.so"


@functools.cache
def _own_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder of this process, removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="stepwell-")
    atexit.register(folder.cleanup)
    return folder


def compile_source(extra_flags: Sequence[str] = ()) -> bytes:
    """The bytes of the library; CompileError says why there is none."""
    compiler = compiler_command()
    if not compiler:
        raise CompileError("there is no C compiler")
    with tempfile.TemporaryDirectory(prefix="stepwell-") as folder:
        out = Path(folder) / "adder.so"
        command = [*_words(compiler), *FLAGS, *extra_flags, str(SOURCE), "-o", str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=COMPILE_TIMEOUT,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise CompileError(f"{compiler} takes longer than {COMPILE_TIMEOUT} s") from error
        except OSError as error:
            raise CompileError(f"{compiler}: {error}") from error
        if done.returncode or not out.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
            message = next((line for line in lines if "error" in line), lines[0])
            raise CompileError(f"{compiler} fails: {message}")
        return out.read_bytes()


def compiler_command() -> str:
    """The C compiler: of CC, else the first of the usual ones; empty without any."""
    usual = filter(shutil.which, ("cc", "gcc", "clang"))
    return os.environ.get("CC", "").strip() or next(usual, "")


def _words(compiler: str) -> list[str]:
    """A command with its flags; a path may hold blanks."""
    if shutil.which(compiler):
        return [compiler]
    with contextlib.suppress(ValueError):  # a quote that does not end
        return shlex.split(compiler)
    return compiler.split()


def compiler_version() -> str:
    """The compiler and its version in words; empty without one."""
    compiler = compiler_command()
    if not compiler:
        return ""
    try:
        done = subprocess.run(
            [*_words(compiler), "--version"], capture_output=True, text=True, errors="replace",
            timeout=COMPILE_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"{compiler}\n{done.stdout}"


def processor() -> str:
    """The kind of this processor in words, for a home that several machines share."""
    words = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        words += [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    except OSError:
        pass
    return "\n".join(words)
