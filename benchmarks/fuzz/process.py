"""Runs one command line in a fork of this process, which has imported everything already."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

#: A try may take this much more memory than this process has.
MEMORY = 3 << 30
#: Peak memory of a try above this process's, from which it counts as unbounded.
LARGE = 1 << 30


class Outcome(NamedTuple):
    """The outcome of a command.

    code: its exit code; minus the signal's number if a signal ended it; None after the time limit.
    memory: peak bytes above those of the process that forked it.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    memory: int

    @property
    def fault(self) -> str | None:
        """The fault in one word (traceback, hang, memory, ...); None without a fault."""
        if "Traceback (most recent call last)" in self.err:
            return "traceback"
        if self.code is None:
            return "hang"
        if self.memory > LARGE:
            return "memory"
        if self.code not in (0, 2, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            return f"exit code {self.code}"
        if self.code == 2 and not self.err.strip():
            return "silent refusal"
        return None


def warm() -> None:
    """Import what commands import, without running a step of training in this process."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import pytorch_lightning  # noqa: F401
    import timm  # noqa: F401

    from stepwell.cli import COMMANDS
    from stepwell.recipes import RECIPES

    for module, _ in (*COMMANDS.values(), *RECIPES.values()):
        __import__(module.partition(":")[0])


def stepwell(
    *arguments: str | Path,
    folder: Path,
    seconds: float = 60,
    kill_when: Callable[[float], bool] | None = None,
) -> Outcome:
    """Run `stepwell ARGUMENTS`.

    Args:
        folder: keeps what the command printed.
        seconds: the time limit.
        kill_when: takes the seconds so far; SIGKILL is sent when it says so.
    """

    def main() -> None:
        inside = folder / "here" / "below"  # what a command writes to a relative path stays inside
        inside.mkdir(parents=True, exist_ok=True)
        os.chdir(inside)
        sys.argv = ["stepwell", *map(str, arguments)]
        from stepwell.cli import main

        main()

    return fork(main, folder=folder, seconds=seconds, kill_when=kill_when)


def fork(
    work: Callable[[], None],
    *,
    folder: Path,
    seconds: float = 60,
    kill_when: Callable[[float], bool] | None = None,
) -> Outcome:
    """Run `work` in a fork of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    begin, before = time.monotonic(), _resident()
    child = os.fork()
    if child == 0:
        os._exit(_in_child(work, folder))
    status, usage, late = _wait(child, seconds, kill_when)
    code = None if late else os.waitstatus_to_exitcode(status)
    out, err = (
        (folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")
    )
    return Outcome(code, out, err, time.monotonic() - begin, max(0, usage.ru_maxrss * 1024 - before))


def _in_child(work: Callable[[], None], folder: Path) -> int:
    """The exit code of the work, as Python itself would give it."""
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_AS, (_virtual() + MEMORY,) * 2)
    code = 0
    try:
        work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    return code


def _wait(
    child: int, seconds: float, kill_when: Callable[[float], bool] | None
) -> tuple[int, resource.struct_rusage, bool]:
    """Wait for a process: its status, what it used, and whether the time limit ended it."""
    begin, killed, late = time.monotonic(), False, False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage, late
        passed = time.monotonic() - begin
        late = late or (passed > seconds and not killed)
        if not killed and (late or (kill_when is not None and kill_when(passed))):
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.002)


def _resident() -> int:
    return _status("VmRSS")


def _virtual() -> int:
    return _status("VmSize")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")
