"""Complex networks, with their nodes in a canonical order. Needs numpy, nothing else.

The order of lines in a file does not matter: nodes are numbered by the colours of Weisfeiler and
Leman's refinement, and by name only where colours are equal. So copies of a network under other
names have nearly the same numbers, too.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.data.pictures.reading import Lines, read_edge_list, read_graphml

#: File names of edge lists by the mark between columns; None: blanks or tabs.
EDGE_LISTS = {".edges": None, ".edgelist": None, ".tsv": "\t", ".csv": ","}
SUFFIXES = {*EDGE_LISTS, ".graphml"}
#: Bytes of a file for each edge that it may have, and for its head.
EDGE_BYTES, HEAD_BYTES = 400, 1 << 16
#: Bits of a weight that count.
BITS = 24
#: Rounds of refinement at most.
ROUNDS = 32


@dataclass(frozen=True, eq=False)
class Network:
    """A complex network: nodes in canonical order, and the edges that leave each in a compressed table.

    The neighbours of node i are `neighbours[start[i] : start[i + 1]]`, in order. Undirected edges stand
    at both ends.

    names: of the nodes.
    weights: of the edges, positive.
    edges: number of edges, of undirected ones each once; loops: of the self-loops among them.
    repeated: number of lines about an edge that had been named before.
    tied: number of nodes that have the structure of another one, so that only names order them; nodes
        of the same neighbours do not count, because their order changes nothing.
    guessed: the file's first line was taken for a header without the usual words of one.
    """

    names: tuple[str, ...]
    start: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    weights: NDArray[np.float64]
    directed: bool
    edges: int
    loops: int
    repeated: int
    tied: int
    guessed: bool

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Number of edges that leave each node."""
        return np.diff(self.start)

    @property
    def total_degrees(self) -> NDArray[np.int64]:
        """Number of edges at each node: directed ones that leave it, and that arrive."""
        arriving = np.bincount(self.neighbours, minlength=len(self.names))
        return self.degrees + arriving * self.directed

    @property
    def relative(self) -> NDArray[np.float64]:
        """The weights over the largest one, to `BITS` bits: so their unit does not matter."""
        return _relative(self.weights)


def read_network(path: str | os.PathLike[str], how: Mapping[str, Any]) -> Network:
    """Read a network from a file; `how` as for `parse_network`. ValueError names a bad file."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is no network file ({', '.join(sorted(SUFFIXES))}): replace it")
    if not path.is_file():
        raise ValueError(f"no network file {path}" if not path.exists() else f"{path} is no file")
    with naming(path):
        return parse_network(content_of(path, how), path.suffix.lower(), how)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file cannot be read, in a ValueError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read network {path} ({error}): correct or remove it") from error


def content_of(path: Path, how: Mapping[str, Any]) -> bytes:
    """The content of a file; ValueError or OSError for one that is too long, or none."""
    if not path.is_file():  # a pipe would block
        raise ValueError("it is no regular file")
    check_bytes(path.stat().st_size, how)
    return path.read_bytes()


def check_bytes(size: int, how: Mapping[str, Any]) -> None:
    """Refuse a file that is longer than one of the largest number of edges; ValueError."""
    most = how["max_edges"] * EDGE_BYTES + HEAD_BYTES
    if size > most:
        raise ValueError(
            f"{size:,} bytes are more than the {most:,} of {how['max_edges']:,} edges: train with a "
            "higher --max-edges"
        )


def parse_network(content: bytes, suffix: str, how: Mapping[str, Any]) -> Network:
    """Read a network from the content of a file.

    Args:
        suffix: of the file's name; "": GraphML if it begins with "<", else an edge list.
        how: "max_edges"; "directed" (None: as the file says); "loops" and "multi_edges".

    Raises:
        ValueError: it is no network; it has no edge; or `how` refuses it.
    """
    if suffix == ".graphml" or (not suffix and content.lstrip()[:1] == b"<"):
        lines = read_graphml(content, how["max_edges"])
    else:
        lines = read_edge_list(content, EDGE_LISTS.get(suffix, "?"), how["max_edges"])
    return numbered(lines, how)


def numbered(lines: Lines, how: Mapping[str, Any]) -> Network:
    """Number the nodes of a network in canonical order; `how` and errors as for `parse_network`."""
    directed = lines.directed if how["directed"] is None else how["directed"]
    return _network(lines, directed, how["loops"], how["multi_edges"])


def _network(lines: Lines, directed: bool, loops: str, multi_edges: str) -> Network:
    """Number the nodes, and treat self-loops and repeated edges as asked."""
    names = [*dict.fromkeys([*lines.sources, *lines.targets, *lines.nodes])]
    index = {name: i for i, name in enumerate(names)}
    ends = np.array(
        [[index[name] for name in side] for side in (lines.sources, lines.targets)], np.int64
    )
    weights = np.ones(ends.shape[1]) if lines.weights is None else np.array(lines.weights, np.float64)
    weightless = int((weights == 0).sum())
    ends, weights = ends[:, weights > 0], weights[weights > 0]
    own = ends[0] == ends[1]
    if own.any() and loops == "refuse":
        raise ValueError(
            f"a self-loop at node {names[ends[0, own][0]]!r}: train with --loops keep or drop"
        )
    if own.all():
        raise ValueError(_without_edge(len(names), weightless, len(own)))
    if loops == "drop":
        ends, weights, own = ends[:, ~own], weights[~own], own[~own]
    if not directed:
        ends = np.sort(ends, axis=0)
    order = np.lexsort((weights, ends[1], ends[0]))  # sums do not depend on the order of lines
    ends, weights = ends[:, order], weights[order]
    first = np.append(True, (np.diff(ends) != 0).any(0))[: ends.shape[1]]
    repeated = int((~first).sum())
    if repeated and multi_edges == "refuse":
        a, b = (names[i] for i in ends[:, ~first][:, 0])
        raise ValueError(
            f"an edge from {a!r} to {b!r} is there twice: train with --multi-edges merge or keep"
        )
    at = np.flatnonzero(first)
    with np.errstate(over="ignore"):
        weights = (np.add if multi_edges == "keep" else np.maximum).reduceat(weights, at)
    if not np.isfinite(weights).all():
        raise ValueError("the weights of an edge that is there twice have no finite sum")
    ends = ends[:, at]
    loop = ends[0] == ends[1]
    edges, loop_count = ends.shape[1], int(loop.sum())
    arrows = ends if directed else np.hstack([ends, ends[::-1][:, ~loop]])
    weights = weights if directed else np.append(weights, weights[~loop])
    colours = _colours(arrows, weights, len(names), directed)
    order = np.array(sorted(range(len(names)), key=lambda i: (colours[i], names[i])))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    arrows = rank[arrows]
    sort = np.lexsort((arrows[1], arrows[0]))
    start = np.searchsorted(arrows[0][sort], np.arange(len(names) + 1))
    ordered = tuple(names[i] for i in order)
    tied = _tied(arrows, weights, np.array(colours, np.uint64)[order])
    return Network(
        ordered, start, arrows[1][sort], weights[sort], directed, edges, loop_count, repeated, tied,
        lines.guessed,
    )  # fmt: skip


def _without_edge(nodes: int, weightless: int, loops: int) -> str:
    """Say that a network has no edge between two nodes, and which edges do not count."""
    counts = {"of weight 0": weightless, "from a node to itself": loops}
    others = ", ".join(
        f"{count} edge{'s' * (count != 1)} {what}" for what, count in counts.items() if count
    )
    count = f"{nodes} node{'s' * (nodes != 1)}"
    but = f" beside {others}" if others else ""
    return f"{count} and no edge between two nodes{but}: a picture needs one"


def _tied(arrows: NDArray[np.int64], weights: NDArray[np.float64], colours: NDArray[np.uint64]) -> int:
    """Count the nodes that share a colour with another one, but not all its neighbours.

    The order of nodes with the same neighbours, and of those that are all joined by edges of one
    weight, changes nothing. Colours are sorted.
    """
    nodes = len(colours)
    first = np.flatnonzero(np.append(True, colours[1:] != colours[:-1]))
    counts = np.diff(np.append(first, nodes))
    group = np.repeat(np.arange(len(first)), counts)
    inside = group[arrows[0]] == group[arrows[1]]
    hashes = _mixed(np.arange(nodes, dtype=np.uint64))
    bits = _mixed(_relative(weights).view(np.uint64))
    outside = np.zeros(nodes, np.uint64)  # hashes of the neighbours of other colours
    for (ends, others), salt in ((arrows, bits), (arrows[::-1], ~bits)):
        np.add.at(outside, ends[~inside], _mixed(hashes[others] ^ salt)[~inside])
    inside &= arrows[0] != arrows[1]
    joined = np.bincount(arrows[0, inside], minlength=nodes)
    lightest, heaviest = np.full(nodes, np.inf), np.full(nodes, -np.inf)
    np.minimum.at(lightest, arrows[0, inside], weights[inside])
    np.maximum.at(heaviest, arrows[0, inside], weights[inside])
    alike = np.minimum.reduceat(outside, first) == np.maximum.reduceat(outside, first)
    alike &= np.minimum.reduceat(lightest, first) >= np.maximum.reduceat(heaviest, first)
    for numbers in (np.minimum, np.maximum):
        within = numbers.reduceat(joined, first)
        alike &= (within == 0) | (within == counts - 1)
    return int(counts[~alike].sum())


def _colours(
    arrows: NDArray[np.int64], weights: NDArray[np.float64], nodes: int, directed: bool
) -> list[int]:
    """Colours of the nodes by Weisfeiler and Leman's refinement, until it tells no more nodes apart."""
    bits = _mixed(_relative(weights).view(np.uint64))
    sides = [(arrows[0], arrows[1], bits)] + [(arrows[1], arrows[0], ~bits)] * directed
    tables = []
    for ends, others, salt in sides:
        sort = np.argsort(ends, kind="stable")
        present, at = np.unique(ends[sort], return_index=True)
        tables.append((present, at, others[sort], salt[sort]))
    colours = np.zeros(nodes, np.uint64)
    known = 0
    for _ in range(ROUNDS):
        sums = _mixed(colours)
        for present, at, others, salt in tables:
            sums[present] += np.add.reduceat(_mixed(colours[others] ^ salt), at)
        colours = _mixed(sums)
        count = len(np.unique(colours))
        if count in (known, nodes):
            break
        known = count
    values: list[int] = colours.tolist()
    return values


def _relative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    share = np.maximum(weights / weights.max(), np.finfo(float).tiny)
    fraction, exponent = np.frexp(share)
    return np.ldexp(np.round(fraction * 2**BITS) / 2**BITS, exponent)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each number (splitmix64)."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def edge_list(network: Network) -> Iterator[str]:
    """The lines of an edge list that `read_network` reads as this network, but for isolated nodes."""
    weighted = bool((network.weights != 1).any())
    yield f"# {'directed' if network.directed else 'undirected'}{' weighted' * weighted}\n"
    sources = np.repeat(np.arange(len(network.names)), network.degrees)
    for source, target, weight in zip(
        sources.tolist(), network.neighbours.tolist(), network.weights.tolist(), strict=True
    ):
        if network.directed or source <= target:
            cells = [network.names[source], network.names[target], *([f"{weight:.17g}"] * weighted)]
            yield "\t".join(cells) + "\n"
