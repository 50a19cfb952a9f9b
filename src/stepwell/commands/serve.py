"""`stepwell serve`."""

import errno
import importlib.util
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from stepwell.commands.arguments import Module, imported
from stepwell.console import say
from stepwell.flags import flag
from stepwell.kinds import open_network
from stepwell.memory import keep_freed_memory

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stepwell.serve.engine import Engine

#: Open files and connections to ask the system for.
FILES = 16_384
#: Seconds until Python's lock goes to another thread that waits for it. The network's thread asks for
#: it after every operation of torch, and with Python's usual 5 ms it waits for bursts of requests.
SWITCH = 0.0005
#: Connections that wait until they are taken.
BACKLOG = 2048


def serve(
    run: Positional[Path],
    *,
    slo_ms: float = 100,
    host: str = "127.0.0.1",
    port: int = 8000,
    engine: Literal["torch", "onnx", "onnx-copies"] = "torch",
    depths: tuple[str, ...] = (),
    cascade: bool = False,
    hysteresis: float = 0.2,
    max_batch: int = 16,
    max_queue: int = 256,
    max_bytes: int = 16 * 2**20,
    max_pixels: int = 50_000_000,
    threads: int | None = None,
    ray: bool = False,
    replicas: Annotated[tuple[int, int], flag("LEAST MOST")] = (1, 2),
    module: Module = None,
) -> None:
    """Answer requests over HTTP within a promised time.

    Each batch runs at the deepest depth with which all waiting requests are in time. A request that
    would be late at every depth is refused with status 429. SIGTERM answers what was accepted, then
    ends. There is no login: the default host takes requests of this machine only.

    Examples:
        stepwell serve runs/photos --slo-ms 50
        stepwell serve runs/photos --slo-ms 50 --engine onnx --threads 2
        stepwell serve runs/photos --slo-ms 50 --ray --replicas 2 8
        curl -F file=@photo.jpg http://127.0.0.1:8000/predict

    Args:
        run: a run directory, or the file of its network.
        slo_ms: milliseconds from the arrival of a request to its answer: the promise.
        host: address to listen on; 0.0.0.0 takes requests from other machines.
        port: port to listen on; 0 takes a free one.
        engine: what runs the network. onnx reads the export in RUN/export (of --cascade, too: write it
            with `stepwell export RUN --cascade`), and holds the weights of depths in memory once;
            onnx-copies is faster, and holds them for each depth.
        depths: depths to choose from; by default the full net and all faster ones, without those that
            a faster one clearly beats.
        cascade: the deepest answer is the cascade that `stepwell eval RUN --cascade --save` has saved.
        hysteresis: share of a request's time that must stay free before a deeper depth is taken.
        max_batch: inputs that run together, at most.
        max_queue: requests that may wait, at most.
        max_bytes: size of a request, at most.
        max_pixels: pixels of an image, at most.
        threads: threads of the network, with --ray of each replica; by default as many as torch takes,
            and 1 with --ray.
        ray: serve from replicas in Ray, on this machine or on the Ray cluster that it belongs to.
        replicas: with --ray: the least and the greatest number of replicas; Ray adds some when
            many requests wait.
    """
    require(("ray",) if ray else ())
    if not ray and replicas != (1, 2):
        raise ValueError("--replicas is for --ray: add it, or leave --replicas out")
    with bound(host, port) as listening:
        name, number = listening.getsockname()[:2]
        address = name, number
        set_threads(threads or (1 if ray else None))
        settings = Settings(
            run=run.resolve() if ray else run, slo_ms=slo_ms, engine=engine, depths=depths,
            cascade=cascade, hysteresis=hysteresis, max_batch=max_batch, max_queue=max_queue,
            max_bytes=max_bytes, max_pixels=max_pixels, module=imported(module),
        )  # fmt: skip
        opened, app = application(settings, say)
        more_connections()
        if not ray:
            from stepwell.serve.http import run_server

            run_server(app, listening, lambda: say(greeting(opened, run, address)))
            return
    from stepwell.serve.on_ray import run_replicas

    run_replicas(
        partial(replica, settings), name, number, replicas, threads or 1,
        lambda: say(greeting(opened, run, address)), max_batch=max_batch, max_queue=max_queue,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The network that a server answers with, and its limits; fields as the flags of `serve`."""

    run: Path
    slo_ms: float
    engine: Literal["torch", "onnx", "onnx-copies"]
    depths: tuple[str, ...]
    cascade: bool
    hysteresis: float
    max_batch: int
    max_queue: int
    max_bytes: int
    max_pixels: int
    module: Callable[[], Any] | None


def application(
    settings: Settings, say: Callable[[str], object] = lambda _: None
) -> "tuple[Engine, FastAPI]":
    """Open the network, measure its rows, and make the application.

    Args:
        say: is told before the rows are measured.

    Raises:
        ValueError: the network cannot be served, or not so.
    """
    network = open_network(settings.run, to="serve", module=settings.module)
    from PIL import Image

    from stepwell.serve.app import Limits, make_app
    from stepwell.serve.engine import Engine

    Image.MAX_IMAGE_PIXELS = settings.max_pixels
    sys.setswitchinterval(SWITCH)
    served = network.do("serve", engine=settings.engine, cascade=settings.cascade)
    say(f"measuring the {served.row}s of {settings.run}")
    engine = Engine(
        served, settings.slo_ms, rows=settings.depths, batch=settings.max_batch,
        queue=settings.max_queue, hysteresis=settings.hysteresis,
    )  # fmt: skip
    most = settings.max_bytes
    return engine, make_app(engine, Limits(body=most, bodies=max(16 * most, 256 * 2**20)))


def replica(settings: Settings) -> "FastAPI":
    """The application of a replica in Ray."""
    keep_freed_memory()  # as the command line does
    return application(settings)[1]


def require(more: Sequence[str] = ()) -> None:
    """Raise ImportError for a missing package of the extras `serve`, or `ray`."""
    for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", *more):
        if importlib.util.find_spec(name) is None:
            extra = name if name in more else "serve"
            raise ImportError(f"stepwell serve needs {name}: pip install 'stepwell[{extra}]'")


def bound(host: str, port: int) -> socket.socket:
    """A socket with an address; OSError if it cannot be had."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: no such address ({error.strerror})") from error
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        made.listen(BACKLOG)  # another server is then refused at once; requests wait until we run
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} of {host} is in use: name another --port, or 0 for a free one"
            ) from error
        raise ValueError(f"cannot listen on port {port} of {host}: {error.strerror}") from error
    return made


def set_threads(threads: int | None) -> None:
    """Set the threads of torch, and note when there are more than cores."""
    import torch

    from stepwell.device import cores

    if threads is not None:
        torch.set_num_threads(threads)
    if (count := torch.get_num_threads()) > (most := cores()):
        say(f"note: {count} threads are more than the {most} cores: try --threads {most}")


def more_connections() -> None:
    """Raise the limit of open connections to what the system allows, up to `FILES`."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def greeting(engine: "Engine", run: Path, address: tuple[str, int]) -> str:
    """Say where the server listens and what it may answer with."""
    host, port = address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    times = engine.times()
    rows = ", ".join(f"{row} ({times[row]:.3g} ms)" for row in engine.ladder)
    open_to = (
        "" if host in ("127.0.0.1", "::1") else "\nnote: other machines can use it: there is no login"
    )
    beaten = (
        f"\nnote: not chosen: {engine.served.row} {', '.join(engine.beaten)}, as a faster one is "
        "clearly more accurate; --depths names those to choose from"
        if engine.beaten else ""
    )  # fmt: skip
    promise = f"promise {engine.promise_ms:g} ms"
    return f"serving {run} on http://{where}: {rows}; {promise}{beaten}{open_to}"
