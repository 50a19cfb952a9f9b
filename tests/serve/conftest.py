"""Servers of the tests: in this process on a free port of the loopback interface."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

from serve.toys import Toy, table  # noqa: E402
from stepwell.serve.app import Limits, make_app  # noqa: E402
from stepwell.serve.client import Client  # noqa: E402
from stepwell.serve.engine import Engine  # noqa: E402


@contextlib.contextmanager
def running(engine: Engine, limits: Limits | None = None) -> Iterator[str]:
    """The address of a server that runs in a thread."""
    config = uvicorn.Config(make_app(engine, limits), port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def server(toy: Toy) -> Iterator[str]:
    with running(Engine(toy.served(), 5000, table=table()), Limits(body=5000, seconds=0.5)) as url:
        yield url


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server) as made:
        yield made
