"""The server over real connections of the loopback interface."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

import stepwell
from serve.conftest import running
from serve.toys import Toy, table
from stepwell.serve.app import INPUTS, Limits
from stepwell.serve.client import BusyError, Client
from stepwell.serve.engine import Engine


def post(
    url: str, body: bytes = b"1", kind: str = "image/png", query: str = ""
) -> tuple[int, dict, dict]:
    """Status, JSON and headers of a prediction."""
    request = urllib.request.Request(f"{url}/predict{query}", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.loads(response.read()), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), dict(error.headers)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def form(*files: tuple[str, bytes], name: str = "file") -> tuple[bytes, str]:
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode()
        + content + b"\r\n"
        for file, content in files
    ]  # fmt: skip
    return b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x"


def test_one_image_is_answered_in_json_and_headers(server):
    status, answer, headers = post(server, b"-2")
    (row,) = answer["predictions"]
    assert status == 200
    assert (row["class"], row["probability"], row["depth"], row["in_time"]) == (
        "minus",
        0.9,
        "large",
        True,
    )
    assert 10 <= row["ms"] < 5000
    told = {k.lower(): v for k, v in headers.items() if k.lower().startswith("stepwell")}
    assert told == {
        "stepwell-class": "minus", "stepwell-probability": "0.9", "stepwell-depth": "large",
        "stepwell-ms": str(row["ms"]),
    }  # fmt: skip


def test_a_form_has_several_images_and_parameters_hold_for_all(server, toy):
    _, answer, headers = post(server, *form(("a", b"1"), ("b", b"-1")), "?depth=small&top=2")
    first, second = answer["predictions"]
    assert (first["file"], first["class"], second["file"], second["class"]) == (
        "a",
        "plus",
        "b",
        "minus",
    )
    assert first["top"] == [
        {"class": "plus", "probability": 0.9}, {"class": "minus", "probability": 0.1}
    ]  # fmt: skip
    assert {row for row, _ in toy.batches} == {"small"}
    assert not [name for name in headers if name.lower().startswith("stepwell")]
    assert post(server, query="?budget_ms=9")[1]["predictions"][0]["depth"] == "small"


def asked(*files: tuple[str, bytes], name: str = "file") -> dict:
    return dict(zip(("body", "kind"), form(*files, name=name), strict=True))


BAD = [
    (400, "no depth 'huge'; there are small, large", {"query": "?depth=huge"}),
    (400, "budget_ms 'soon': Input should be a valid number", {"query": "?budget_ms=soon"}),
    (400, "budget_ms '0': Input should be greater than 0", {"query": "?budget_ms=0"}),
    (400, "budget_ms 'nan'", {"query": "?budget_ms=nan"}),
    (400, "budget_ms inf: must be above 0 and below 1e9", {"query": "?budget_ms=inf"}),
    (400, "budget_ms 1 is too short: the fastest depth, small, takes", {"query": "?budget_ms=1"}),
    (400, "top '99': Input should be less than", {"query": "?top=99"}),
    (400, "no parameter 'dept'; there are depth, budget_ms, top", {"query": "?dept=small"}),
    (400, "depth is given twice: send it once", {"query": "?depth=small&depth=large"}),
    (400, "b'no num' is no number", {"body": b"no num"}),
    (400, "b: b'?' is no number", asked(("a", b"1"), ("b", b"?"))),
    (400, "0 files in the request: send 1 to 32 as `file`", asked()),
    (400, "0 files in the request", asked(("a", b"1"), name="picture")),
    (400, "33 files in the request", asked(*[("x", b"1")] * (INPUTS + 1))),
    (400, "the form cannot be read", asked(*[("x", b"1")] * (INPUTS + 2))),
    (400, "the form cannot be read", {"kind": "multipart/form-data"}),
    (413, "the request is larger than 5,000 bytes", {"body": b"1" * 5001}),
    (415, "send multipart/form-data with fields `file`", {"kind": "text/plain"}),
]


def test_a_bad_request_is_one_line_of_json(server, toy):
    for status, words, bad in BAD:
        found, answer, _ = post(server, **bad)
        assert (found, answer["detail"].count("\n")) == (status, 0), answer
        assert words in answer["detail"]
    assert toy.batches == []
    assert post(server)[0] == 200


def test_an_input_that_is_read_quickly_is_not_handed_to_another_thread():
    readers = {}

    def read(content, name):
        readers[content] = threading.current_thread().name
        return Toy().served().read(content)

    served = replace(Toy().served(), read=read, quick=lambda content: len(content) == 1)
    with running(Engine(served, 5000, table=table())) as url:
        assert post(url, b"1")[0] == post(url, b"22")[0] == 200
        assert post(url, b"x")[1] == {"detail": "b'x' is no number"}
        assert post(url, *form(("a", b"3"), ("b", b"4")))[0] == 200
    pool = {content: name.startswith("stepwell-read") for content, name in readers.items()}
    assert pool == {b"1": False, b"22": True, b"x": False, b"3": True, b"4": True}


def test_health_metrics_and_the_last_seconds(server):
    assert (get(f"{server}/healthz"), get(f"{server}/readyz")) == ("ok", "ready")
    post(server)
    post(server, query="?depth=small")
    metrics = get(f"{server}/metrics")
    for line in (
        'stepwell_answers_total{depth="large"} 1.0', 'stepwell_answers_total{depth="small"} 1.0',
        "stepwell_refused_total 0.0", "stepwell_queue 0.0", "stepwell_promise_seconds 5.0",
        "stepwell_answer_seconds_count 2.0", "process_resident_memory_bytes",
    ):  # fmt: skip
        assert line in metrics
    live = json.loads(get(f"{server}/live"))
    assert live["promise_ms"] == 5000
    assert sum(second["answers"] for second in live["seconds"]) == 2
    about = json.loads(get(f"{server}/about"))
    assert [row["name"] for row in about["rows"]] == ["small", "large"]
    spec = json.loads(get(f"{server}/openapi.json"))
    responses = spec["paths"]["/predict"]["post"]["responses"]
    assert set(responses) == {"200", "400", "408", "413", "415", "429"}
    with pytest.raises(urllib.error.HTTPError) as wrong:
        get(f"{server}/nothing")
    with wrong.value as error:
        assert error.code == 404


def test_the_client_gives_predictions_and_the_servers_words(server, client, tmp_path):
    for name, content in (("a", b"1"), ("b", b"-1")):
        (tmp_path / name).write_bytes(content)
    a, b = client.predict_files([tmp_path / "a", tmp_path / "b"], top=2)
    assert (a.label, b.label, b.top) == ("plus", "minus", (("minus", 0.9), ("plus", 0.1)))
    one = client.predict(tmp_path / "a", depth="small")
    assert (one.file, one.depth, one.top) == (tmp_path / "a", "small", (("plus", 0.9),))
    assert client.predict(b"-1").label == "minus"
    assert client.about()["promise_ms"] == 5000
    with pytest.raises(ValueError, match=r"no depth 'x'; there are small, large \(status 400\)"):
        client.predict(b"1", depth="x")
    with pytest.raises(ValueError, match="is no address of a server: write http://HOST:PORT"):
        Client("127.0.0.1")
    with pytest.raises(OSError):  # noqa: PT011
        stepwell.Client("http://127.0.0.1:1").predict(b"1")


def test_a_busy_server_refuses_and_never_fails():
    toy = Toy(hold=0.02)
    with running(Engine(toy.served(), 100, table=table(), batch=2)) as url:
        with ThreadPoolExecutor(60) as pool:
            found = [*pool.map(lambda _: post(url), range(180))]
        assert {status for status, *_ in found} == {200, 429}
        answer, headers = next((a, h) for status, a, h in found if status == 429)
        assert answer["detail"] == "the server is busy: try again in 1 s"
        assert {k.lower(): v for k, v in headers.items()}["retry-after"] == "1"
        toy.hold = 0.9
        with ThreadPoolExecutor(1) as pool, Client(url) as client, Client(url, tries=3) as patient:
            running_one = pool.submit(post, url)
            time.sleep(0.3)
            with pytest.raises(BusyError, match="the server is busy: try again in 1 s") as refused:
                client.predict(b"1")
            assert refused.value.retry_after == 1
            assert patient.predict(b"1").label == "plus"
            assert running_one.result()[0] == 200


def raw(url: str, *parts: bytes, wait: float = 0.0, close: bool = False) -> bytes:
    """Send bytes as they are to a server, and give its answer."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as link:
        for part in parts:
            link.sendall(part)
            time.sleep(wait)
        if close:
            link.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while chunk := link.recv(4096):
                found += chunk
                if b"\r\n\r\n" in found and b"Connection: close" not in found and b"}" in found:
                    break
        except ConnectionResetError:
            pass
    return found


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


def test_slow_clients_half_closed_ones_and_bodies_without_a_length(server):
    assert b"408" in raw(server, HEAD + b"Content-Length: 10\r\n\r\n1")
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert b"200 OK" in raw(server, chunked, b"1\r\n1\r\n0\r\n\r\n")
    long = b"%x\r\n%s\r\n0\r\n\r\n" % (5001, b"1" * 5001)
    assert b"413" in raw(server, chunked, long)
    raw(server, HEAD + b"Content-Length: 10\r\n\r\n1", close=True)
    assert b"400" in raw(server, b"nonsense\r\n\r\n")
    assert post(server)[0] == 200


def test_file_names_in_any_encoding_are_answered(server):
    form = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a+2AA-"\r\n\r\n%s\r\n--x--\r\n'
    )
    kind = "multipart/form-data; boundary=x; charset=utf-7"
    status, answer, _ = post(server, form % b"1", kind)
    assert (status, answer["predictions"][0]["file"]) == (200, "a?")
    status, answer, _ = post(server, form % b"no number", kind)
    assert (status, answer["detail"]) == (400, "a?: b'no number' is no number")


def test_a_form_of_megabytes_stays_in_memory(toy, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no disk")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", refuse)
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%s\r\n--x--\r\n'
    with running(Engine(toy.served(), 5000, table=table()), Limits(body=4_000_000)) as url:
        number = b"1" + b" " * 3_000_000
        assert post(url, body % number, "multipart/form-data; boundary=x")[0] == 200


def test_a_request_whose_client_has_gone_does_not_run():
    toy = Toy(hold=0.3)
    with running(Engine(toy.served(), 5000, table=table(), batch=1)) as url:
        where = urlsplit(url)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, url)
            time.sleep(0.1)
            with socket.create_connection((where.hostname, where.port), timeout=10) as link:
                link.sendall(HEAD + b"Content-Length: 2\r\n\r\n-1")
                time.sleep(0.1)
            assert first.result()[0] == 200
        assert post(url)[1]["predictions"][0]["class"] == "plus"
    assert len(toy.batches) == 2


def test_uploads_have_a_limit_together(toy):
    limits = Limits(body=1000, bodies=1500, seconds=2.0)
    with (
        running(Engine(toy.served(), 5000, table=table()), limits) as url,
        ThreadPoolExecutor(1) as pool,
    ):
        slow = pool.submit(raw, url, HEAD + b"Content-Length: 900\r\n\r\n", b"0" * 900, wait=0.3)
        time.sleep(0.1)
        status, answer, _ = post(url, b"1" * 700)
        assert (status, answer["detail"]) == (429, "too many uploads: try again in 1 s")
        assert b"200 OK" in slow.result()
        assert post(url, b"1" * 300)[0] == 200


def test_a_client_goes_on_after_its_time_is_up_and_says_what_a_server_says(toy):
    with running(Engine(Toy(hold=1.0).served(), 5000, table=table())) as url:
        with Client(url, timeout=0.5) as client:
            with pytest.raises(TimeoutError):
                client.predict(b"1")
            assert client.about()["rows"], "the connection is a new one"
        with (
            Client(url) as client,
            pytest.raises(OSError, match=r"the server failed: .*\(status 500\)"),
        ):
            client.predict(b"nan")


def test_texts_are_json(toy):
    def read(text, name):
        return float(len(text)) if isinstance(text, str) else -1.0

    served = toy.served()

    def run(inputs, row, top):
        found = toy.served().run(inputs, row, top)
        return [p._replace(note="cut" * (p.label == "minus")) for p in found]

    served = replace(served, takes="texts", noun="text", read=read, run=run)
    with running(Engine(served, 5000, table=table())) as url, Client(url) as client:
        one, pair = client.predict_texts(["a text", ("a", "pair")])
        assert (one.file, one.label, pair.label) == ("a text", "plus", "minus")
        assert (one.note, pair.note) == ("", "cut")
        for body, words in (
            (b'{"text": "a"}', None), (b'{"texts": []}', "0 texts in the request"),
            (b"{", "the body is no JSON"), (b"[" * 100_000, "the body is no JSON"),
            (b'{"text": 1}', 'send {"text": T}'), (b'["a"]', 'send {"text": T}'),
            (b'{"text": "a", "x": 1}', 'send {"text": T}'), (b'{"texts": [["a", "b", "c"]]}', "send"),
        ):  # fmt: skip
            status, answer, _ = post(url, body, "application/json")
            assert status == (400 if words else 200)
            assert words is None or words in answer["detail"]
        assert post(url, b"x", "image/png")[0] == 415
