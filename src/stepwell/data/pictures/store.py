"""Pictures of networks, drawn once: each stands in a cache under a hash of its file and its settings.

Large sets are drawn by two processes or more. A process that is killed leaves whole pictures only, and
the next one draws the others: a picture depends on its file and settings alone.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from stepwell.data.pictures.network import Network, content_of, naming, parse_network
from stepwell.data.pictures.picture import Picture, draw
from stepwell.device import cores
from stepwell.files import cache_folder

Item = TypeVar("Item")
#: Changes when the same file and settings give another picture.
VERSION = 6
#: Numbers about each network and its picture.
FACTS = (
    "nodes", "edges", "parts", "loops", "repeated", "degree_mean", "degree_std", "degree_max",
    "axis_gap", "skewness", "drawn", "tied", "directed", "guessed",
)  # fmt: skip
#: Bytes of the checksum at the end of a file in the cache.
CHECKSUM = 16
#: Networks to draw from which on a second process pays off.
MANY = 200
#: The limit of threads, and a place for each thread that draws within it.
_LOCK, _LIMITS = threading.Lock(), list[Any]()
#: Variable of the environment that keeps drawing in one process.
ALONE = "STEPWELL_ONE_PROCESS"


class Drawn(NamedTuple):
    """A picture (size, size, 3) with the hash of its file and the numbers of `FACTS`."""

    key: str
    pixels: NDArray[np.uint8]
    facts: NDArray[np.float64]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let linear algebra run on one thread: sums, and so pictures, do not depend on their number.

    The limit is one of the process, so threads that draw side by side share it.
    """
    from threadpoolctl import threadpool_limits

    with _LOCK:
        _LIMITS.append(threadpool_limits(1, "blas") if not _LIMITS else None)
    try:
        yield
    finally:
        with _LOCK:
            first = _LIMITS[0]
            _LIMITS.pop()
            if not _LIMITS and first is not None:
                first.restore_original_limits()


def pictures(
    paths: Sequence[Path], how: Mapping[str, Any], size: int
) -> tuple[list[Drawn], dict[Path, ValueError]]:
    """The pictures of files, from the cache or drawn now; and the errors of files that are no networks.

    `how` and `size` as for `draw`.
    """
    cache = _folder(how, size)
    cached = {path: _cached(path, cache, how, size) for path in paths}
    missing = [path for path, picture in cached.items() if picture is None]
    helpers = _helpers(missing, how, size)
    drawn, bad = [], dict[Path, ValueError]()
    try:
        with one_thread():
            quiet = not helpers and len(missing) < MANY
            for path in shown(missing[:: len(helpers) + 1], "drawing networks", quiet=quiet):
                with contextlib.suppress(ValueError):
                    _picture(path, cache, how, size)
            for helper in helpers:
                helper.wait()
            for path in paths:
                try:
                    drawn.append(cached[path] or _picture(path, cache, how, size))
                except ValueError as error:
                    bad[path] = error
    finally:
        for helper in helpers:
            helper.kill()
    return drawn, bad


def _helpers(missing: Sequence[Path], how: Mapping[str, Any], size: int) -> list[Any]:
    """Processes that draw the files which this process leaves to them."""
    count = min(cores() - 1, len(missing) // MANY) * (os.environ.get(ALONE) is None)
    started = []
    for number in range(1, count + 1):
        paths = [str(path.resolve()) for path in missing[number :: count + 1]]
        job = {"how": dict(how), "size": size, "paths": paths, "parent": os.getpid()}
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import work; work()"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # this process draws what is missing in the end
            process.stdin.write(json.dumps(job))
            process.stdin.close()
        started.append(process)
    return started


def work() -> None:
    """Draw the files of a job, which standard input names, into the cache; for a helper process."""
    job = json.load(sys.stdin)
    cache = _folder(job["how"], job["size"])
    with one_thread():
        for path in map(Path, job["paths"]):
            if os.getppid() != job["parent"]:  # the process that asked is gone
                return
            with contextlib.suppress(ValueError):
                _picture(path, cache, job["how"], job["size"])


def shown(items: Sequence[Item], what: str, *, quiet: bool) -> Iterator[Item]:
    """Give the items, with a progress bar on standard error where a person sees it."""
    if quiet or not sys.stderr.isatty() or os.environ.get("STEPWELL_QUIET"):
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, console=Console(stderr=True))


def _folder(how: Mapping[str, Any], size: int) -> Path:
    """The part of the cache for some settings."""
    settings = json.dumps([VERSION, size, {**how, "max_edges": 0}], sort_keys=True)
    return cache_folder("pictures") / hashlib.sha256(settings.encode()).hexdigest()[:16]


def _key(content: bytes, path: Path) -> str:
    return hashlib.blake2b(content, digest_size=16, key=path.suffix.lower().encode()).hexdigest()


def _cached(path: Path, cache: Path, how: Mapping[str, Any], size: int) -> Drawn | None:
    """The picture of a file from the cache, if it is there; None for a bad file, too."""
    with contextlib.suppress(ValueError, OSError):
        return _stored(cache, _key(content_of(path, how), path), how, size)
    return None


def _stored(cache: Path, key: str, how: Mapping[str, Any], size: int) -> Drawn | None:
    """The picture under a key, if it is there and whole."""
    try:
        stored = _place(cache, key).read_bytes()
    except OSError:
        return None
    whole, mark = stored[:-CHECKSUM], stored[-CHECKSUM:]
    if len(whole) != size * size * 3 + 8 * len(FACTS) or mark != _checksum(whole):
        return None
    pixels = np.frombuffer(whole[: size * size * 3], np.uint8).reshape(size, size, 3)
    facts = np.frombuffer(whole[size * size * 3 :], np.float64)
    return Drawn(key, pixels, facts) if facts[1] <= how["max_edges"] else None


def _place(cache: Path, key: str) -> Path:
    return cache / key[:2] / key


def _picture(path: Path, cache: Path, how: Mapping[str, Any], size: int) -> Drawn:
    """The picture of a file, from the cache or drawn now and kept; ValueError names a bad file."""
    with naming(path):
        content = content_of(path, how)
        key = _key(content, path)
        if one := _stored(cache, key, how, size):
            return one
        network = parse_network(content, path.suffix.lower(), how)
        shown = draw(network, how, size)
    facts = facts_of(network, shown)
    whole = shown.pixels.tobytes() + facts.tobytes()
    place = _place(cache, key)
    with contextlib.suppress(OSError):  # a full disk, or one that cannot be written, costs time only
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            try:
                file.write(whole + _checksum(whole))
                file.close()
                os.replace(file.name, place)
            except OSError:
                os.unlink(file.name)
                raise
    return Drawn(key, shown.pixels, facts)


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECKSUM).digest()


def facts_of(network: Network, shown: Picture) -> NDArray[np.float64]:
    """The numbers of `FACTS`."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    nodes = len(network.names)
    table = sparse.csr_array((network.weights, network.neighbours, network.start), shape=(nodes, nodes))
    degrees = network.total_degrees
    alone = (degrees == 0).sum()  # nodes without an edge, which are not drawn
    parts = connected_components(table, directed=False)[0] - alone
    numbers = [
        nodes, network.edges, parts, network.loops, network.repeated, degrees.mean(), degrees.std(),
        degrees.max(), shown.axis_gap, shown.skewness, (shown.cells[0, :, 0] >= 0).sum(), network.tied,
        network.directed, network.guessed,
    ]  # fmt: skip
    return np.array(numbers, np.float64)
