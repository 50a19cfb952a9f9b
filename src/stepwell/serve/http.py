"""uvicorn, which carries the server's application."""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

#: Seconds to answer accepted requests after SIGTERM, at most.
DRAIN = 30
#: Seconds that an idle connection is kept.
IDLE = 30
#: Connections that may wait to be taken.
BACKLOG = 4096


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()


def run_server(app: FastAPI, listening: socket.socket, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was accepted; calls `started` when it listens."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, backlog=BACKLOG,
        timeout_graceful_shutdown=DRAIN, timeout_keep_alive=IDLE,
    )  # fmt: skip
    _Server(config, started).run(sockets=[listening])
