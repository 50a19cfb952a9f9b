"""Settings of a server, and the application that they make: here, or in a replica of Ray's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from PIL import Image

from stepwell.kinds import open_network
from stepwell.serve.app import Limits, make_app
from stepwell.serve.engine import Engine


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
    module: Callable[[], Any] | None = None

    def open(self, say: Callable[[str], object] = lambda _: None) -> tuple[Engine, FastAPI]:
        """Open the network, measure its rows, and make the application.

        Args:
            say: is told before the rows are measured.

        Raises:
            ValueError: the network cannot be served, or not so.
        """
        network = open_network(self.run, to="serve", module=self.module)
        Image.MAX_IMAGE_PIXELS = self.max_pixels
        served = network.do("serve", engine=self.engine, cascade=self.cascade)
        say(f"measuring the {served.row}s of {self.run}")
        engine = Engine(
            served, self.slo_ms, rows=self.depths, batch=self.max_batch, queue=self.max_queue,
            hysteresis=self.hysteresis,
        )  # fmt: skip
        limits = Limits(body=self.max_bytes, bodies=max(16 * self.max_bytes, 256 * 2**20))
        return engine, make_app(engine, limits)
