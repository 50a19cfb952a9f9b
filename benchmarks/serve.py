"""A server under bursts on the loopback interface: the controller against each fixed depth.

Arrivals are open-loop: a request is sent at its time, whatever became of those before. All arms get the
same trace, one after the other, `ROUNDS` times. The network is a ResNet-32 with depths 8 and 20 inside,
trained here on digits of 32 pixels; accuracy is that of the answers in time.
"""

import asyncio
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.serve_simulation import bursts

SIZE, DEPTHS, FULL = 32, ("8", "20"), "32"
#: Of each phase of the training.
EPOCHS = 6
#: Of the network whose overhead is measured beside it: nine times the work for an image.
LARGE, LARGE_EPOCHS = 96, 1
#: Multiples of the full net's capacity; seconds of a trace; promise as a multiple of its time for one
#: image.
LOADS, SECONDS, PROMISE, ROUNDS = (0.5, 0.75, 1.0, 2.0, 3.0), 20.0, 10, 3
#: Requests to find the capacity with, and how many are on their way at a time; seconds of the run that
#: looks for growth.
CLOSED, CLIENTS, SOAK = 640, 32, 600.0
#: Batch sizes of bare predictions, of which the fastest counts.
BATCHES = (4, 8, 16)
#: Requests on their way at the same time, at most: the generator is bounded.
OPEN = 512


def train(out: Path, size: int, epochs: int) -> None:
    """Train a network."""
    command = [
        sys.executable, "-m", "stepwell", "train", "ekd", "--data", "digits", "--net", f"resnet{FULL}",
        "--depths", *DEPTHS, "--size", str(size), "--epochs", str(epochs), "--out", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def served(run: Path, promise_ms: float, *flags: str) -> Iterator[tuple[str, int, int]]:
    """A server process: its address, and its id."""
    command = [sys.executable, "-m", "stepwell", "serve", str(run), "--slo-ms", f"{promise_ms:g}",
               "--port", "0", "--threads", "1", *flags]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if match := re.search(r"http://([\d.]+):(\d+)", line):
                    yield match[1], int(match[2]), process.pid
                    break
            else:
                raise RuntimeError("the server did not start")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def pictures() -> tuple[list[bytes], list[str]]:
    """Digits as PNG files, and their classes."""
    digits = load_digits()
    files = []
    for values in digits.images:
        file = BytesIO()
        Image.fromarray((values * 15.9).astype(np.uint8)).resize((64, 64)).save(file, "PNG")
        files.append(file.getvalue())
    return files, [str(t) for t in digits.target]


class Generator:
    """Sends requests on connections that it keeps open."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.free = asyncio.Semaphore(OPEN)

    async def send(self, picture: bytes, due: float) -> tuple[int, float, str, str]:
        """Status, seconds since it was due, class and depth of one prediction."""
        async with self.free:
            reader, writer = await self._connection()
            head = (
                f"POST /predict HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: image/png\r\n"
                f"Content-Length: {len(picture)}\r\n\r\n"
            )
            writer.write(head.encode() + picture)
            text = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = re.search(r"content-length: (\d+)", text)
            await reader.readexactly(int(length[1]) if length else 0)
            self.idle.append((reader, writer))
            headers = dict(re.findall(r"stepwell-(\w+): (\S+)", text))
            seconds = time.perf_counter() - due
            return int(text.split()[1]), seconds, headers.get("class", ""), headers.get("depth", "")

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An open connection that the server has not closed meanwhile, or a new one."""
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self.host, self.port)

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self.idle:
            writer.close()


async def replay(
    place: tuple[str, int], arrivals: Sequence[float], files: Sequence[bytes]
) -> tuple[list[tuple[int, float, str, str]], float]:
    """Send the trace; the answers, and the share of a processor that the generator took."""
    generator, tasks = Generator(*place), []
    cpu_start, start = time.process_time(), time.perf_counter()
    for i, arrival in enumerate(arrivals):
        await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
        tasks.append(asyncio.create_task(generator.send(files[i % len(files)], start + arrival)))
    answers = await asyncio.gather(*tasks)
    share = (time.process_time() - cpu_start) / (time.perf_counter() - start)
    generator.close()
    return answers, share


def report(
    answers: Sequence[tuple[int, float, str, str]], share: float, labels: Sequence[str], promise: float,
) -> dict[str, Any]:  # fmt: skip
    """Numbers of one trace."""
    good = [(i, a) for i, a in enumerate(answers) if a[0] == 200 and a[1] <= promise]
    seconds = [a[1] for a in answers if a[0] == 200]
    right = [a[2] == labels[i % len(labels)] for i, a in good]
    depths = [a[3] for a in answers if a[0] == 200]
    p50, p99 = np.quantile(seconds, [0.5, 0.99]).tolist() if seconds else (None, None)
    return {
        "requests": len(answers), "in_time": len(good) / len(answers),
        "refused": sum(a[0] == 429 for a in answers) / len(answers),
        "errors": sum(a[0] >= 500 for a in answers),
        "p50_ms": 1000 * p50 if seconds else None, "p99_ms": 1000 * p99 if seconds else None,
        "accuracy": statistics.mean(right) if right else None,
        "depths": {d: depths.count(d) / len(depths) for d in sorted(set(depths), key=int)},
        "generator_processor": share,
    }  # fmt: skip


def saturated(place: tuple[str, int], files: Sequence[bytes]) -> float:
    """Answers per second of a server that always has `CLIENTS` requests."""

    async def closed() -> float:
        generator, remaining = Generator(*place), iter(range(CLOSED))

        async def client() -> None:
            for i in remaining:
                await generator.send(files[i % len(files)], time.perf_counter())

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        seconds = time.perf_counter() - start
        generator.close()
        return CLOSED / seconds

    return asyncio.run(closed())


def bare(run: Path, files: Sequence[bytes]) -> dict[str, float]:
    """Inputs per second without a server, at the best batch size: decoding, network and words."""
    import stepwell
    from stepwell.memory import keep_freed_memory

    keep_freed_memory()  # as the server does
    served = stepwell.open_network(run).do("serve")
    best = {}
    for row in served.rows:
        rates = []
        for batch in BATCHES:
            start = time.perf_counter()
            for i in range(0, CLOSED, batch):
                served.run([served.read(f) for f in files[i : i + batch]], row, 1)
            rates.append(CLOSED / (time.perf_counter() - start))
        best[row] = max(rates)
    return best


def alone_ms(run: Path, files: Sequence[bytes]) -> float:
    """Milliseconds of one image at the full depth without a server, one by one; the median."""
    import stepwell

    served = stepwell.open_network(run).do("serve")
    times = []
    for file in files[:CLOSED]:
        start = time.perf_counter()
        served.run([served.read(file)], FULL, 1)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def overhead(run: Path, files: Sequence[bytes]) -> dict[str, Any]:
    """Bare predictions a second by depth, those of a server at the full depth, and what it costs."""
    rounds = []
    for _ in range(ROUNDS):
        alone = bare(run, files)
        with served(run, 60_000, "--depths", FULL) as (host, port, _):
            saturated((host, port), files)  # it warms up
            rate = saturated((host, port), files)
        rounds.append({
            "bare_per_second": alone, "served_per_second": rate, "overhead": alone[FULL] / rate - 1,
            "overhead_ms": 1000 * (1 / rate - 1 / alone[FULL]),
        })  # fmt: skip
    return sorted(rounds, key=itemgetter("overhead"))[ROUNDS // 2]


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure() -> dict[str, Any]:
    """Train, then measure every arm at every load."""
    import torch

    torch.set_num_threads(1)
    files, labels = pictures()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        large = Path(folder) / "large"
        train(run, SIZE, EPOCHS)
        train(large, LARGE, LARGE_EPOCHS)
        cost = overhead(run, files)
        rate = cost["served_per_second"]
        promise_ms = PROMISE * alone_ms(run, files)
        arms = {"controller": (), **{d: ("--depths", d) for d in (*DEPTHS, FULL)}}
        result: dict[str, Any] = {"promise_ms": promise_ms, **cost, "large": overhead(large, files)}
        result["rounds"] = []
        for turn in range(ROUNDS):
            measures: dict[str, Any] = {}
            for name, flags in arms.items():
                with served(run, promise_ms, *flags) as (host, port, pid):
                    for load in LOADS:
                        mean = load * rate
                        trace = bursts(0.5 * mean, 2 * mean, seconds=SECONDS, every=SECONDS / 2,
                                       share=1 / 3, seed=turn)  # fmt: skip
                        answers, share = asyncio.run(replay((host, port), trace, files))
                        numbers = report(answers, share, labels, promise_ms / 1000)
                        measures.setdefault(str(load), {})[name] = numbers
                    measures.setdefault("resident", {})[name] = resident(pid)
            result["rounds"].append(measures)
        result["soak"] = soak(run, promise_ms, rate, files)
    return result


def soak(run: Path, promise_ms: float, rate: float, files: Sequence[bytes]) -> dict[str, float]:
    """Resident bytes of a server after a minute and after `SOAK` seconds."""
    with served(run, promise_ms) as (host, port, pid):
        sizes = []
        for seconds in (SOAK / 10, SOAK * 0.9):
            trace = bursts(0.5 * rate, 2 * rate, seconds=seconds, every=20, share=1 / 3)
            asyncio.run(replay((host, port), trace, files))
            sizes.append(resident(pid))
    return {"seconds": SOAK, "resident_early": sizes[0], "resident_late": sizes[1]}
