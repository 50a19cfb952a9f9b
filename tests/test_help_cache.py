"""The help of a recipe, cached on disk."""

import io
import os
import pty
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from stepwell.commands import help_cache
from stepwell.commands.help_cache import show_cached

CLI = [sys.executable, "-X", "importtime", "-m", "stepwell", "train", "supervised", "--help"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWELL_DATA", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "help"


class Make:
    """Prints its help, and how often it was asked for it."""

    def __init__(self, code=0):
        self.calls, self.code = 0, code

    def __call__(self):
        self.calls += 1
        print(f"╭ help, made {self.calls} times, {sys.stdout.isatty()}")
        raise SystemExit(self.code)


def test_a_help_is_made_once_for_a_library_and_a_terminal(cache, capsys, monkeypatch):
    make, shown = Make(), lambda: capsys.readouterr().out
    for _ in range(2):
        show_cached("train-x", make)
        assert shown() == "╭ help, made 1 times, False\n"
    monkeypatch.setenv("COLUMNS", "100")
    show_cached("train-x", make)
    assert "made 2 times" in shown()
    assert len([*cache.iterdir()]) == 2
    package = cache.parent / "stepwell"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / ".#gone.py").symlink_to("nothing")  # an editor's mark
    monkeypatch.setattr(help_cache.stepwell, "__file__", str(package / "__init__.py"))
    own = cache / "train-x-mine.txt"
    own.write_text("mine")
    show_cached("train-x", make)
    assert "made 3 times" in shown()
    assert len([*cache.iterdir()]) == 3  # that of the other library and this terminal is gone
    assert own.read_text() == "mine"
    (package / "a.py").write_text("")
    show_cached("train-x", make)
    assert "made 4 times" in shown()


def test_a_failure_is_passed_on_and_not_cached(cache, capsys):
    make = Make(2)
    for calls in (1, 2):
        with pytest.raises(SystemExit) as stop:
            show_cached("train-x", make)
        assert stop.value.code == 2
        assert f"made {calls} times" in capsys.readouterr().out
    assert not cache.exists()


def test_where_nothing_can_be_cached_it_is_printed_all_the_same(capsys, monkeypatch):
    monkeypatch.setenv("STEPWELL_DATA", "/proc/none")
    show_cached("train-x", Make())
    assert capsys.readouterr().out.startswith("╭ help")
    with redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
        show_cached("train-x", Make())  # an output without an encoding
    assert text.getvalue().startswith("╭ help")

    def fails():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("STEPWELL_DATA")
    monkeypatch.setattr(Path, "home", fails)
    with pytest.raises(SystemExit):
        show_cached("train-x", Make())
    assert capsys.readouterr().out.startswith("╭ help")


def test_a_closed_pipe_does_not_make_it_again(monkeypatch):
    class Closed(io.TextIOWrapper):
        def write(self, text):
            raise BrokenPipeError

    make = Make()
    show_cached("train-x", make)
    for _ in range(2):
        with redirect_stdout(Closed(io.BytesIO(), "utf-8")), pytest.raises(BrokenPipeError):
            show_cached("train-x", make)
    assert make.calls <= 2  # once for each encoding's look


def test_a_terminal_gets_the_same_from_the_cache(cache):
    code = (
        "import sys; from stepwell.commands.help_cache import show_cached; "
        "show_cached('x', lambda: print('on a terminal:', sys.stdout.isatty()))"
    )
    seen = []
    for _ in range(2):
        ours, theirs = pty.openpty()
        subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True)
        os.close(theirs)
        seen.append(os.read(ours, 1000))
        os.close(ours)
    assert seen == [b"on a terminal: True\r\n"] * 2
    assert len([*cache.iterdir()]) == 1


def test_the_command_prints_the_cached_help_without_importing_torch(capsys):
    show_cached("train-supervised", lambda: print("cached here"))
    assert capsys.readouterr().out == "cached here\n"
    encoding = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(CLI, capture_output=True, text=True, check=True, env=encoding)
    assert done.stdout == "cached here\n"
    assert "stepwell.recipes" in done.stderr
    assert "torch" not in done.stderr
