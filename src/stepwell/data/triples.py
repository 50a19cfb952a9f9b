"""Knowledge graphs as text: one triple per line, with head, relation and tail separated by tabs."""

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from difflib import get_close_matches
from functools import lru_cache
from heapq import nlargest
from itertools import takewhile
from pathlib import Path
from reprlib import repr as shortened
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from stepwell.data.loader import seed_of
from stepwell.files import write_whole

#: A triple by name: head, relation and tail.
Fact = tuple[str, str, str]
#: The most characters of a name: a longer one is a document in a column.
LONGEST_NAME = 4096
#: The most names that are compared letter by letter with an unknown name.
MAX_COMPARED = 10_000
#: Characters that end a line or move the cursor.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: The first bytes of compressed files.
PACKED = {b"\x1f\x8b": "gzip", b"PK\3\4": "zip", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


def read_triples(path: Path, *, empty: bool = False) -> list[Fact]:
    """Read the distinct triples of a file, in order. Empty lines are skipped; repeated ones warn.

    ValueError for a malformed line (with its number), a file that is compressed or not text, or one
    without triples, unless `empty` allows it; OSError if it cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file of triples")
    facts: list[Fact] = []
    with path.open("rb") as file:
        start = file.peek(8)[:8]
        if packed := next((how for mark, how in PACKED.items() if start.startswith(mark)), None):
            raise ValueError(
                f"{path} is compressed ({packed}): decompress it, triples are read as plain text"
            )
        for number, line in enumerate(file, start=1):
            if line.strip(b" \r\n\xef\xbb\xbf"):
                facts.append(_parsed(line, f"{path}, line {number}"))
    distinct = list(dict.fromkeys(facts))
    if not distinct and not empty:
        raise ValueError(f"{path} has no triples: write one per line, HEAD<tab>RELATION<tab>TAIL")
    if len(distinct) < len(facts):
        warnings.warn(
            f"{path}: {len(facts) - len(distinct):,} of {len(facts):,} lines repeat other lines and "
            "count once",
            stacklevel=2,
        )
    return distinct


def write_triples(path: Path, facts: Iterable[Fact]) -> None:
    """Write triples as `read_triples` reads them, whole or not at all."""
    write_whole(path, "".join("\t".join(fact) + "\n" for fact in facts).encode())


def check_fact(fact: object, where: str) -> Fact:
    """Check that a triple has three names that survive a file of triples.

    ValueError if there are not three names, or a name is empty, very long or not Unicode text, begins
    or ends with a blank, or has a control character such as a tab or a line break.
    """
    names = [*fact] if isinstance(fact, Sequence) and not isinstance(fact, str) else []
    if len(names) != 3 or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: a triple is a head, a relation and a tail, not {shortened(fact)}")
    for name in names:
        if wrong := _wrong_with(name):
            raise ValueError(f"{where}: {shortened(name)} is not a valid name: {wrong}")
    head, relation, tail = names
    return head, relation, tail


def _wrong_with(name: str) -> str | None:
    if not name.strip() or any(mark in name for mark in "\t\n\r"):
        return "it must not be empty or have tabs or line breaks"
    if name != name.strip():
        return "strip the blanks at its ends; a file of triples does not keep them"
    if match := CONTROL.search(name):
        return f"it has the control character U+{ord(match[0]):04X}: remove it"
    if len(name) > LONGEST_NAME:
        return f"it has {len(name):,} characters, more than {LONGEST_NAME:,}"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "it has half a character (a lone surrogate): decode it as UTF-8"
    return None


def _parsed(line: bytes, where: str) -> Fact:
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error.reason}): convert the file") from error
    fields = text.split("\t")
    if len(fields) != 3:
        raise ValueError(
            f"{where}: {len(fields)} field{'s' * (len(fields) != 1)}, not 3 "
            "(HEAD<tab>RELATION<tab>TAIL)"
        )
    return check_fact([field.strip() for field in fields], where)


class Names:
    """Names of entities, or of relations, by number: name i has number i; `kind` is for messages."""

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
        """The number of a name; ValueError with the nearest names if there is none."""
        if name not in self._numbers:
            raise ValueError(f"no {self.kind} {shortened(name)}{self.suggestion(name)}")
        return self._numbers[name]

    def suggestion(self, name: str) -> str:
        """Suggest the names nearest to an unknown one; empty if no name is near."""
        near = get_close_matches(name, self._candidates(name), n=3, cutoff=0.6)
        if not near:  # the similarity counts upper and lower case as different letters
            near = [other for other in self.names if other.lower() == name.lower()][:3]
        return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""

    def _candidates(self, name: str) -> list[str]:
        """Names that may be near: all, or if there are too many, names with a similar start and end."""
        if len(self.names) <= MAX_COMPARED:
            return self.names
        begin, end = name[:2], name[-2:]
        alike = (other for other in self.names if other.startswith(begin) or other.endswith(end))

        def common_ends(other: str) -> int:
            return _common_start(name, other) + _common_start(name[::-1], other[::-1])

        return nlargest(MAX_COMPARED // 20, alike, key=common_ends)

    def truncate(self, count: int) -> None:
        """Drop all names after the first `count`."""
        for name in self.names[count:]:
            del self._numbers[name]
        del self.names[count:]

    def add(self, name: str) -> int:
        """The number of a name; an unknown name gets the next number."""
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number


def _common_start(a: str, b: str) -> int:
    return len([*takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))])


def numbered(
    facts: Iterable[Fact], entities: Names, relations: Names
) -> Int64[np.ndarray, "triples 3"]:
    """Triples by number; new names get the next numbers."""
    rows = [(entities.add(h), relations.add(r), entities.add(t)) for h, r, t in facts]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def facts_digest(facts: Iterable[Fact]) -> str:
    """Hash triples; their order does not matter."""
    digest = hashlib.sha256()
    for fact in sorted(facts):
        digest.update("\t".join(fact).encode() + b"\n")
    return digest.hexdigest()[:16]


class TripleBatches:
    """Shuffled batches of triples over all processes; each is a function of (seed, epoch, step)."""

    def __init__(self, rows: Int64[Tensor, "triples 3"], batch_size: int, *, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch needs at least one triple, got {batch_size}")
        if not len(rows):
            raise ValueError("training needs at least one triple")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world = 0, 1
        self._order = lru_cache(2)(self._draw_order)

    def __len__(self) -> int:
        """The number of batches in one epoch."""
        return -(-len(self.rows) // self.batch_size)

    def sharded(self, rank: int, world: int) -> "TripleBatches":
        """This process's share: every `world`-th triple of each batch."""
        share = copy(self)
        share.rank, share.world = rank, world
        return share

    def stream(self, start: int, stop: int) -> Iterator[Int64[Tensor, "batch 3"]]:
        """The batches from position `start` to before `stop`, counted over all epochs."""
        for position in range(start, stop):
            epoch, step = divmod(position, len(self))
            order = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.rows[order[self.rank :: self.world]]

    def _draw_order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        return torch.randperm(len(self.rows), generator=generator)
