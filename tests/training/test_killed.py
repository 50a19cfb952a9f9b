"""Real processes, really killed; what nobody disturbs runs in this process."""

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from forking import Forked
from stepwell import cli
from stepwell.methods import bert_internal
from stepwell.nets.files.nested import fingerprint
from stepwell.recipes import train
from stepwell.tasks import text_teaching
from stepwell.teachers.encoder_outputs import EncoderOutputs
from stepwell.training import Loop
from stepwell.training.job import Job
from tiny_text import write_encoder, write_parts

pytestmark = pytest.mark.usefixtures("quick")
ENV = os.environ | {"OMP_NUM_THREADS": "1", "STEPWELL_QUIET": "1"}


def command(out: Path, schedule: str = "one-run") -> list[str]:
    return [
        "-m", "stepwell", "train", "ekd", "--data", "digits", "--part", "1/2", "--out", str(out),
        "--net", "resnet14", "--depths", "8", "--epochs", "4", "--batch-size", "100",
        "--schedule", schedule, "--average", "0.9", "--checkpoint-minutes", "0", "--device", "cpu",
        "--json",
    ]  # fmt: skip


def started(out: Path, schedule: str = "one-run", **limits: int) -> Forked:
    return Forked(*command(out, schedule), env=ENV, **limits)


def started_from_nothing(out: Path) -> subprocess.Popen:
    """Start the command as a user does, imports included."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *command(out)], env=ENV, text=True, **pipes)


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def end_of(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def finish(out: Path, schedule: str = "one-run") -> None:
    """Run the same command to its end, or from where it was killed."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        cli.main(command(out, schedule)[2:])
    assert set(json.loads(text.getvalue())["costs"]) == {"8", "14"}


@pytest.fixture(scope="module")
def whole(quick, tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(out)
    return out


def same_result(a: Path, b: Path) -> None:
    # all but the times, which a clock measured
    assert fingerprint(a / "net.safetensors") == fingerprint(b / "net.safetensors")
    mine, theirs = load_file(a / "net.safetensors"), load_file(b / "net.safetensors")
    for name, value in mine.items():
        assert_close(value, theirs[name], rtol=0, atol=0)
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if "seconds" not in k}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (a, b)
    ]
    assert lines[0] == lines[1]
    results = [json.loads((run / "results.json").read_text())["test"] for run in (a, b)]
    assert results[0] == results[1]


def test_a_run_killed_again_and_again_ends_bit_identical(whole, tmp_path):
    out = tmp_path / "run"
    checkpoint = out / "phases" / "nest" / "last.ckpt"
    rng = random.Random(0)
    for _ in range(3):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = started(out)
        wait_for(lambda b=before: checkpoint.exists() and checkpoint.stat().st_mtime_ns > b, process)
        time.sleep(rng.random() / 4)
        process.kill()
        assert end_of(process)[0] == -signal.SIGKILL
        assert not (out / "results.json").exists(), "killed too late to show anything"
    finish(out)
    same_result(out, whole)


@pytest.mark.long
def test_a_run_of_two_phases_killed_in_each_ends_bit_identical(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    finish(whole, "two-phase")
    for phase in ("full", "nest"):
        process = started(out, "two-phase")
        wait_for((out / "phases" / phase / "last.ckpt").exists, process)
        process.kill()
        assert end_of(process)[0] == -signal.SIGKILL
    assert (out / "phases" / "full" / "done").exists()
    finish(out, "two-phase")
    same_result(out, whole)


@pytest.mark.parametrize(
    ("name", "start"),
    [pytest.param("SIGTERM", started_from_nothing, marks=pytest.mark.long), ("SIGINT", started)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_leaves_a_whole_checkpoint_and_the_same_command_goes_on(whole, tmp_path, name, start):
    out = tmp_path / "run"
    process = start(out)
    wait_for((out / "phases" / "nest" / "last.ckpt").exists, process)
    process.send_signal(getattr(signal, name))
    code, _, err = end_of(process)
    assert code == 128 + getattr(signal, name), err
    assert err.count("\n") == 1
    assert err.startswith("stopped (phase nest, epoch ")
    assert "the same command goes on from there" in err
    assert not list(out.rglob("*.part"))
    finish(out)
    same_result(out, whole)


def test_a_second_writer_is_turned_away(tmp_path):
    out = tmp_path / "run"
    process = started(out)
    wait_for((out / "config.json").exists, process)
    process.send_signal(signal.SIGSTOP)  # or it may be done before the other one has begun
    code, _, err = end_of(started(out))
    assert (code, err.count("\n")) == (2, 1), err
    assert "another process is writing to" in err
    process.kill()
    end_of(process)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(whole, tmp_path):
    """A limit on the size of a file stands in for the end of the disk: the write fails half-way."""
    out = tmp_path / "run"
    process = started(out)
    checkpoint = out / "phases" / "nest" / "last.ckpt"
    wait_for(checkpoint.exists, process)
    process.kill()
    end_of(process)
    before = checkpoint.read_bytes()
    code, _, err = end_of(started(out, file_bytes=1_000_000))
    assert code == 2, err
    assert err.count("\n") == 1, err
    assert "last.ckpt: File too large; the file is unchanged" in err
    assert not list(out.rglob("*.part"))
    assert checkpoint.read_bytes() == before
    finish(out)
    same_result(out, whole)


class Kill:
    """Stands for a function, and kills its process at the `at`-th call, before or after it."""

    def __init__(self, real, at=1, *, after=False):
        self.real, self.left, self.after = real, at, after

    def __get__(self, owner, _=None):
        return lambda *args, **kw: self(owner, *args, **kw)

    def __call__(self, *args, **keywords):
        self.left -= 1
        found = self.real(*args, **keywords) if self.after or self.left else None
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def slowly(real, *args):
    """The first of the teacher's outputs, and then a kill."""
    yield next(real(*args))
    os.kill(os.getpid(), signal.SIGKILL)


#: Places where a training on texts is killed: the owner of a function, its name, what replaces it.
PLACES = {
    "bert": [
        (Job, "end_step", lambda real: Kill(real, 2, after=True)),  # of the teacher
        (EncoderOutputs, "_computed", lambda real: lambda *args: slowly(real, *args)),
        (Job, "end_step", lambda real: Kill(real, 1, after=True)),  # of the first stage, its last
        (Job, "end_step", lambda real: Kill(real, 2, after=True)),  # of the task stage
        (text_teaching, "mismatch", Kill),  # the student has learned
        (text_teaching, "drop_outputs", Kill),  # the results are written
    ],
    "ekd": [
        (Job, "end_step", lambda real: Kill(real, 3, after=True)),
        (Job, "end_step", lambda real: Kill(real, 9)),
    ],
}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = write_parts(tmp_path_factory.mktemp("words"), 70, 20)
    return {"data": str(folder), "net": write_encoder(folder / "encoder", layers=3)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("recipe", PLACES)
def test_a_run_on_texts_killed_at_each_place_ends_bit_identical(recipe, words, tmp_path, monkeypatch):
    monkeypatch.setattr(bert_internal, "FEWEST", 1)  # steps of a stage that a threshold ends
    call = {
        "data": words["data"], "epochs": 2, "batch_size": 16, "lr": 5e-3, "max_tokens": 24,
        "loop": Loop(device="cpu", checkpoint_minutes=0),
    }  # fmt: skip
    if recipe == "bert":
        call |= {"teacher": str(words["net"]), "student_layers": 2}
        call |= {"schedule": "stacked", "threshold": 0.5}
    else:
        call |= {"net": str(words["net"]), "depths": ("1",)}
    train(recipe, out=tmp_path / "whole", **call)
    assert not [*(tmp_path / "whole").rglob("*teacher.bin*")]
    if recipe == "bert":
        lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
        steps = {one["phase"]: one["step"] for one in map(json.loads, lines)}
        assert steps == {"teacher": 8, "stage-1": 1, "stage-2": 1, "student": 6}
    for owner, name, replace in PLACES[recipe]:
        assert killed(recipe, owner, name, replace, out=tmp_path / "run", **call), name
    train(recipe, out=tmp_path / "run", **call)
    same_result(tmp_path / "run", tmp_path / "whole")
    assert not [*(tmp_path / "run").rglob("*teacher.bin*")]
    if recipe == "bert":
        ends = [tmp_path / name for name in ("whole", "run")]
        found = [json.loads((end / "results.json").read_text())["bert"] for end in ends]
        costs = [one.pop("teacher") for one in found]
        assert costs[0]["macs"] == costs[1]["macs"]  # its times are a clock's
        assert found[0] == found[1]
        maps = [(end / "attention.npz").read_bytes() for end in ends]
        assert maps[0] == maps[1]


def killed(recipe, owner, name, replace, **call) -> bool:
    """Train in a process of its own that is killed at a place; whether it was."""
    with warnings.catch_warnings():  # newer Pythons warn that threads do not survive a fork
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            setattr(owner, name, replace(getattr(owner, name)))
            train(recipe, **call)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
