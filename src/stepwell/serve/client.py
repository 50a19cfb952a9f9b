"""A client of a server, with the standard library alone."""

import http.client
import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from stepwell.nets.predictions import Prediction


class BusyError(RuntimeError):
    """The server had no time for a request; `retry_after` says in how many seconds it may."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Client:
    """A connection to `stepwell serve`; threads need one each.

    >>> with stepwell.Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     client.predict("photo.jpg", budget_ms=30).label
    'cat'

    Args:
        url: of the server.
        tries: how often a refused request is sent; between two tries it waits as the server says.
        timeout: seconds to wait for an answer.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, tries: int = 1, timeout: float = 60
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no address of a server: write http://HOST:PORT")
        secure = parts.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = connect(parts.hostname, parts.port, timeout=timeout)
        self._path, self.tries = parts.path.rstrip("/"), tries

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def predict(self, file: str | Path | bytes, **asked: Any) -> Prediction:
        """Classify an image: a file, or its bytes.

        Args:
            asked: "depth", "budget_ms" and "top", as `POST /predict` takes them.

        Raises:
            BusyError: the server refused the request.
            ValueError: the request is wrong; the message is the server's.
            OSError: there is no server, or the connection broke.
        """
        content = file if isinstance(file, bytes) else Path(file).read_bytes()
        (row,) = self._post(content, "application/octet-stream", asked)
        return _prediction(row, None if isinstance(file, bytes) else Path(file))

    def predict_files(self, files: Sequence[str | Path], **asked: Any) -> list[Prediction]:
        """Classify several images in one request; arguments and errors as for `predict`."""
        boundary = uuid.uuid4().hex
        parts = [
            b'--%s\r\nContent-Disposition: form-data; name="file"; filename="%d"\r\n\r\n%s\r\n'
            % (boundary.encode(), i, Path(file).read_bytes())
            for i, file in enumerate(files)
        ]
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        rows = self._post(body, f"multipart/form-data; boundary={boundary}", asked)
        return [_prediction(row, Path(file)) for row, file in zip(rows, files, strict=True)]

    def predict_texts(self, texts: Sequence[str | tuple[str, str]], **asked: Any) -> list[Prediction]:
        """Classify texts or pairs of texts; arguments and errors as for `predict`."""
        body = json.dumps({"texts": texts}).encode()
        rows = self._post(body, "application/json", asked)
        return [_prediction(row, str(text)) for row, text in zip(rows, texts, strict=True)]

    def about(self) -> dict[str, Any]:
        """The network's rows with their times and costs, and the promise."""
        about: dict[str, Any] = json.loads(self._request("GET", "/about", b"", {})[1])
        return about

    def _post(self, body: bytes, kind: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        path = f"/predict?{urlencode(asked)}"
        for left in range(self.tries, 0, -1):
            status, content, retry = self._request("POST", path, body, {"Content-Type": kind})
            if status == http.client.OK:
                rows: list[dict[str, Any]] = json.loads(content)["predictions"]
                return rows
            message = _detail(content)
            if status >= http.client.INTERNAL_SERVER_ERROR:
                raise OSError(f"the server failed: {message} (status {status})")
            if status != http.client.TOO_MANY_REQUESTS:
                raise ValueError(f"{message} (status {status})")
            if left > 1:
                time.sleep(retry)
        raise BusyError(message, retry)

    def _request(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes, float]:
        """Status, body, and seconds of Retry-After; renews a connection that was idle too long."""
        for again in (True, False):
            try:
                self._connection.request(method, self._path + path, body, headers)
                response = self._connection.getresponse()
                return response.status, response.read(), float(response.headers.get("Retry-After", 1))
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self._connection.close()
                if not again:
                    raise
            except BaseException:  # such as a time that is up: the next call needs a new connection
                self._connection.close()
                raise
        raise AssertionError


def _detail(content: bytes) -> str:
    """The error message in a response's body; its first letters if another program wrote it."""
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")[:200] or "no answer"


def _prediction(row: dict[str, Any], file: Path | str | None) -> Prediction:
    if "objects" in row:
        objects = tuple(
            Prediction(
                file, item["class"], item["probability"], depth=row["depth"], box=tuple(item["box"])
            )
            for item in row["objects"]
        )
        return Prediction(file, depth=row["depth"], objects=objects)
    if "number" in row:
        return Prediction(file, depth=row["depth"], value=row["number"], note=row.get("note", ""))
    best = ((row["class"], row["probability"]),)
    top = tuple((entry["class"], entry["probability"]) for entry in row.get("top", ())) or best
    return Prediction(file, *best[0], depth=row["depth"], top=top, note=row.get("note", ""))
