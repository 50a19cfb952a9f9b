"""A disk cache of a teacher's logits, for all students that see the same pixels.

Augmentation is a function of (seed, epoch, step): a second student sees the same pixels as the first,
and its teacher need not run again. The key of an entry is a hash of the pixels, never a position.

A cache is a folder of three files. `cache.json` holds the conditions that the logits depend on.
`logits` holds rows of float32. `index` has one record per entry: key, number of rows, data type, and a
checksum of the rows. An entry counts once its record is complete, and reading it checks its rows, so a
process may be killed at any moment. One process writes. Other processes read the entries that existed
when they started, and run the teacher for the rest.
"""

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Shaped
from torch import Tensor, nn

from stepwell.files import read_json, write_whole
from stepwell.teachers.teacher import Teacher
from stepwell.types import Exit, Logits

FORMAT = 1
RECORD = struct.Struct("<16sIB3x8s")  # key, rows, data type, checksum of the rows
#: Data types that float32 represents exactly, by their code in a record.
TYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Entry(NamedTuple):
    """Position of an entry's rows in `logits`, their data type and their checksum."""

    start: int
    rows: int
    dtype: int
    check: bytes


class LogitCache:
    """Rows of logits in a folder, by key. A context manager: the folder is locked while it is open.

    Args:
        folder: created if missing.
        classes: numbers in a row.
        made_for: the conditions that the logits depend on (teacher, data, augmentation, precision), as
            JSON values. A cache of other conditions is refused.

    Raises:
        ValueError: `folder` holds a cache of other conditions, or other files, or is a file.
        OSError: `folder` cannot be written, and holds no cache.
    """

    def __init__(self, folder: Path, classes: int, made_for: Mapping[str, Any]) -> None:
        self.folder, self.classes = folder, classes
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--cache {folder} is a file: name a directory")
        header = folder / "cache.json"
        if folder.exists() and not header.exists() and any(not _ours(p) for p in folder.iterdir()):
            raise ValueError(f"--cache {folder} holds other files and no cache: name a new directory")
        self._lock = _locked(folder)
        made = {"format": FORMAT, "classes": classes} | json.loads(json.dumps(dict(made_for)))
        self._end = self._records = 0  # numbers of valid rows and records
        try:
            # without a header, rows of another process may be for other conditions
            known = self._check_header(header, made)
            self._entries = self._read_index() if known else {}
            if self.writes:
                self._cut()
        except BaseException:
            self.close()
            raise
        self._mapped = self._map()

    @property
    def writes(self) -> bool:
        """True if this process adds to the cache; at most one of several does."""
        return self._lock is not None

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._entries)

    def get(self, key: bytes) -> Logits | None:
        """The rows (n, classes) under a key of 16 bytes, or None if they are missing or damaged."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.start + entry.rows > len(self._mapped):
            self._mapped = self._map()
        rows = self._mapped[entry.start : entry.start + entry.rows]
        if _checksum(rows) != entry.check:  # after a crash of the machine, not of a process
            return None
        return torch.from_numpy(np.array(rows)).to(TYPES[entry.dtype])

    def put(self, key: bytes, logits: Logits) -> None:
        """Store rows (n, classes) under a key; does nothing if another process writes.

        OSError if the disk is full (earlier entries remain), ValueError for logits of double precision.
        """
        if not self.writes:
            return
        if logits.dtype not in TYPES:
            raise ValueError(f"logits are {logits.dtype}: a cache stores single precision or less")
        rows = np.ascontiguousarray(logits.detach().float().cpu().numpy())
        entry = _Entry(self._end, len(rows), TYPES.index(logits.dtype), _checksum(rows))
        record = RECORD.pack(key, entry.rows, entry.dtype, entry.check)
        # at an offset, because a failed write may have left bytes after the last entry
        _write_at(self.folder / "logits", entry.start * 4 * self.classes, rows.tobytes())
        _write_at(self.folder / "index", self._records * RECORD.size, record)
        self._records += 1
        self._end += entry.rows
        self._entries[key] = entry

    def close(self) -> None:
        """Release the lock, so that another process can write."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "LogitCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_header(self, file: Path, made: Mapping[str, Any]) -> bool:
        """True if there is a header, which must match; a writing process creates a missing one."""
        if not file.exists():
            if self.writes:
                write_whole(file, json.dumps(made, indent=1).encode())
            return False
        header = read_json(file, "use another --cache")
        for name in dict.fromkeys((*made, *header)):
            if header.get(name) != made.get(name):
                raise ValueError(
                    f"--cache {self.folder} was made with {name} {_short(header.get(name))}, not "
                    f"{_short(made.get(name))}: use another --cache"
                )
        return True

    def _read_index(self) -> dict[bytes, _Entry]:
        """The entries with complete rows; the last entry of a key counts."""
        index, logits = self.folder / "index", self.folder / "logits"
        data = index.read_bytes() if index.exists() else b""
        written = logits.stat().st_size // (4 * self.classes) if logits.exists() else 0
        entries: dict[bytes, _Entry] = {}
        for at in range(0, len(data) - RECORD.size + 1, RECORD.size):
            key, rows, dtype, check = RECORD.unpack_from(data, at)
            if not rows or dtype >= len(TYPES) or self._end + rows > written:
                break
            entries[key] = _Entry(self._end, rows, dtype, check)
            self._end += rows
            self._records += 1
        return entries

    def _cut(self) -> None:
        """Remove bytes after the last valid entry, left by a process killed while writing."""
        sizes = {"index": self._records * RECORD.size, "logits": self._end * 4 * self.classes}
        for name, size in sizes.items():
            if (self.folder / name).exists():
                os.truncate(self.folder / name, size)

    def _map(self) -> np.ndarray:
        file = self.folder / "logits"
        rows = file.stat().st_size // (4 * self.classes) if file.exists() else 0
        if not rows:
            return np.empty((0, self.classes), np.float32)
        return np.memmap(file, np.float32, mode="r", shape=(rows, self.classes))


class CachedLogits(nn.Module):
    """A teacher that runs once for the same pixels; it has no features.

    Args:
        teacher: a deterministic callable `images -> Exit` without gradients.
        cache: an open cache, made for this teacher.
        by_image: use one key per image, not per batch: images without augmentation are then found in
            any batch. Rows may differ in the last bits from the teacher's output for this batch.
    """

    def __init__(self, teacher: Teacher, cache: LogitCache, *, by_image: bool = False) -> None:
        super().__init__()
        self.teacher = teacher
        self.cache = cache
        self.by_image = by_image
        self.read = self.computed = 0  # numbers of images

    def forward(self, images: Shaped[Tensor, "batch ..."]) -> Exit:
        """The logits of a batch: all from the cache or, if one is missing, all from the teacher."""
        keys = keys_of(images, self.by_image)
        cached = [self.cache.get(key) for key in keys]
        rows = [row for row in cached if row is not None]
        if len(rows) == len(keys):
            self.read += len(images)
            return Exit(torch.cat(rows).to(images.device))
        logits = self.teacher(images).logits
        self.computed += len(images)
        for key, row, part in zip(keys, cached, logits.chunk(len(keys)), strict=True):
            if row is None:
                self.cache.put(key, part)
        return Exit(logits)

    def __deepcopy__(self, memo: Any) -> "CachedLogits":
        """Return itself: a copy of an objective (for an average of its weights) shares the teacher."""
        return self


def _locked(folder: Path) -> FileLock | None:
    """The lock of a cache; None if another process holds it, or on a read-only disk."""
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if not (folder / "cache.json").is_file():
            raise OSError(
                error.errno, f"--cache {folder} cannot be written ({reason}): name another folder"
            ) from error
        warnings.warn(f"--cache {folder} cannot be written ({reason}): reading it only", stacklevel=3)
        return None
    return lock


def keys_of(images: Shaped[Tensor, "batch ..."], by_image: bool) -> list[bytes]:
    """A hash of shape and values of the batch, or of each image."""
    values = images.detach().float().cpu().contiguous().numpy()
    return [_key(part) for part in values] if by_image else [_key(values)]


def _key(values: np.ndarray) -> bytes:
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(values.data)
    return digest.digest()


def _checksum(rows: np.ndarray) -> bytes:
    return hashlib.blake2b(rows.data, digest_size=8).digest()


def _write_at(file: Path, offset: int, data: bytes) -> None:
    try:
        with file.open("r+b" if file.exists() else "w+b") as handle:
            handle.seek(offset)
            handle.write(data)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {file}: {error.strerror}; its earlier content is intact"
        ) from error


def _ours(path: Path) -> bool:
    """True for a file that a process killed before writing cache.json may leave behind."""
    return path.name == "lock" or (path.name.startswith(".") and path.name.endswith(".part"))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
