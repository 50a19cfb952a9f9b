"""The help of a recipe, kept on disk: to make it, the recipe is imported, and with it torch."""

import contextlib
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import stepwell
from stepwell.files import cache_folder, write_whole

#: What the look of a help depends on, besides its width.
LOOKS = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "LANG", "LC_ALL")


def show_kept(name: str, make: Callable[[], object]) -> None:
    """Print what `make` printed the last time, if neither the library nor the terminal has changed.

    Where nothing can be kept, `make` prints.
    """
    try:
        file = cache_folder("help") / _state() / f"{name}-{_look()}.txt"
    except RuntimeError:  # a user without a home
        make()
        return
    with contextlib.suppress(OSError, UnicodeDecodeError):
        sys.stdout.write(file.read_text(encoding="utf-8"))
        return
    buffer = io.BytesIO()
    with (
        _as_here(),
        io.TextIOWrapper(buffer, encoding=sys.stdout.encoding, write_through=True) as stream,
        contextlib.redirect_stdout(stream),
    ):
        with contextlib.suppress(SystemExit):
            make()
        text = buffer.getvalue().decode(sys.stdout.encoding)
    sys.stdout.write(text)
    with contextlib.suppress(OSError):
        for old in file.parents[1].glob("*"):
            if old != file.parent:
                shutil.rmtree(old, ignore_errors=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text.encode())


def _state() -> str:
    """A hash of the place, size and time of every file of the library, and of the Python."""
    root = Path(stepwell.__file__).parent
    digest = hashlib.sha256(f"{stepwell.__version__} {root} {sys.version}".encode())
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                status = os.stat(os.path.join(folder, name))
                digest.update(f"{folder}/{name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _look() -> str:
    """A hash of what the terminal shows."""
    columns = shutil.get_terminal_size().columns
    looks = [
        f"{columns} {sys.stdout.isatty()} {sys.stdout.encoding.lower()}",
        *(os.environ.get(name, "") for name in LOOKS),
    ]
    return hashlib.sha256("\n".join(looks).encode()).hexdigest()[:8]


@contextlib.contextmanager
def _as_here() -> Iterator[None]:
    """What is printed to a buffer looks as on the terminal."""
    here = {"COLUMNS": str(shutil.get_terminal_size().columns)}
    if sys.stdout.isatty():
        here["FORCE_COLOR"] = os.environ.get("FORCE_COLOR", "1")
    before = {name: os.environ.get(name) for name in here}
    os.environ.update(here)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
