"""An append-only file of records that survives a kill at any moment.

A record is acknowledged when it is on the disk. After a kill, the file may end with a part of an
unacknowledged record; the next writer cuts it off. A last record with wrong bytes is dropped with a
warning. Damage elsewhere is an error.
"""

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stepwell.files import write_whole

#: Mark, kind, number and length; a checksum of these and of the content follows.
_HEAD = struct.Struct("<2scQI")
_CHECK = struct.Struct("<I")
_MARK = b"sw"
_HEADER = _HEAD.size + _CHECK.size


class Record(NamedTuple):
    """A record: its kind (one byte), its number (ascending), and its content."""

    kind: bytes
    number: int
    content: bytes

    def packed(self) -> bytes:
        """The bytes of the record in the file."""
        head = _HEAD.pack(_MARK, self.kind, self.number, len(self.content))
        return head + _CHECK.pack(zlib.crc32(self.content, zlib.crc32(head))) + self.content


class Journal:
    """The records of a file, and the end of the last whole one.

    Raises:
        ValueError: the file is damaged before its last record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes() if path.exists() else b""
        whole = [*_whole_records(data)]
        self.records = [record for record, _ in whole]
        self.end = whole[-1][1] if whole else 0
        _check_rest(data, self.end, path)

    def append(self, record: Record) -> None:
        """Write a record; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written, such as on a full disk; the file is as it was.
        """
        if not self.path.exists():
            write_whole(self.path, b"")
        content = record.packed()
        with self.path.open("r+b") as file:
            try:
                file.truncate(self.end)  # cuts off a part of a record
                file.seek(self.end)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(self.end)
                raise OSError(
                    error.errno, f"cannot write {self.path}: {error.strerror}; nothing was changed"
                ) from error
        self.end += len(content)
        self.records.append(record)

    def drop(self, last: int) -> None:
        """Drop the records up to number `last`."""
        self.records = [record for record in self.records if record.number > last]
        content = b"".join(record.packed() for record in self.records)
        write_whole(self.path, content)
        self.end = len(content)


def _whole_records(data: bytes) -> Iterator[tuple[Record, int]]:
    """The leading whole records of `data`, each with its end."""
    at = 0
    while len(data) - at >= _HEADER:
        mark, kind, number, length = _HEAD.unpack_from(data, at)
        end = at + _HEADER + length
        record = Record(kind, number, data[at + _HEADER : end])
        if mark != _MARK or end > len(data) or record.packed() != data[at:end]:
            return
        yield record, end
        at = end


def _check_rest(data: bytes, end: int, path: Path) -> None:
    """Refuse bytes after the last whole record that a kill cannot have left, or warn of them.

    A kill leaves the beginning of one record, perhaps with zeros. If another whole record follows, an
    acknowledged record is damaged.
    """
    at = data.find(_MARK, end + 1)
    while at >= 0:
        if next(_whole_records(data[at:]), None) is not None:
            raise ValueError(
                f"{path} is damaged at byte {end}, and acknowledged changes follow: restore a copy, or "
                "remove the file to go back to net.safetensors"
            )
        at = data.find(_MARK, at + 1)
    rest = data[end:]
    cut_short = len(rest) < _HEADER or len(rest) < _HEADER + _HEAD.unpack_from(rest)[3]
    if not (cut_short and _MARK.startswith(rest[: len(_MARK)])):
        warnings.warn(
            f"{path} is damaged at byte {end}: its last change is dropped. Restore a copy, or make "
            "that change again",
            stacklevel=5,
        )
