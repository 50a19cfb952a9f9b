"""The run directory: who may write where."""

import contextlib
import json

import pytest

from stepwell.training import Run


@pytest.fixture
def start(tmp_path):
    return lambda: Run.start(tmp_path / "run", "recipe", {}, data={"fingerprint": "a"})


def test_a_resumed_run_clears_its_own_leftovers_and_leaves_an_export_alone(start, tmp_path):
    with start() as run:
        run.phase("train")
    own = [run.path / ".net.safetensors.1.part", run.path / "phases/train/.last.ckpt.2.part"]
    others = run.path / "export" / ".export-3" / ".net.safetensors.4.part"
    others.parent.mkdir(parents=True)
    for file in (*own, others):
        file.touch()
    with start():
        assert [file.exists() for file in (*own, others)] == [False, False, True]


def refused(start, *, phase="train", **arguments):
    with contextlib.suppress(ZeroDivisionError), start(**arguments) as run:
        if phase:
            run.phase(phase)
        _ = 1 / 0


def test_a_run_that_is_refused_leaves_nothing(tmp_path):
    def start(**arguments):
        return Run.start(out, "recipe", arguments, data={"fingerprint": "a"})

    out = tmp_path / "run"
    for phase in ("train", ""):
        refused(start, phase=phase, lr=0)
        assert not out.exists()
    out.mkdir()
    refused(start, lr=0)
    assert {p.name for p in out.iterdir()} <= {"lock"}  # a folder that was there stays
    with start(lr=1) as run:
        (run.phase("train") / "last.ckpt").touch()
    with pytest.raises(ValueError, match="holds a run with --lr 1, not 2"):
        start(lr=2)
    refused(start, lr=1)
    assert (out / "config.json").exists()
    assert (out / "phases" / "train" / "last.ckpt").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_may_be_another(tmp_path):
    for lr in (1, 2):
        Run.start(tmp_path, "recipe", {"lr": lr}, data={"fingerprint": "a"})._lock.release()
        assert json.loads((tmp_path / "config.json").read_text())["arguments"] == {"lr": lr}
