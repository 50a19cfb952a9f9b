"""Complex networks, read from edge lists and GraphML. Needs numpy, nothing else.

The order of lines in a file does not matter: nodes are numbered by the colours of Weisfeiler and
Leman's refinement, and by name only where colours are equal. So copies of a network under other
names have nearly the same numbers, too.
"""

import csv
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

#: File names of edge lists by the mark between columns; None: blanks or tabs.
EDGE_LISTS = {".edges": None, ".edgelist": None, ".tsv": "\t", ".csv": ","}
SUFFIXES = {*EDGE_LISTS, ".graphml"}
#: Words of a header line, none of which is taken for a node.
HEADER = {
    "source", "target", "from", "to", "weight", "node1", "node2", "u", "v", "src", "dst", "value",
}  # fmt: skip
#: Bytes of a file for each edge that it may have, and for its head.
EDGE_BYTES, HEAD_BYTES = 400, 1 << 16
#: Words in a head, "# directed weighted nodes=9".
DIRECTIONS = {
    "directed": True, "directed=true": True, "undirected": False, "directed=false": False,
}  # fmt: skip
#: Bits of a weight that count.
BITS = 24
#: Rounds of refinement at most, elements of GraphML inside one another, characters of a number in it.
ROUNDS, NESTED, DIGITS = 32, 64, 64


@dataclass(frozen=True, eq=False)
class Network:
    """A complex network: nodes in canonical order, and the edges that leave each in a compressed table.

    The neighbours of node i are `neighbours[start[i] : start[i + 1]]`, in order. Undirected edges stand
    at both ends.

    names: of the nodes.
    weights: of the edges, positive.
    edges: number of edges, of undirected ones each once; loops: of the self-loops among them.
    repeated: number of lines about an edge that had been named before.
    """

    names: tuple[str, ...]
    start: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    weights: NDArray[np.float64]
    directed: bool
    edges: int
    loops: int
    repeated: int

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Number of edges that leave each node."""
        return np.diff(self.start)

    @property
    def relative(self) -> NDArray[np.float64]:
        """The weights over the largest one, to `BITS` bits: so their unit does not matter."""
        return _relative(self.weights)


class _Lines(NamedTuple):
    """The edges of a file as they stand in it; `nodes` may hold further nodes, without an edge."""

    sources: list[str]
    targets: list[str]
    weights: list[float] | None
    nodes: list[str]
    directed: bool


def read_network(path: str | os.PathLike[str], how: Mapping[str, Any]) -> Network:
    """Read a network from a file; `how` as for `parse_network`. ValueError names a bad file."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is no network file ({', '.join(sorted(SUFFIXES))}): replace it")
    if not path.is_file():
        raise ValueError(f"no network file {path}" if not path.exists() else f"{path} is no file")
    try:
        check_bytes(path.stat().st_size, how)
        return parse_network(path.read_bytes(), path.suffix.lower(), how)
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read network {path} ({error}): correct or remove it") from error


def check_bytes(size: int, how: Mapping[str, Any]) -> None:
    """Refuse a file that is longer than one of the largest number of edges; ValueError."""
    most = how["max_edges"] * EDGE_BYTES + HEAD_BYTES
    if size > most:
        raise ValueError(
            f"{size:,} bytes are more than the {most:,} of {how['max_edges']:,} edges: raise "
            "--max-edges"
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
        lines = _graphml(content, how["max_edges"])
    else:
        lines = _edge_list(content, EDGE_LISTS.get(suffix, "?"), how["max_edges"])
    directed = lines.directed if how["directed"] is None else how["directed"]
    return _network(lines, directed, how["loops"], how["multi_edges"])


def _edge_list(content: bytes, mark: str | None, most: int) -> _Lines:
    """Two or three columns: source, target, weight; maybe behind a head, "# directed weighted"."""
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8 text") from error
    if b"\0" in content:
        raise ValueError("a zero byte: it is no text")
    rows, head = list[tuple[int, str]](), _Head()
    for number, line in enumerate(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig"), 1):
        line = line.strip() if mark is None else line.rstrip("\n")
        if line.lstrip()[:1] in ("#", "%"):
            if not rows:
                head.read(line.lstrip(), f"line {number}")
        elif line.strip():
            rows.append((number, line))
            if len(rows) > most + 1:
                raise ValueError(f"more than {most:,} edges: raise --max-edges")
    if mark == "?":
        first = rows[0][1] if rows else ""
        mark = next((m for m in ("\t", ",") if m in first), None)
    table = [(number, _cells(line, mark, f"line {number}")) for number, line in rows]
    if table and _is_header(table[0][1]):
        names = {cell.strip() for _, cells in table[1:] for cell in cells[:2]}
        if not names.intersection(cell.strip() for cell in table[0][1][:2]):
            del table[0]
    width = len(table[0][1]) if table else 2
    for number, cells in table:
        if len(cells) != width or width not in (2, 3) or not all(map(str.strip, cells[:2])):
            what = "2 or 3 columns" if width not in (2, 3) else f"{width} columns"
            raise ValueError(
                f"line {number} has {len(cells)}: {what} are needed, source, target and maybe a weight"
            )
    sources, targets = ([cells[i].strip() for _, cells in table] for i in (0, 1))
    weights = [_weight(cells[2], f"line {n}") for n, cells in table] if width == 3 else None
    return _Lines(sources, targets, weights, head.alone({*sources, *targets}, most), head.directed)


class _Head:
    """The statements of comments before the first edge, each up to its first unknown word."""

    def __init__(self) -> None:
        self.said: bool | None = None
        self.nodes = 0

    @property
    def directed(self) -> bool:
        """True if a comment says so."""
        return bool(self.said)

    def read(self, line: str, where: str) -> None:
        """Read a comment."""
        if line.lower().startswith("%%matrixmarket"):
            raise ValueError("a MatrixMarket file: write an edge list, source and target")
        for word in line[1:].lower().replace(",", " ").replace(";", " ").split():
            if word in DIRECTIONS:
                if self.said not in (None, DIRECTIONS[word]):
                    raise ValueError(f"{where}: the head says both directed and undirected")
                self.said = DIRECTIONS[word]
            elif word.startswith("nodes="):
                count = word[6:]
                if not (count.isascii() and count.isdecimal() and len(count) < 12):
                    raise ValueError(f"{where}: {word[:30]!r} in the head is no number of nodes")
                self.nodes = int(count)
            elif word not in ("weighted", "unweighted"):
                return

    def alone(self, named: set[str], most: int) -> list[str]:
        """The names of all nodes, if they are numbers and the head says how many there are."""
        if self.nodes > 2 * most:
            raise ValueError(f"{self.nodes:,} nodes are more than twice {most:,}: raise --max-edges")
        if 0 < self.nodes < len(named):
            raise ValueError(f"the head says nodes={self.nodes}, and the edges name {len(named)}")
        numbers = [str(i) for i in range(self.nodes)]
        return numbers if named <= {*numbers} else []


def _cells(line: str, mark: str | None, where: str) -> list[str]:
    """The columns of a line; double quotes may surround each."""
    if mark is None and line.endswith("}"):  # as networkx writes what it knows of an edge
        line, brace, known = line.partition("{")
        weight = re.search(r"['\"]weight['\"]: *([^,}]*)", brace + known)
        line += weight[1] if weight else ""
    if '"' not in line:
        cells = line.split(mark)
    elif mark is None:
        cells = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
    else:
        try:
            (cells,) = csv.reader([line], delimiter=mark, skipinitialspace=True)
        except csv.Error as error:
            raise ValueError(f"{where}: {error}") from error
    if mark is None and any(cell[-1:] in (",", ";") for cell in cells[:2]):
        raise ValueError(f"{where}: commas between columns: name the file .csv, or take them out")
    return cells


def _is_header(cells: list[str]) -> bool:
    return {cell.strip().lower() for cell in cells[:2]} <= HEADER


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise ValueError(f"{where}: the weight {text.strip()[:20]!r} is no number") from None
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"{where}: the weight {text.strip()[:20]} is negative or not finite")
    return weight


class _GraphML:
    """Reads GraphML element by element; document types, entities and hyperedges are refused."""

    def __init__(self, most: int) -> None:
        self.most, self.depth = most, 0
        self.lines = _Lines([], [], [], [], False)
        self.directed: bool | None = None
        self.key = ""  # of the weights
        self.usual = 1.0  # weight of an edge that has none
        self.inside = ""  # "key" of the weights, or "edge"
        self.text: list[str] | None = None  # of the weight that is being read
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.characters
        self.parser.StartDoctypeDeclHandler = self.refuse
        self.parser.EntityDeclHandler = self.refuse

    def refuse(self, *_: object) -> None:
        raise ValueError("a document type or an entity, which GraphML does not need: it is refused")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        tag = tag.rpartition(" ")[2]
        self.depth += 1
        where = f"line {self.parser.CurrentLineNumber}"
        if self.depth > NESTED:
            raise ValueError(f"{where}: elements are nested more than {NESTED} deep")
        if self.depth == 1 and tag != "graphml":
            raise ValueError(f"it begins with <{tag[:20]}> instead of <graphml>")
        if tag == "hyperedge":
            raise ValueError(f"{where}: hyperedges join more than two nodes, which no picture shows")
        if tag == "key":
            of_edges = attributes.get("for", "all") in ("edge", "all")
            if of_edges and attributes.get("attr.name", "").lower() == "weight":
                if self.key:
                    raise ValueError(f"{where}: a second weight of edges: one is drawn")
                self.key, self.inside = attributes.get("id", ""), "key"
        elif tag == "graph":
            if self.directed is not None:
                raise ValueError(f"{where}: a second graph: one file holds one network")
            default = attributes.get("edgedefault", "undirected").lower()
            if default not in DIRECTIONS:
                raise ValueError(
                    f"{where}: edgedefault {default[:20]!r} is neither directed nor undirected"
                )
            self.directed = DIRECTIONS[default]
        elif tag in ("node", "edge") and self.directed is None:
            raise ValueError(f"{where}: a <{tag}> outside the <graph>")
        elif tag == "node":
            if not attributes.get("id"):
                raise ValueError(f"{where}: a node without an id")
            self.lines.nodes.append(attributes["id"])
            self.check(len(self.lines.nodes) / 2, "nodes")
        elif tag == "edge":
            if not {"source", "target"} <= attributes.keys():
                raise ValueError(f"{where}: an edge without source and target")
            one_way = attributes.get("directed")
            if one_way is not None and (one_way == "true") != self.directed:
                raise ValueError(f"{where}: directed and undirected edges are mixed")
            self.lines.sources.append(attributes["source"])
            self.lines.targets.append(attributes["target"])
            assert self.lines.weights is not None
            self.lines.weights.append(self.usual)
            self.inside = "edge"
            self.check(len(self.lines.sources), "edges")
        elif (
            tag == "data" and self.inside == "edge" and attributes.get("key") == (self.key or "weight")
        ) or (tag == "default" and self.inside == "key"):
            self.text = []

    def check(self, count: float, what: str) -> None:
        if count > self.most:
            raise ValueError(f"more than {self.most:,} {what}: raise --max-edges")

    def characters(self, text: str) -> None:
        if self.text is not None:
            self.text.append(text)
            if sum(map(len, self.text)) > DIGITS:
                raise ValueError(f"line {self.parser.CurrentLineNumber}: the weight is no number")

    def end(self, tag: str) -> None:
        self.depth -= 1
        if self.text is not None:
            assert self.lines.weights is not None
            weight = _weight("".join(self.text), f"line {self.parser.CurrentLineNumber}")
            self.text = None
            if self.inside == "edge":
                self.lines.weights[-1] = weight
            else:
                self.usual = weight
        elif tag.rpartition(" ")[2] in ("key", "edge"):
            self.inside = ""


def _graphml(content: bytes, most: int) -> _Lines:
    reader = _GraphML(most)
    try:
        reader.parser.Parse(content, True)
    except (expat.ExpatError, LookupError) as error:  # the latter for an unknown encoding
        raise ValueError(f"no XML: {error}") from error
    if reader.directed is None:
        raise ValueError("no <graph> in it")
    nodes = {*reader.lines.nodes}
    if len(nodes) < len(reader.lines.nodes):
        twice = next(n for n, count in Counter(reader.lines.nodes).items() if count > 1)
        raise ValueError(f"two nodes have the id {twice[:40]!r}")
    for end in (*reader.lines.sources, *reader.lines.targets):
        if nodes and end not in nodes:
            raise ValueError(f"an edge to {end[:40]!r}, which is no node of the file")
    return reader.lines._replace(directed=reader.directed)


def _network(lines: _Lines, directed: bool, loops: str, multi_edges: str) -> Network:
    """Number the nodes, and treat self-loops and repeated edges as asked."""
    names = [*dict.fromkeys([*lines.sources, *lines.targets, *lines.nodes])]
    index = {name: i for i, name in enumerate(names)}
    ends = np.array(
        [[index[name] for name in side] for side in (lines.sources, lines.targets)], np.int64
    )
    weights = np.ones(ends.shape[1]) if lines.weights is None else np.array(lines.weights, np.float64)
    ends, weights = ends[:, weights > 0], weights[weights > 0]
    own = ends[0] == ends[1]
    if own.any() and loops == "refuse":
        raise ValueError(f"a self-loop at node {names[ends[0, own][0]]!r}: use --loops keep or drop")
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
        raise ValueError(f"an edge from {a!r} to {b!r} is there twice: use --multi-edges merge or keep")
    if not (ends[0] != ends[1]).any():
        count = f"{len(names)} node{'s' * (len(names) != 1)}"
        raise ValueError(f"{count} and no edge between two nodes: a picture needs one")
    at = np.flatnonzero(first)
    with np.errstate(over="ignore"):
        weights = (np.add if multi_edges == "keep" else np.maximum).reduceat(weights, at)
    if not np.isfinite(weights).all():
        raise ValueError("the weights of an edge that is there twice have no finite sum")
    ends = ends[:, at]
    loop = ends[0] == ends[1]
    edges, found = ends.shape[1], int(loop.sum())
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
    return Network(
        ordered, start, arrows[1][sort], weights[sort], directed, edges, found, repeated
    )  # fmt: skip


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
