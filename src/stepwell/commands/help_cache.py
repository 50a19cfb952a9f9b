"""The help of a recipe, cached on disk: to make it, the recipe is imported, and with it torch."""

import contextlib
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import stepwell
from stepwell.files import cache_folder, write_whole

#: What a terminal's colours and marks depend on, besides its width and encoding.
SETTINGS = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "LANG", "LC_ALL")


class _Captured(io.TextIOWrapper):
    """Text that is written as to the standard output, and kept."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()
        super().__init__(
            self.bytes, sys.stdout.encoding, sys.stdout.errors, newline="", write_through=True
        )
        self._terminal = sys.stdout.isatty()

    def isatty(self) -> bool:
        """As the standard output is."""
        return self._terminal

    def text(self) -> str:
        """All that was written."""
        return self.bytes.getvalue().decode(self.encoding)


def show_cached(name: str, make: Callable[[], object]) -> None:
    """Print what `make` prints, from the cache if neither the library nor the terminal has changed.

    Where nothing can be cached, `make` prints. It may end with SystemExit, whose code 0 means success.
    """
    try:
        file = _place(name)
    except (OSError, ValueError, AttributeError):  # no folder for it, or an output without encoding
        make()
        return
    text, code = _read(file), None
    if text is None:
        text, code = _printed_by(make)
        if not code:
            _keep(file, text)
    sys.stdout.write(text)
    if code:
        raise SystemExit(code)


def _printed_by(make: Callable[[], object]) -> tuple[str, object]:
    """Call a function, and give what it printed and the exit code that it asked for."""
    captured, code = _Captured(), None
    with contextlib.redirect_stdout(captured):
        try:
            make()
        except SystemExit as stop:
            code = stop.code
    return captured.text(), code


def _place(name: str) -> Path:
    """The file of a help; its name says for which library and terminal it is."""
    return cache_folder("help") / f"{name}-{_library()}-{_terminal()}.txt"


def _read(file: Path) -> str | None:
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None


def _keep(file: Path, text: str) -> None:
    """Write a help, and remove those of the same recipe, for other versions of the library."""
    name, _, terminal = file.stem.rsplit("-", 2)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in file.parent.glob(f"{name}-{'[0-9a-f]' * 16}-{terminal}.txt"):
            old.unlink(missing_ok=True)
        write_whole(file, text.encode())


def _library() -> str:
    """A hash of the library's files (place, size, time), of tyro's version and of the Python."""
    root = Path(stepwell.__file__).parent
    digest = hashlib.sha256(f"{root} {version('tyro')} {sys.version}".encode())
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                with contextlib.suppress(OSError):  # an editor's own file that is gone again
                    status = os.stat(os.path.join(folder, name))
                    digest.update(f"{folder}/{name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _terminal() -> str:
    """A hash of what decides how a help looks."""
    output = f"{shutil.get_terminal_size().columns} {sys.stdout.isatty()} {sys.stdout.encoding.lower()}"
    settings = [output, *(os.environ.get(name, "") for name in SETTINGS)]
    return hashlib.sha256("\n".join(settings).encode()).hexdigest()[:8]
