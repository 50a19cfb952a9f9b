"""The help of a recipe that is kept on disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepwell.commands import kept_help
from stepwell.commands.kept_help import show_kept


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWELL_DATA", str(tmp_path))
    return tmp_path / "help"


@pytest.fixture
def make():
    calls = []

    def printed():
        calls.append(1)
        print(f"╭ help, {os.environ.get('COLUMNS')} wide, made {len(calls)} times")
        raise SystemExit(0)

    return printed


def test_a_help_is_made_once_for_a_library_and_a_terminal(make, cache, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for _ in range(2):
        show_kept("train-x", make)
        assert capsys.readouterr().out == "╭ help, 80 wide, made 1 times\n"
    monkeypatch.setenv("COLUMNS", "100")
    show_kept("train-x", make)
    assert capsys.readouterr().out == "╭ help, 100 wide, made 2 times\n"
    assert len([*cache.glob("*/*")]) == 2
    package = cache.parent / "stepwell"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(kept_help.stepwell, "__file__", str(package / "__init__.py"))
    show_kept("train-x", make)
    assert capsys.readouterr().out == "╭ help, 100 wide, made 3 times\n"
    assert len([*cache.glob("*/*")]) == 1  # that of the other library is gone
    (package / "a.py").write_text("")
    show_kept("train-x", make)
    assert "made 4 times" in capsys.readouterr().out


@pytest.mark.parametrize("no_home", [True, False])
def test_where_nothing_can_be_kept_it_is_printed_all_the_same(no_home, make, capsys, monkeypatch):
    def fails():
        raise RuntimeError("Could not determine home directory.")

    if no_home:
        monkeypatch.delenv("STEPWELL_DATA")
        monkeypatch.setattr(Path, "home", fails)
        with pytest.raises(SystemExit):
            show_kept("train-x", make)
    else:
        monkeypatch.setenv("STEPWELL_DATA", "/proc/none")
        show_kept("train-x", make)
    assert capsys.readouterr().out.startswith("╭ help")


def test_the_command_prints_the_kept_help_without_importing_torch(capsys):
    show_kept("train-supervised", lambda: print("kept here"))
    assert capsys.readouterr().out == "kept here\n"
    command = [sys.executable, "-X", "importtime", "-m", "stepwell", "train", "supervised", "--help"]
    encoding = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=encoding)
    assert done.stdout == "kept here\n"
    assert "stepwell.recipes" in done.stderr
    assert "torch" not in done.stderr
