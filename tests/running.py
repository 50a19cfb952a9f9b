"""Runs of commands and of trainings that tests share."""

import io
import json
import sys
from contextlib import contextmanager, redirect_stdout

import pytest

from stepwell.cli import main


@contextmanager
def stopped(owner, call, name="training_step"):
    """The given call of a method (from 1) raises, which must end the training inside."""
    whole, left = getattr(owner, name), [call]

    def stopping(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("stopped")
        return whole(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            yield


def told(*arguments):
    """Run a command; its exit code and what it printed, errors too."""
    printed, code = io.StringIO(), 0
    with redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", printed)
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
    return code, " ".join(printed.getvalue().split())


def same_measured(capsys, out, results, system, key):
    """Check that `eval` of a run measures what its training did; its numbers of a system, too."""
    main(["eval", str(out), "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["test"] == results["test"]
    assert again[system][key] == results[system][key]
