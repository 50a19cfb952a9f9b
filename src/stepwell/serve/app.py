"""The HTTP server of an engine: predictions, health, metrics, and a page to look at."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

import stepwell
from stepwell.device import cores
from stepwell.serve.engine import Answer, Engine, StoppedError, describe
from stepwell.serve.live import Live, Metrics
from stepwell.serve.openapi import BODIES, RESPONSES
from stepwell.serve.scheduler import FullError, Job
from stepwell.serve.served import Served

#: Inputs in one request, and classes in one answer, at most.
INPUTS, TOP = 32, 10
#: Inputs that are decoded at a time, at most; each may take hundreds of megabytes.
DECODERS = 8
#: The page's own script and style run, and nothing from elsewhere.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'"
)
QUERY = ("depth", "budget_ms", "top")


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    body: bytes of a request. bodies: bytes of all requests that arrive at the same time.
    seconds: for a request to arrive.
    """

    body: int = 16 * 2**20
    bodies: int = 256 * 2**20
    seconds: float = 10.0


@dataclass(frozen=True)
class Asked:
    """The options of a request."""

    depth: str | None
    budget_ms: float | None
    top: int


def make_app(engine: Engine, limits: Limits | None = None) -> FastAPI:
    """The application of an engine, which it starts and closes."""
    limits = limits or Limits()
    live, metrics, uploads = Live(), Metrics(engine), Uploads(limits)
    engine.observers += [live, metrics]
    readers = ThreadPoolExecutor(min(DECODERS, cores()), thread_name_prefix="stepwell-read")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)
        readers.shutdown()

    app = FastAPI(
        title="Stepwell", description="Predictions within a promised time.",
        version=stepwell.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.post("/predict", responses=RESPONSES, openapi_extra=BODIES[engine.served.takes])
    async def predict(
        request: Request,
        depth: Annotated[str | None, Query(description="the depth that answers")] = None,
        budget_ms: Annotated[float | None, Query(gt=0, description="not the promise")] = None,
        top: Annotated[int, Query(ge=1, le=TOP, description="classes to give")] = 1,
    ) -> Response:
        """Classify images or texts."""
        if unknown := [name for name in request.query_params if name not in QUERY]:
            raise HTTPException(400, f"no parameter {unknown[0]!r}; there are {', '.join(QUERY)}")
        if twice := [name for name in QUERY if len(request.query_params.getlist(name)) > 1]:
            raise HTTPException(400, f"{twice[0]} is given twice: send it once")
        with _errors_as_responses():
            engine.check(depth, budget_ms)
        asked = Asked(depth, budget_ms, top)
        async with AsyncExitStack() as held:
            inputs = await INPUTS_OF[engine.served.takes](request, uploads, held)
            jobs = await _admitted(engine, readers, inputs, asked)
        names = [name for name, _ in inputs]
        del inputs  # the bytes
        futures = [asyncio.wrap_future(engine.add(job)) for job in jobs]
        return _response(names, await _unless_gone(request, futures))

    @app.get("/healthz", response_class=PlainTextResponse)
    def healthz() -> str:
        """Say that the process runs."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse, responses={503: {}})
    def readyz() -> Response:
        """Say whether requests are taken."""
        return PlainTextResponse("ready") if engine.ready else PlainTextResponse("stopping", 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    def prometheus() -> Response:
        """Give metrics for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/about")
    def about() -> dict[str, Any]:
        """Describe the network: its depths with their times and costs, and the promise."""
        return describe(engine)

    @app.get("/live")
    def seconds() -> dict[str, Any]:
        """Give the last seconds: answers, depths, refusals and p99."""
        return {"promise_ms": engine.promise_ms, "queue": engine.waiting(), "seconds": live.seconds()}

    page = resources.files("stepwell.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    del app.openapi()["paths"]["/predict"]["post"]["responses"]["422"]  # `_invalid` sends 400
    return app


class Uploads:
    """The bytes of requests that arrive or are being read, within limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self._held = limits, 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """A request's body, which counts until the end of the context.

        HTTPException if it is too large or slow, or too many come.
        """
        most = self.limits.body
        size = int(request.headers.get("content-length", most))
        if size > most:
            raise _too_large(most)
        if self._held + size > self.limits.bodies:
            raise HTTPException(429, "too many uploads: try again in 1 s", {"Retry-After": "1"})
        self._held += size
        try:
            yield await self._read(request, most)
        finally:
            self._held -= size

    async def _read(self, request: Request, most: int) -> bytes:
        content = bytearray()
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > most:
                        raise _too_large(most)
        except ClientDisconnect:
            raise _gone() from None
        except TimeoutError:
            words = f"the request did not arrive within {self.limits.seconds:g} s"
            raise HTTPException(408, words, {"Connection": "close"}) from None
        return bytes(content)


def _gone() -> HTTPException:
    """The response to a client that has closed its connection."""
    return HTTPException(400, "the client has gone")


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than {most:,} bytes", {"Connection": "close"})


async def _files(request: Request, uploads: Uploads, held: AsyncExitStack) -> list[tuple[str, Any]]:
    """The names and contents of a request's files, which count as uploads while they are `held`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/octet-stream") and kind[:6] != "image/":
        raise HTTPException(
            415, "send multipart/form-data with fields `file`, or an image as the body with its type"
        )
    body = await held.enter_async_context(uploads.body(request))
    if kind != "multipart/form-data":
        return [("", body)]

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(request.headers, whole(), max_files=INPUTS + 1)
        parser.spool_max_size = len(body) + 1  # in memory, as the body is: no disk is needed
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        reason = getattr(error, "message", "no boundary")
        raise HTTPException(400, f"the form cannot be read ({reason})") from None
    try:
        files = [file for file in form.getlist("file") if not isinstance(file, str)]
        _check_count(len(files), "file")
        # a form's own encoding may give letters that UTF-8, in which we answer, does not have
        names = [(file.filename or "").encode(errors="replace").decode() for file in files]
        return [(name, await file.read()) for name, file in zip(names, files, strict=True)]
    finally:
        await form.close()


async def _texts(request: Request, uploads: Uploads, held: AsyncExitStack) -> list[tuple[str, Any]]:
    """The texts of a request, without names; see `_files`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, 'send application/json: {"text": "..."} or {"texts": ["...", "..."]}')
    try:
        given = json.loads(await held.enter_async_context(uploads.body(request)))
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON") from None
    texts: Any = None
    if isinstance(given, dict) and len(given) == 1:
        texts = [given["text"]] if "text" in given else given.get("texts")
    if not isinstance(texts, list) or not all(map(_is_text, texts)):
        words = 'send {"text": T} or {"texts": [T, ...]}; T is a text, or a list of two for a pair'
        raise HTTPException(400, words)
    _check_count(len(texts), "text")
    return [("", text) for text in texts]


INPUTS_OF = {"files": _files, "texts": _texts}


def _is_text(value: object) -> bool:
    parts = value if isinstance(value, list) else [value]
    return 1 <= len(parts) <= 2 and all(isinstance(part, str) for part in parts)


def _check_count(count: int, noun: str) -> None:
    if not 1 <= count <= INPUTS:
        raise HTTPException(400, f"{count} {noun}s in the request: send 1 to {INPUTS} as `{noun}`")


async def _admitted(
    engine: Engine, readers: ThreadPoolExecutor, inputs: Sequence[tuple[str, Any]], asked: Asked
) -> list[Job]:
    """Read the inputs of a request; HTTPException if they are bad, or the server is busy.

    Each further input of a request has a further promise of time.
    """
    budget = engine.promise_ms if asked.budget_ms is None else asked.budget_ms
    jobs: list[Job] = []
    with _errors_as_responses():
        try:
            for i in range(len(inputs)):
                ms = (i + 1) * budget
                jobs.append(engine.admit(row=asked.depth, budget_ms=ms, top=asked.top))
            ready = await _read(engine.served, readers, inputs)
            for (name, _), job, given in zip(inputs, jobs, ready, strict=True):
                if isinstance(given, ValueError):
                    raise ValueError(f"{name}: {given}" if name else str(given))
                if isinstance(given, BaseException):
                    raise given
                job.input = given
        except BaseException:
            for job in jobs:
                engine.withdraw(job)
            raise
    return jobs


async def _read(
    served: Served, readers: ThreadPoolExecutor, inputs: Sequence[tuple[str, Any]]
) -> list[Any]:
    """Turn each named input into what the network takes; where that fails, give the error instead."""
    if len(inputs) == 1 and served.quick(inputs[0][1]):
        # to hand it to another thread, and to wait for that, would take longer than to read it
        try:
            return [served.read(inputs[0][1], inputs[0][0])]
        except ValueError as error:
            return [error]
    loop = asyncio.get_running_loop()
    reads = [loop.run_in_executor(readers, served.read, given, name) for name, given in inputs]
    return await asyncio.gather(*reads, return_exceptions=True)


async def _unless_gone(request: Request, futures: "list[asyncio.Future[Answer]]") -> list[Answer]:
    """Wait for answers; if the client goes, those that nobody will read are not computed."""
    answers = asyncio.gather(*futures)
    watch = asyncio.ensure_future(_disconnected(request))
    either: list[asyncio.Future[Any]] = [answers, watch]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise _gone()
        with _errors_as_responses():
            return answers.result()
    finally:
        watch.cancel()
        answers.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@contextmanager
def _errors_as_responses() -> Iterator[None]:
    """Turn errors of a request into responses."""
    try:
        yield
    except ValueError as error:
        raise HTTPException(400, " ".join(str(error).split())) from None
    except FullError as error:
        raise HTTPException(429, str(error), {"Retry-After": error.seconds}) from None
    except StoppedError as error:
        raise HTTPException(429, str(error), {"Retry-After": "5", "Connection": "close"}) from None


def _response(names: Sequence[str], answers: Sequence[Answer]) -> JSONResponse:
    rows = [_row(name, answer) for name, answer in zip(names, answers, strict=True)]
    headers = {}
    if len(rows) == 1:
        (row,) = rows
        words = ("class", "probability", "number", "depth", "ms")
        headers = {f"Stepwell-{w.title()}": quote(str(row[w]), " ") for w in words if w in row}
    return JSONResponse({"predictions": rows}, headers=headers)


def _row(name: str, answer: Answer) -> dict[str, Any]:
    """An answer as JSON, with the words of `stepwell predict --json`."""
    p = answer.prediction
    row: dict[str, Any] = {"file": name} if name else {}
    if p.objects is not None:
        row["objects"] = [
            {"class": o.label, "probability": o.probability, "box": [round(x, 2) for x in o.box or ()]}
            for o in p.objects
        ]
    elif p.value is not None:
        row["number"] = p.value
    else:
        row |= {"class": p.label, "probability": p.probability}
    row |= {"depth": p.depth, "ms": round(answer.ms, 3), "in_time": not answer.late}
    if len(p.top) > 1:
        row["top"] = [{"class": label, "probability": share} for label, share in p.top]
    return row | ({"note": p.note} if p.note else {})


async def _invalid(_: Request, error: Exception) -> Response:
    """A parameter out of range, in one line."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    words = f"{first['loc'][-1]} {str(first.get('input'))[:60]!r}: {first['msg']}"
    return JSONResponse({"detail": " ".join(words.split())}, 400)
