"""Knowledge graphs as text: one triple a line, head, relation and tail, separated by tabs."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from difflib import get_close_matches
from functools import lru_cache
from heapq import nlargest
from pathlib import Path
from reprlib import repr as shortened
from typing import SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepwell.data.loader import seed_of
from stepwell.files import write_whole

#: Head, relation and tail by name.
Fact = tuple[str, str, str]
#: Characters of a name, at most: more is a document that slipped into a column.
LONGEST_NAME = 4096
#: Names that are compared letter by letter with one that is not there, at most.
COMPARED = 10_000
#: How files begin that are packed.
PACKED = {b"\x1f\x8b": "gzip", b"PK\3\4": "zip", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


def read_triples(path: Path, *, empty: bool = False) -> list[Fact]:
    """The distinct triples of a file, in order. Empty lines do not count; repeated ones are noted.

    Args:
        empty: whether there may be none.

    Raises:
        ValueError: a line is malformed (its number is said), the file is packed, no text, or has no
            triples.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file of triples")
    facts: list[Fact] = []
    with path.open("rb") as file:
        start = file.peek(8)[:8]
        if packed := next((how for mark, how in PACKED.items() if start.startswith(mark)), None):
            raise ValueError(
                f"{path} is packed ({packed}): unpack it, triples are read as plain text"
            )
        for number, line in enumerate(file, start=1):
            if line.strip(b" \r\n\xef\xbb\xbf"):
                facts.append(_parsed(line, f"{path}, line {number}"))
    distinct = list(dict.fromkeys(facts))
    if not distinct and not empty:
        raise ValueError(f"{path} has no triples: write one a line, HEAD<tab>RELATION<tab>TAIL")
    if len(distinct) < len(facts):
        warnings.warn(
            f"{path}: {len(facts) - len(distinct):,} of {len(facts):,} lines repeat others and "
            "count once",
            stacklevel=2,
        )
    return distinct


def write_triples(path: Path, facts: Iterable[Fact]) -> None:
    """Write triples as `read_triples` reads them, whole or not at all."""
    write_whole(path, "".join("\t".join(fact) + "\n" for fact in facts).encode())


def check_fact(fact: object, where: str) -> Fact:
    """Three names that a file of triples can hold, and that are read from it as they were written.

    Raises:
        ValueError: there are not three; one is empty, very long or no Unicode text, begins or ends with
            a blank, or holds a tab or a line break.
    """
    if (
        not isinstance(fact, Sequence)
        or isinstance(fact, str)
        or len(fact) != 3
        or not all(isinstance(name, str) for name in fact)
    ):
        raise ValueError(
            f"{where}: a triple is a head, a relation and a tail, not {shortened(fact)}"
        )
    for name in fact:
        if wrong := _wrong_with(name):
            raise ValueError(f"{where}: {shortened(name)} is no name: {wrong}")
    return fact[0], fact[1], fact[2]


def _wrong_with(name: str) -> str | None:
    if not name.strip() or any(mark in name for mark in "\t\n\r"):
        return "it must not be empty, nor hold tabs or line breaks"
    if name != name.strip():
        return "strip the blanks at its ends, which a file of triples would not keep"
    if len(name) > LONGEST_NAME:
        return f"it has {len(name):,} characters, of at most {LONGEST_NAME:,}"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "it holds half a character (a lone surrogate): decode it as UTF-8"
    return None


def _parsed(line: bytes, where: str) -> Fact:
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: no UTF-8 text ({error.reason}): convert the file") from error
    fields = text.split("\t")
    if len(fields) != 3:
        raise ValueError(
            f"{where}: {len(fields)} field{'s' * (len(fields) != 1)}, not 3 "
            "(HEAD<tab>RELATION<tab>TAIL)"
        )
    return check_fact([field.strip() for field in fields], where)


class Names:
    """Names of entities, or of relations, by number.

    Args:
        kind: what they name, for messages.
        names: distinct; the i-th has number i.
    """

    def __init__(self, kind: str, names: Iterable[str] = ()) -> None:
        self.kind = kind
        self.names = list(names)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def __getitem__(self, number: SupportsIndex) -> str:
        return self.names[number]

    def number(self, name: str) -> int:
        """The number of a name.

        Raises:
            ValueError: there is no such name; the nearest ones are suggested.
        """
        if name not in self._numbers:
            raise ValueError(f"no {self.kind} {shortened(name)}{self.suggestion(name)}")
        return self._numbers[name]

    def suggestion(self, name: str) -> str:
        """The names nearest to one that is not there, in words; empty where none is near."""
        near = get_close_matches(name, self._candidates(name), n=3, cutoff=0.6)
        if not near:  # another case, which the measure of likeness takes for other letters
            near = [other for other in self.names if other.lower() == name.lower()][:3]
        return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""

    def _candidates(self, name: str) -> list[str]:
        """Names that may be near: all, or of very many those that begin and end most like this one."""
        if len(self.names) <= COMPARED:
            return self.names
        begin, end = name[:2], name[-2:]
        alike = (other for other in self.names if other.startswith(begin) or other.endswith(end))

        def common_ends(other: str) -> int:
            return _common_start(name, other) + _common_start(name[::-1], other[::-1])

        return nlargest(COMPARED // 20, alike, key=common_ends)

    def keep(self, count: int) -> None:
        """Drop all names but the first `count`."""
        for name in self.names[count:]:
            del self._numbers[name]
        del self.names[count:]

    def add(self, name: str) -> int:
        """The number of a name, a new one if it has none yet."""
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number


def _common_start(a: str, b: str) -> int:
    """How many letters two texts begin with alike."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def numbered(facts: Iterable[Fact], entities: Names, relations: Names) -> NDArray[np.int64]:
    """Triples by number (n, 3); names that are new get the next numbers."""
    rows = [(entities.add(h), relations.add(r), entities.add(t)) for h, r, t in facts]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def facts_digest(facts: Iterable[Fact]) -> str:
    """Hash of triples, whatever their order."""
    digest = hashlib.sha256()
    for fact in sorted(facts):
        digest.update("\t".join(fact).encode() + b"\n")
    return digest.hexdigest()[:16]


class TripleBatches:
    """Triples (n, 3) as shuffled batches: functions of (seed, epoch, step), as images are.

    Args:
        rows: triples by number.
        batch_size: triples a batch, over all processes together.
        seed: of the order.
    """

    def __init__(self, rows: Tensor, batch_size: int, *, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch has at least 1 triple, not {batch_size}")
        if not len(rows):
            raise ValueError("training needs at least one triple")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world = 0, 1
        self._order = lru_cache(2)(self._draw_order)

    def __len__(self) -> int:
        """Batches in one epoch."""
        return -(-len(self.rows) // self.batch_size)

    def sharded(self, rank: int, world: int) -> "TripleBatches":
        """This process's share: every `world`-th triple of each batch."""
        share = copy(self)
        share.rank, share.world = rank, world
        return share

    def stream(self, start: int, stop: int) -> Iterator[Tensor]:
        """The batches at positions `start` to `stop`, counted over all epochs."""
        for position in range(start, stop):
            epoch, step = divmod(position, len(self))
            order = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.rows[order[self.rank :: self.world]]

    def _draw_order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        return torch.randperm(len(self.rows), generator=generator)
