"""`stepwell serve --ray` on a local Ray: two replicas, one of which is killed.

It takes about a minute, and runs where the extra `ray` is installed.
"""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")

import stepwell
from serve.test_app import post
from serve.test_serve_command import PATIENCE, process, refused
from serve.test_served import GOOD
from test_kinds import classifier


def replicas() -> set[int]:
    """Processes of this machine that are replicas of the server."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_bytes().startswith(b"ray::ServeReplica:stepwell"):
                found.add(int(file.parent.name))
        except OSError:
            pass  # it has ended
    return found


def test_a_replica_that_is_killed_is_replaced_and_no_request_fails(tmp_path, capsys):
    network = stepwell.save(classifier(), tmp_path / "net.safetensors")
    assert "--replicas 2 1: 1 or more at least" in refused(
        capsys, network, "--port", 0, "--ray", "--replicas", 2, 1
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--slo-ms", 5000, "--port", port, "--ray", "--replicas", 2, 2)
    with process(network, *flags) as (server, url):
        first = replicas()
        assert len(first) == 2
        expected = post(url, GOOD)[1]["predictions"][0]
        os.kill(min(first), signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        while len(replicas() - {min(first)}) < 2 and time.monotonic() < end:
            status, answer, _ = post(url, GOOD)
            assert status in (200, 429), answer
            time.sleep(0.05)
        assert len(replicas() - {min(first)}) == 2
        status, answer, _ = post(url, GOOD)
        assert (status, answer["predictions"][0]["class"]) == (200, expected["class"])
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    assert not replicas()
