"""The server as a deployment of Ray Serve: replicas of the same application, as many as the load needs.

Ray carries the requests, starts replicas, and replaces those that die. Each replica has an engine, a
queue and a table of times of its own, and refuses by itself what it cannot answer in time.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from fastapi import FastAPI

#: Name of the application in Ray.
NAME = "stepwell"
#: Ray adds a replica when each has more requests at a time than this share of the largest batch.
FULL = 0.5


@contextmanager
def deployed(
    build: Callable[[], FastAPI], host: str, port: int, replicas: tuple[int, int], threads: int, *,
    max_batch: int, max_queue: int,
) -> Iterator[None]:  # fmt: skip
    """Serve from replicas until the end of the context, on the Ray that is there, or a new local one.

    Args:
        build: makes the application of a replica.
        replicas: how many at least and at most.
        threads: processor threads of each.
        max_batch, max_queue: of the application: inputs that run together, and requests that wait.

    Raises:
        ValueError: these are no numbers of replicas, or Ray Serve runs there already.
        RuntimeError: the replicas did not start.
    """
    least, most = replicas
    if not 1 <= least <= most:
        raise ValueError(f"--replicas {least} {most}: 1 or more at least, and no fewer at most")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    def application() -> FastAPI:
        torch.set_num_threads(threads)
        return build()

    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING, log_to_driver=False)
    mine = False
    try:
        if serve.status().proxies:
            raise ValueError(
                "Ray Serve runs in this cluster already, at an address of its own: stop it "
                "(`serve shutdown`), or serve without --ray"
            )
        mine = True
        serve.start(http_options={"host": host, "port": port})
        server = serve.deployment(
            name="Server",
            # a full replica says so itself: 429
            max_ongoing_requests=max_queue + max_batch,
            autoscaling_config={
                "min_replicas": least, "max_replicas": most,
                "target_ongoing_requests": max(1.0, FULL * max_batch),
            },
            ray_actor_options={"num_cpus": threads},
        )(serve.ingress(application)())  # fmt: skip
        serve.run(server.bind(), name=NAME, route_prefix="/")
        yield
    finally:
        if mine:
            serve.shutdown()
        ray.shutdown()


def run_replicas(
    build: Callable[[], FastAPI], host: str, port: int, replicas: tuple[int, int], threads: int,
    started: Callable[[], None], **limits: int,
) -> None:  # fmt: skip
    """Serve until SIGTERM or Ctrl-C; calls `started` when all replicas answer. See `deployed`."""
    stop = signal.SIGTERM, signal.SIGINT
    with deployed(build, host, port, replicas, threads, **limits):
        signal.pthread_sigmask(signal.SIG_BLOCK, stop)
        started()
        signal.sigwait(stop)
