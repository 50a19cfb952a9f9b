"""Python processes that start at once: forks of a server that has the imports of a training.

A fork is a process of its own as the command line starts one: it has its own output, environment,
folder and limits, signals end it, and none of its calls are checked for types. It differs from
`python ...` in one way: it need not import torch and Lightning, which takes most of a short run. Tests
of the start itself use `subprocess`.
"""

import contextlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

#: What the server imports. No import may start a thread or draw random numbers: forks would share them.
PRELOADED = [
    "stepwell.commands.train", "stepwell.recipes.ekd", "stepwell.training.fit",
    "pytorch_lightning.loggers", "sklearn.datasets",
]  # fmt: skip
_CONTEXT = multiprocessing.get_context("forkserver")


class _Start(NamedTuple):
    """All that makes the fork a process of its own."""

    arguments: Sequence[str]
    stdout: Connection
    stderr: Connection
    env: Mapping[str, str]
    folder: str
    file_bytes: int | None
    errors: tuple[type[Warning], ...]


class Forked:
    """A running `python ARGUMENTS`, with the part of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        *arguments: object,
        env: Mapping[str, str] = os.environ,
        cwd: Path | str = ".",
        file_bytes: int | None = None,
        errors: tuple[type[Warning], ...] = (),
    ) -> None:
        """Start the process.

        Args:
            arguments: "-m" and a module, "-c" and code, or a script, and their own arguments.
            env: the environment of the process.
            cwd: its folder.
            file_bytes: the limit on the size of a file that it writes.
            errors: the warnings that are errors.
        """
        _serve()
        pipes = [os.pipe() for _ in range(2)]
        ends = [Connection(writer, readable=False) for _, writer in pipes]
        words, folder = [str(a) for a in arguments], str(Path(cwd).resolve())
        start = _Start(words, *ends, dict(env), folder, file_bytes, errors)
        self._process = _CONTEXT.Process(target=_run, args=(start,))
        self._process.start()
        for end in ends:
            end.close()
        self.stdout, self.stderr = (os.fdopen(reader, encoding="utf-8") for reader, _ in pipes)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, -N if signal N ended the process; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Wait for the end; the exit code."""
        self._process.join(timeout)
        assert self.returncode is not None, f"the process still runs after {timeout} s"
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """All that the process prints until its end, which a kill brings after `timeout` seconds."""
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        with self.stdout, self.stderr, ThreadPoolExecutor(2) as pool:
            out, err = pool.map(lambda file: file.read(), (self.stdout, self.stderr))
        self.wait(timeout)
        timer.cancel()
        return out, err

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait(240)


def _serve() -> None:
    """Start the server of this process, once, with one thread: a fork has no other."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        _CONTEXT.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _run(start: _Start) -> None:
    """In the fork: become `python ARGUMENTS`."""
    if sys.platform == "linux" and len(os.listdir(f"/proc/{os.getppid()}/task")) > 1:
        raise RuntimeError("an import of the fork server started a thread, which no fork has")
    os.dup2(start.stdout.fileno(), 1)
    os.dup2(start.stderr.fileno(), 2)
    start.stdout.close()
    start.stderr.close()
    os.environ.clear()
    os.environ.update(start.env)
    os.chdir(start.folder)
    if start.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (start.file_bytes, start.file_bytes))
    for category in start.errors:
        warnings.simplefilter("error", category)
    first, *others = start.arguments
    with contextlib.suppress(BrokenPipeError):
        if first == "-m":
            sys.argv = others
            runpy.run_module(others[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = ["-c", *others[1:]]
            exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [first, *others]
            sys.path.insert(0, str(Path(first).parent))
            runpy.run_path(first, run_name="__main__")
