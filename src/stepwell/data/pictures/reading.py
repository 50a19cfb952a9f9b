"""Edges of complex networks in files: edge lists and GraphML. Needs nothing beside Python."""

import csv
import io
import math
import re
from collections import Counter
from typing import NamedTuple
from xml.parsers import expat

#: Words of a header line, none of which is taken for a node.
HEADER = {
    "source", "target", "from", "to", "weight", "node1", "node2", "node_1", "node_2", "id1", "id2",
    "u", "v", "src", "dst", "value",
}  # fmt: skip
#: Those of them that name a weight.
WEIGHTS = {"weight", "value"}
#: Words for the marks between columns.
MARKS = {None: "blanks", "\t": "tabs", ",": "commas"}
#: What is wrong with a line.
OPEN = "a double quote is not closed"
#: Words in a head, "# directed weighted nodes=9".
DIRECTIONS = {
    "directed": True, "directed=true": True, "undirected": False, "directed=false": False,
}  # fmt: skip
#: Elements of GraphML inside one another, and characters of a number in it, at most.
NESTED, DIGITS = 64, 64


class Lines(NamedTuple):
    """The edges of a file as they stand in it.

    nodes: may hold further nodes, without an edge.
    guessed: the first line was taken for a header without the usual words of one.
    """

    sources: list[str]
    targets: list[str]
    weights: list[float] | None
    nodes: list[str]
    directed: bool
    guessed: bool = False


def read_edge_list(content: bytes, mark: str | None, most: int) -> Lines:
    """Read an edge list of two or three columns, maybe behind a head such as "# directed weighted".

    Args:
        mark: between columns; None: blanks or tabs; "?": tabs or commas if the first line has them.
        most: edges.

    Raises:
        ValueError: it is no edge list, or has more edges; the message names the line.
    """
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8 text") from error
    if b"\0" in content:
        raise ValueError("a zero byte: it is no text")
    numbers, lines, head = list[int](), list[str](), _Head()
    for number, line in enumerate(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig"), 1):
        line = line.strip() if mark is None else line.rstrip("\n")
        if line.lstrip()[:1] in ("#", "%"):
            if not lines:
                head.read(line.lstrip(), f"line {number}")
        elif line.strip():
            numbers.append(number)
            lines.append(line)
            if len(lines) > most + 1:  # one line may be a header
                raise ValueError(_too_many(most))
    if mark == "?":
        mark = next((m for m in ("\t", ",") if lines and m in lines[0]), None)
    # columns instead of rows: a list for each line would keep Python's garbage collector busy
    sources, targets, last, widths = list[str](), list[str](), list[str](), list[int]()
    first = list[str]()
    for number, line in zip(numbers, lines, strict=True):
        cells = _cells(line, mark, number)
        sources.append(cells[0].strip())
        targets.append(cells[1].strip() if len(cells) > 1 else "")
        last.append(cells[-1].strip())
        widths.append(len(cells))
        first = first or [cell.strip() for cell in cells]
    usual, guessed = _header(first, numbers[:1], sources[1:], targets[1:], last[1:])
    if usual or guessed:
        for column in (numbers, sources, targets, last, widths):
            del column[0]
    if len(numbers) > most:
        raise ValueError(_too_many(most))
    for number, width, *ends in zip(numbers, widths, sources, targets, strict=True):
        _check_columns(number, width, widths[0], ends, mark)
    weights = None
    if widths[:1] == [3]:
        weights = [weight_of(text, f"line {n}") for text, n in zip(last, numbers, strict=True)]
    alone = head.alone({*sources, *targets}, most)
    return Lines(sources, targets, weights, alone, head.directed, guessed)


def _too_many(most: int) -> str:
    return f"more than {most:,} edges: train with a higher --max-edges"


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
            raise ValueError(
                f"{self.nodes:,} nodes are more than twice {most:,}: train with a higher --max-edges"
            )
        if 0 < self.nodes < len(named):
            raise ValueError(f"the head says nodes={self.nodes}, and the edges name {len(named)}")
        numbers = [str(i) for i in range(self.nodes)]
        return numbers if named <= {*numbers} else []


def _cells(line: str, mark: str | None, number: int) -> list[str]:
    """The columns of a line; double quotes may surround each."""
    if line.endswith("}"):  # as networkx writes what it knows of an edge
        blank = mark or r"\s"
        ends, *known = re.split(rf"{blank}\s*(?={{)", line, maxsplit=1)
        if known and len(ends.split(mark)) == 2:
            weight = re.search(r"['\"]weight['\"]: *([^,}]*)", known[0])
            line = f"{ends}{mark or ' '}{weight[1] if weight else 1}"
    if '"' not in line:
        cells = line.split(mark)
    elif mark is None:
        words = re.findall(r'"[^"]*"|\S+', line)
        if any(word[0] == '"' and (word[-1] != '"' or len(word) == 1) for word in words):
            raise ValueError(f"line {number}: {OPEN}")
        cells = [word.strip('"') for word in words]
    else:
        try:
            (cells,) = csv.reader([line], delimiter=mark, skipinitialspace=True, strict=True)
        except csv.Error as error:
            what = OPEN if "end of data" in str(error) else error
            raise ValueError(f"line {number}: {what}") from error
    if mark is None and ("," in line or ";" in line) and any(c[-1:] in (",", ";") for c in cells[:2]):
        raise ValueError(f"line {number}: commas between columns: name the file .csv, or take them out")
    return cells


def _header(
    first: list[str], number: list[int], sources: list[str], targets: list[str], last: list[str]
) -> tuple[bool, bool]:
    """Tell whether the first line is a header: by the usual words, or by the numbers below it.

    It names no node of another line. Without the usual words, it holds no number, and below it the
    ends of all edges are numbers, or the weights (`last`).
    """
    if not first or not {*first[:2]}.isdisjoint([*sources, *targets]):
        return False, False
    words = [cell.lower() for cell in first]
    if {*words[:2]} <= HEADER:
        if before := [word for word in words[:2] if word in WEIGHTS]:
            raise ValueError(
                f"line {number[0]}: a column {before[0]!r} before both ends of the edges: write "
                "source, target and then the weight"
            )
        return True, False
    if not last or any(map(_is_number, first)) or "" in first:
        return False, False
    ends = all(map(_is_number, sources)) and all(map(_is_number, targets))
    weights = len(first) == 3 and all(map(_is_number, last))
    return False, len(first) in (2, 3) and (ends or weights)


def _check_columns(
    number: int, width: int, expected: int, ends: list[str], mark: str | None
) -> None:  # fmt: skip
    """Refuse a line without source and target, or without as many columns as the first edge."""
    count = f"line {number} has {width} column{'s' * (width != 1)}"
    if expected not in (2, 3):
        raise ValueError(
            f"{count}: write source, target and maybe a weight, with {MARKS[mark]} between them"
        )
    if width != expected:
        raise ValueError(
            f"{count}, and the lines above have {expected}: {MARKS[mark]} stand between columns, and "
            "either every edge has a weight or none has"
        )
    if "" in ends:
        raise ValueError(f"line {number} lacks a source or a target")


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and math.isfinite(float(text))
    except ValueError:
        return False


def weight_of(text: str, where: str) -> float:
    """Read a weight, 0 or more; ValueError says where it stands."""
    try:
        weight = float(text.replace("_", "?"))  # Python reads 1_000, other programs do not
    except ValueError:
        raise ValueError(f"{where}: the weight {text.strip()[:20]!r} is no number") from None
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"{where}: the weight {text.strip()[:20]} is negative or not finite")
    return weight


class _GraphML:
    """Reads GraphML element by element; document types, entities and hyperedges are refused."""

    def __init__(self, most: int) -> None:
        self.most, self.depth = most, 0
        self.lines = Lines([], [], [], [], False)
        self.directed: bool | None = None
        self.space = ""  # the namespace of the root: elements of others are not GraphML's
        self.weights = set[str]()  # keys of weights: networkx writes one for each type of number
        self.keys = set[str]()  # all that are declared
        self.usual: float | None = None  # weight of an edge that has none
        self.weighed = False  # the edge has its weight
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
        space, _, tag = tag.rpartition(" ")
        self.depth += 1
        where = f"line {self.parser.CurrentLineNumber}"
        if self.depth > NESTED:
            raise ValueError(f"{where}: elements are nested more than {NESTED} deep")
        if self.depth == 1:
            if tag != "graphml":
                raise ValueError(f"it begins with <{tag[:20]}> instead of <graphml>")
            self.space = space
        elif space != self.space:
            return
        if tag == "hyperedge":
            raise ValueError(f"{where}: hyperedges join more than two nodes, which no picture shows")
        if tag == "key":
            of_edges, id = attributes.get("for", "all") in ("edge", "all"), attributes.get("id", "")
            self.keys.add(id)
            if of_edges and attributes.get("attr.name", id).lower() == "weight":
                if self.directed is not None:
                    raise ValueError(f"{where}: the key of the weights stands behind the <graph>")
                self.weights.add(id)
                self.inside = "key"
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
            if not (attributes.get("source") and attributes.get("target")):
                raise ValueError(f"{where}: an edge without source and target")
            one_way = attributes.get("directed")
            if one_way is not None and (one_way.lower() in ("true", "1")) != self.directed:
                raise ValueError(f"{where}: directed and undirected edges are mixed")
            self.lines.sources.append(attributes["source"])
            self.lines.targets.append(attributes["target"])
            assert self.lines.weights is not None
            self.lines.weights.append(1.0 if self.usual is None else self.usual)
            self.inside, self.weighed = "edge", False
            self.check(len(self.lines.sources), "edges")
        elif (
            tag == "data" and self.inside == "edge" and self.is_weight(attributes.get("key", ""))
        ) or (tag == "default" and self.inside == "key"):
            self.text = []

    def is_weight(self, key: str) -> bool:
        """Tell whether a key is one of the weights: a declared one, or an undeclared "weight"."""
        if self.weights:
            return key in self.weights
        return key == "weight" and key not in self.keys

    def check(self, count: float, what: str) -> None:
        if count > self.most:
            raise ValueError(f"more than {self.most:,} {what}: train with a higher --max-edges")

    def characters(self, text: str) -> None:
        if self.text is not None:
            self.text.append(text)
            if sum(map(len, self.text)) > DIGITS:
                raise ValueError(f"line {self.parser.CurrentLineNumber}: the weight is no number")

    def end(self, tag: str) -> None:
        self.depth -= 1
        space, _, tag = tag.rpartition(" ")
        if space != self.space:
            return
        if self.text is not None:
            where = f"line {self.parser.CurrentLineNumber}"
            weight = weight_of("".join(self.text), where)
            self.text = None
            self.keep(weight, where)
        elif tag in ("key", "edge"):
            self.inside = ""

    def keep(self, weight: float, where: str) -> None:
        """Take the weight of the present edge, or that of edges without one."""
        if self.inside == "edge":
            if self.weighed:
                raise ValueError(f"{where}: a second weight of one edge")
            assert self.lines.weights is not None
            self.lines.weights[-1], self.weighed = weight, True
        elif self.usual not in (None, weight):
            raise ValueError(f"{where}: a second weight for edges that have none")
        else:
            self.usual = weight


def read_graphml(content: bytes, most: int) -> Lines:
    """Read GraphML of at most `most` edges; ValueError if it is none, or contradicts itself."""
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
