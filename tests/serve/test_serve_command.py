"""`stepwell serve` as a process of its own: signals, load, files that change; and its refusals."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import stepwell
from forking import Forked
from serve.test_app import get, post
from serve.test_served import BROKEN, GOOD
from stepwell import cli
from stepwell.commands import serve as command
from stepwell.serve.client import Client
from test_kinds import classifier

#: Seconds for a process to start or to end.
PATIENCE = 120


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[tuple[Forked, str]]:
    """A server, and its address."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with Forked("-m", "stepwell", "serve", *arguments, env=environment) as made:
        try:
            said = ""
            while not (place := re.search(r"http://[\d.]+:\d+", said)):
                line = made.stderr.readline()
                assert line, said
                said += line
            yield made, place[0]
        finally:
            if made.poll() is None:
                made.kill()


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return stepwell.save(classifier(), tmp_path_factory.mktemp("served") / "net.safetensors")


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_a_server_answers_as_predict_through_bad_input_load_and_signals(network, tmp_path):
    net = stepwell.load(network)
    (tmp_path / "i.png").write_bytes(GOOD)
    with process(network, "--slo-ms", 2000, "--port", 0, "--max-batch", 2) as (server, url):
        with Client(url) as client:
            for depth in ("8", "14"):
                expected = net.predict(tmp_path / "i.png", depth=depth)
                found = client.predict(tmp_path / "i.png", depth=depth)
                assert (found.label, found.depth) == (expected.label, depth)
                assert found.probability == pytest.approx(expected.probability)
            assert client.predict(GOOD).depth == "14"
        for name, content in BROKEN.items():
            status, answer, _ = post(url, content)
            assert (status, answer["detail"].count("\n")) == (400, 0), name
        before = memory(server.pid)

        # the file is replaced by another network: the server goes on with what it has read
        other = classifier(classes=2)
        other.card = stepwell.Card(("x", "y"), 16)
        kept = network.read_bytes()
        stepwell.save(other, network)
        status, answer, _ = post(url, GOOD)
        assert answer["predictions"][0]["class"] in net.card.classes
        network.write_bytes(kept)

        # a thousand connections at once: each is answered or refused
        port = int(url.rpartition(":")[2])
        links = [socket.create_connection(("127.0.0.1", port)) for _ in range(1000)]
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nConnection: close\r\n"
        request = f"{head}Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD
        for link in links:
            link.sendall(request)
        statuses = []
        for link in links:
            with link, link.makefile("rb") as file:
                statuses.append(int(file.readline().split()[1]))
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) > 50
        assert memory(server.pid) < before + 200 * 2**20

        with ThreadPoolExecutor(20) as pool:
            for _ in range(20):
                pool.submit(post, url, GOOD)
            server.kill()  # with no warning, and the same port serves again
        server.wait(PATIENCE)

    with process(network, "--slo-ms", 2000, "--port", port, "--max-batch", 2) as (server, again):
        assert again == url
        # what was accepted before SIGTERM is answered
        part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%s\r\n'
        form, kind = part % GOOD * 32 + b"--x--\r\n", "multipart/form-data; boundary=x"
        before = accepted(url)
        with ThreadPoolExecutor(6) as pool:
            answers = [pool.submit(post, url, form, kind, "?budget_ms=60000") for _ in range(6)]
            end = time.monotonic() + PATIENCE
            while accepted(url) < before + 6 * 32 - 2:  # two are in the batch that runs
                assert time.monotonic() < end, "the server did not accept all"
                time.sleep(0.001)
            server.send_signal(signal.SIGTERM)
            done = [answer.result() for answer in answers]
        assert [status for status, _, _ in done] == [200] * 6
        assert all(len(rows["predictions"]) == 32 for _, rows, _ in done)
        assert server.wait(PATIENCE) in (0, -signal.SIGTERM)


def accepted(url: str) -> float:
    """The requests that a server has answered, or that wait there."""
    lines = get(f"{url}/metrics").splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if re.match("stepwell_(answers_total|queue)", line)
    )


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", *map(str, arguments)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert (stop.value.code, len(errors)) == (2, 1)
    return errors[0]


def test_what_cannot_be_served_is_one_line(network, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("stepwell.serve.latencies.SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, network, "--port", port)
        assert f"port {port} of 127.0.0.1 is in use: name another --port, or 0 for a free one" in said
    assert "no such address" in refused(capsys, network, "--host", "no.such.host.invalid")
    own = (network, "--port", 0)
    said = refused(capsys, *own, "--slo-ms", "0.001")
    assert re.search(
        r"a promise of 0.001 ms cannot be kept: the fastest depth, \d+, takes \S+ ms", said
    )
    assert "no depth '9'; there are 8, 14" in refused(capsys, *own, "--depths", "9")
    assert "this network has no cascade yet" in refused(capsys, *own, "--cascade")
    assert "holds no export: write it with `stepwell export" in refused(
        capsys, *own, "--engine", "onnx"
    )
    assert "no file or run directory nothing" in refused(capsys, "nothing", "--port", 0)
    assert "--replicas is for --ray: add it" in refused(capsys, *own, "--replicas", 2, 3)
    net = classifier()
    net.mark("fresh")
    untrained = stepwell.save(net, tmp_path / "fresh")
    assert "depth '14' was never trained or calibrated" in refused(capsys, untrained, "--port", 0)
    from stepwell.kinds import ability

    with pytest.raises(ValueError, match=r"a knowledge graph, which cannot be served; stepwell kg"):
        ability(tmp_path, "graph", "serve")
    real = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name)
    )
    assert "stepwell serve needs uvicorn: pip install 'stepwell[serve]'" in refused(capsys, *own)
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name == "ray" else real(name)
    )
    assert "stepwell serve needs ray: pip install 'stepwell[ray]'" in refused(capsys, *own, "--ray")


def test_more_threads_than_cores_are_a_note(capsys):
    import torch

    before = torch.get_num_threads()
    try:
        command.set_threads(512)
        assert re.search(r"note: 512 threads are more than the \d+ cores", capsys.readouterr().err)
        command.set_threads(1)
        assert capsys.readouterr().err == ""
    finally:
        torch.set_num_threads(before)
