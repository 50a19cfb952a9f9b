"""Texts with labels: tab-separated files with a header, as GLUE's are, read without a CSV parser.

Raw quotes are part of the text, and a tab always ends a column.
"""

import codecs
import math
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stepwell.measures import some

#: Usual names of the columns of a text, and of a text and its partner, in the order they are tried.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"), ("text1", "text2"), ("sentence",), ("text",), ("sentence1",),
)  # fmt: skip
#: The usual name of the column of labels.
LABEL = "label"
#: All usual names.
USUAL = {LABEL}.union(*TEXT_COLUMNS)
#: More different fractions, or whole numbers, than this are hardly classes.
MANY, MANY_WHOLE = 10, 1000
#: Numbers to predict lie below this: their squares are finite in 32 bits.
LARGEST = 1e15

#: A text, or a pair of texts.
Text = tuple[str, ...]


def in_one_line(text: Text) -> str:
    """A text, or the texts of a pair with a bar between them."""
    return " ⏐ ".join(text)


def is_blank(text: str) -> bool:
    """Check whether a text has no visible character: spaces and invisible ones (U+200B) alone."""
    return not any(character.isprintable() and not character.isspace() for character in text)


class Table(NamedTuple):
    """A file's rows: by column its name; `lines` has each row's number in the file."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str, what: str, remedy: str) -> list[str]:
        """The values of a column; ValueError, which names the columns, if it is not there, or twice."""
        if name not in self.columns:
            raise ValueError(
                f"{self.path} has no column {name!r} for {what}; its columns are "
                f"{', '.join(self.columns)}: {remedy}"
            )
        if self.columns.count(name) > 1:
            raise ValueError(f"{self.path} has several columns {name!r}: name each otherwise")
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


class Texts(NamedTuple):
    """Texts with their labels as they stand in the file; no labels if they were not read."""

    path: Path
    texts: tuple[Text, ...]
    labels: tuple[str, ...]
    lines: tuple[int, ...]

    @property
    def places(self) -> list[str]:
        """The place of each text: file and line, or number."""
        return [f"{self.path}, line {line}," for line in self.lines]


@dataclass(frozen=True)
class Labels:
    """The classes of labels, in order of the logits."""

    classes: tuple[str, ...]

    @classmethod
    def of(cls, texts: Texts, column: str) -> "Labels":
        """The classes of training texts, numbers in their order.

        ValueError for a single class, for labels of which most stand beside one text only, and for an
        empty label (with the line).
        """
        names = set(texts.labels)
        numbers: dict[float, str] = {}
        for name in sorted(names):
            value = _number(name)
            if value is not None and numbers.setdefault(value, name) != name:
                raise ValueError(
                    f"{texts.path}: the labels {numbers[value]!r} and {name!r} are the same number: "
                    "write it in one way, or predict numbers with --regression"
                )
        for label, line in zip(texts.labels, texts.lines, strict=True):
            if not label.strip():
                raise ValueError(
                    f"{texts.path}, line {line}: the label is empty: fill it, or remove the line"
                )
        if len(names) < 2:
            raise ValueError(
                f"{texts.path} has one class only, {min(names)!r}: training needs two or more"
            )
        if len(names) > MANY and 2 * len(names) > len(texts.labels):
            raise ValueError(
                f"{texts.path}: {len(texts.labels):,} texts have {len(names):,} different labels in "
                f"column {column!r}, too many for classes: name the column of classes with --label, or "
                "predict numbers with --regression"
            )
        whole = all(name.isdecimal() for name in names)
        return cls(tuple(sorted(names, key=int if whole else str)))

    @property
    def measured(self) -> bool:
        """True if the labels are numbers, such as 3.8, and too many to be classes."""
        fractions = any(not name.isdecimal() for name in self.classes)
        several = len(self.classes) > (MANY if fractions else MANY_WHOLE)
        return several and all(_number(name) is not None for name in self.classes)

    def numbers(self, texts: Texts) -> list[int]:
        """The index of each label; ValueError names the first line whose label has none."""
        index = {name: i for i, name in enumerate(self.classes)}
        for label, line in zip(texts.labels, texts.lines, strict=True):
            if label not in index:
                raise ValueError(
                    f"{texts.path}, line {line}: no training text has the label {label!r}; there are "
                    f"{some(self.classes, 10)}"
                )
        return [index[label] for label in texts.labels]


@dataclass(frozen=True)
class Numbers:
    """A column of numbers to predict; `classes` is its name, that of the network's only output."""

    classes: tuple[str, ...]

    @classmethod
    def of(cls, texts: Texts, column: str) -> "Numbers":
        """The numbers of training texts; ValueError if they are all equal, in 32 bits."""
        numbers = cls((column,))
        if len(set(array("f", numbers.numbers(texts)))) < 2:
            raise ValueError(
                f"{texts.path} has one number only, {texts.labels[0]}: training needs two or more"
            )
        return numbers

    def numbers(self, texts: Texts) -> list[float]:
        """The number of each text; ValueError names the first line that has none."""
        values = []
        for label, line in zip(texts.labels, texts.lines, strict=True):
            if (value := _number(label)) is None:
                raise ValueError(
                    f"{texts.path}, line {line}: {label!r} in column {self.classes[0]!r} is not a "
                    "number, and --regression needs one in every row"
                )
            if abs(value) > LARGEST:
                raise ValueError(
                    f"{texts.path}, line {line}: {label} in column {self.classes[0]!r} is too large to "
                    f"predict: take another unit, so that all numbers are below {LARGEST:g}"
                )
            values.append(value)
        return values


def _number(text: str) -> float | None:
    """The finite number that a text is; None if it is none."""
    with suppress(ValueError):
        value = float(text.replace("_", "x"))
        return value if math.isfinite(value) else None
    return None


def read_table(path: Path) -> Table:
    """Read a tab-separated file with a header.

    Raises:
        ValueError: no file; not UTF-8 (with the line); no header or no row; a row with another number
            of columns (with the line).
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a tab-separated file of texts")
    if not path.is_file():
        raise ValueError(f"no file {path}: name a tab-separated file of texts, with a header")
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path} is empty: its first line names the columns, with tabs between them")
    if b"\r" in lines[0].rstrip(b"\r") and not any(lines[1:]):
        raise ValueError(
            f"{path} ends its lines by CR alone: save it with LF or CR LF (Unix or Windows)"
        )
    columns: tuple[str, ...] = ()
    rows, numbers = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip(b"\r"):
            continue
        try:
            cells = tuple(line.decode().removesuffix("\r").split("\t"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not UTF-8 ({error.reason}): convert it, or name "
                "a file of texts"
            ) from None
        if not columns:
            columns = cells
            continue
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}, line {number}: {len(cells)} column{'s' * (len(cells) != 1)}, and the header "
                f"has {len(columns)} ({', '.join(columns)}): a text may hold no tab and no line end"
            )
        rows.append(cells)
        numbers.append(number)
    by_commas = {name.strip('" ') for name in columns[0].split(",")}
    if len(columns) == 1 and len(by_commas) > 1 and by_commas & USUAL:
        raise ValueError(f"{path} is separated by commas: write it with tabs, and texts without quotes")
    if not rows:
        raise ValueError(f"{path} has a header ({', '.join(columns)}) and no row below it")
    return Table(path, columns, tuple(rows), tuple(numbers))


def read_texts(
    path: Path, columns: Sequence[str] = (), label: str | None = LABEL,
    remedy: str = "name yours with --text and --label",
) -> Texts:  # fmt: skip
    """Read the texts of a tab-separated file, and their labels.

    A second column that is empty in every row does not count.

    Args:
        columns: one or two columns of text; by default the first of `TEXT_COLUMNS` that are there.
        label: the column of labels; None: they are not read.
        remedy: what to do about a column that is not there.

    Raises:
        ValueError: as for `read_table`; no such column, or too many; an empty text (with the line).
    """
    if len(columns) > 2:
        raise ValueError(f"--text {' '.join(columns)}: a text has one column, or two for a pair")
    if label in columns or len(set(columns)) < len(columns):
        raise ValueError(
            f"--text {' '.join(columns)}: name each column once, and not {label!r}, that of the labels"
        )
    table = read_table(path)
    names = tuple(columns) or _usual(table, remedy)
    parts = [table.column(name, "texts", remedy) for name in names]
    if len(parts) == 2 and not any(parts[1]):
        parts = parts[:1]
    # a space at the end of a label would be a class of its own, which no one sees
    labels = () if label is None else tuple(map(str.strip, table.column(label, "labels", remedy)))
    for row, line in zip(zip(*parts, strict=True), table.lines, strict=True):
        if any(map(is_blank, row)):
            raise ValueError(f"{path}, line {line}: the text is empty: fill it, or remove the line")
    return Texts(path, tuple(zip(*parts, strict=True)), labels, table.lines)


def _usual(table: Table, remedy: str) -> tuple[str, ...]:
    for names in TEXT_COLUMNS:
        if set(names) <= set(table.columns):
            return names
    raise ValueError(
        f"{table.path} has no usual column of texts (such as sentence, text, or sentence1 and "
        f"sentence2); its first line names {', '.join(table.columns)}: {remedy}"
    )
