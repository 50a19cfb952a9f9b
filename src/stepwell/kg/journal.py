"""An append-only file of records that survives a kill at any moment.

A record is acknowledged once it is on the disk. A kill can leave a part of a last record, which was not
acknowledged: it is cut off by the next writer. A last record that is not whole though nothing of it is
missing is left out, too, with a warning: the machine may have stopped before all its bytes were on the
disk, or it was damaged later. Damage anywhere else is an error, never skipped.
"""

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stepwell.files import write_whole

#: Mark, kind, number, length and checksum (of what stands before it and of the content).
_HEAD = struct.Struct("<2scQI")
_CHECK = struct.Struct("<I")
_MARK = b"sw"
_START = _HEAD.size + _CHECK.size


class Record(NamedTuple):
    """One record: its kind (a byte), its number, which only grows, and its content."""

    kind: bytes
    number: int
    content: bytes

    def packed(self) -> bytes:
        """As bytes of the file."""
        head = _HEAD.pack(_MARK, self.kind, self.number, len(self.content))
        return head + _CHECK.pack(zlib.crc32(self.content, zlib.crc32(head))) + self.content


class Journal:
    """The records of a file, and the end of the last whole one.

    Raises:
        ValueError: the file is damaged elsewhere than in its last record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        data = path.read_bytes() if path.exists() else b""
        self.end = 0
        for record, end in _whole_records(data):
            self.records.append(record)
            self.end = end
        _check_rest(data, self.end, path)

    def append(self, record: Record) -> None:
        """Write a record; it is on the disk when this returns.

        Raises:
            OSError: the disk is full, or the like; the file is as it was before.
        """
        fresh = not self.path.exists()
        if fresh:
            write_whole(self.path, b"")
        with self.path.open("r+b") as file:
            try:
                file.truncate(self.end)  # a part of a record that was never acknowledged
                file.seek(self.end)
                file.write(record.packed())
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(self.end)
                raise OSError(
                    error.errno, f"cannot write {self.path}: {error.strerror}; nothing was changed"
                ) from error
        self.end += len(record.packed())
        self.records.append(record)

    def restart(self, after: int) -> None:
        """Drop the records up to number `after`, which are kept elsewhere by now."""
        self.records = [record for record in self.records if record.number > after]
        content = b"".join(record.packed() for record in self.records)
        write_whole(self.path, content)
        self.end = len(content)


def _whole_records(data: bytes) -> Iterator[tuple[Record, int]]:
    """The records at the start of `data`, up to the first that is not whole; each with its end."""
    start = 0
    while len(data) - start >= _START:
        mark, kind, number, length = _HEAD.unpack_from(data, start)
        end = start + _START + length
        if mark != _MARK or end > len(data):
            return
        record = Record(kind, number, data[start + _START : end])
        if record.packed() != data[start:end]:
            return
        yield record, end
        start = end


def _check_rest(data: bytes, end: int, path: Path) -> None:
    """Refuse what follows the last whole record if a kill cannot have left it, or warn of it.

    A kill leaves the beginning of one record, maybe with zeros where bytes did not reach the disk. If
    another whole record follows, a record before it was acknowledged and is damaged.
    """
    start = data.find(_MARK, end + 1)
    while start >= 0:
        if next(_whole_records(data[start:]), None) is not None:
            raise ValueError(
                f"{path} is damaged at byte {end}, and changes after it were acknowledged: bring back "
                "a copy, or remove the file to go back to the last snapshot"
            )
        start = data.find(_MARK, start + 1)
    if not _is_cut_short(data[end:]):
        warnings.warn(
            f"{path} is damaged at byte {end}: its last change is left out, and the next change takes "
            "its place. Bring back a copy, or make that change again",
            stacklevel=5,
        )


def _is_cut_short(rest: bytes) -> bool:
    """Whether bytes may be the beginning of a record, or nothing."""
    if not _MARK.startswith(rest[: len(_MARK)]):
        return False
    return len(rest) < _START or len(rest) < _START + _HEAD.unpack_from(rest)[3]
