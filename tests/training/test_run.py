"""The run directory: who may write where."""

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
