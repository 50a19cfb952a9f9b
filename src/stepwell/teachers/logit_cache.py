"""A teacher's logits kept on disk, for every student that sees the same pixels (consistent teaching).

Augmentation is a function of (seed, epoch, step), so a second student sees the very pixels that the
first one saw, and its teacher need not run again. Logits are found by what a batch holds, a hash of its
pixels, never by its position: a row is right wherever it is found.

A cache is a folder of three files. `cache.json` says what it was made for. `logits` is rows of float32;
`index` has one record for each entry: key, number of rows, data type, and a checksum of the rows. An
entry counts once its record is whole, and its rows are checked when they are read, so a process may be
killed at any moment. One process writes; others that use the cache meanwhile read what was there when
they came, and run the teacher for the rest.
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
from torch import Tensor, nn

from stepwell.files import read_json, write_whole
from stepwell.teachers.teacher import Teacher
from stepwell.types import Exit

FORMAT = 1
RECORD = struct.Struct("<16sIB3x8s")  # key, rows, data type, checksum of the rows
#: Data types that float32 holds exactly, by their code in a record.
TYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Entry(NamedTuple):
    """Where rows stand in `logits`, what type they had, and their checksum."""

    start: int
    rows: int
    dtype: int
    check: bytes


class LogitCache:
    """Rows of logits in a folder, by key. Use as a context manager: it is locked while it is open.

    Args:
        folder: made if it is not there.
        classes: numbers in a row.
        made_for: what the logits depend on (teacher, data, augmentation, precision), ready for JSON. A
            cache made for something else is refused.

    Raises:
        ValueError: `folder` holds a cache made for something else, or other files, or is a file.
        OSError: nothing can be written there, and there is no cache to be read.
    """

    def __init__(self, folder: Path, classes: int, made_for: Mapping[str, Any]) -> None:
        self.folder, self.classes = folder, classes
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--cache {folder} is a file: name a directory")
        header = folder / "cache.json"
        if folder.exists() and not header.exists() and any(not _ours(p) for p in folder.iterdir()):
            raise ValueError(
                f"--cache {folder} holds other files and no cache: name a new directory"
            )
        self._lock = _locked(folder)
        made = {"format": FORMAT, "classes": classes} | json.loads(json.dumps(dict(made_for)))
        self._end = self._records = 0  # rows and records that count
        try:
            # without a header nobody knows whose the rows are that another process may be writing
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
        """Whether this process adds to the cache: of several that use it, one; or none."""
        return self._lock is not None

    def __len__(self) -> int:
        """Entries."""
        return len(self._entries)

    def get(self, key: bytes) -> Tensor | None:
        """The rows (n, classes) under a key of 16 bytes; nothing if there are none that are whole."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.start + entry.rows > len(self._mapped):
            self._mapped = self._map()
        rows = self._mapped[entry.start : entry.start + entry.rows]
        if _checksum(rows) != entry.check:  # after a crash of the machine, not of a process
            return None
        return torch.from_numpy(np.array(rows)).to(TYPES[entry.dtype])

    def put(self, key: bytes, logits: Tensor) -> None:
        """Keep rows (n, classes) under a key; nothing is kept where another process writes.

        Raises:
            OSError: the disk is full; the cache holds what it held before.
            ValueError: logits of double precision.
        """
        if not self.writes:
            return
        if logits.dtype not in TYPES:
            raise ValueError(
                f"a cache keeps logits of single precision or less, not {logits.dtype}"
            )
        rows = np.ascontiguousarray(logits.detach().float().cpu().numpy())
        entry = _Entry(self._end, len(rows), TYPES.index(logits.dtype), _checksum(rows))
        record = RECORD.pack(key, entry.rows, entry.dtype, entry.check)
        # Not appended: a write that failed may have left a part behind the last entry.
        _write_at(self.folder / "logits", entry.start * 4 * self.classes, rows.tobytes())
        _write_at(self.folder / "index", self._records * RECORD.size, record)
        self._records += 1
        self._end += entry.rows
        self._entries[key] = entry

    def close(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> "LogitCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_header(self, file: Path, made: Mapping[str, Any]) -> bool:
        """Whether there was a header, which is then that of this cache; who writes makes one."""
        if not file.exists():
            if self.writes:
                write_whole(file, json.dumps(made, indent=1).encode())
            return False
        there = read_json(file, "use another --cache")
        for name in dict.fromkeys((*made, *there)):
            if there.get(name) != made.get(name):
                raise ValueError(
                    f"--cache {self.folder} holds logits made for other {name} "
                    f"({_short(there.get(name))} there, {_short(made.get(name))} here): use another "
                    "--cache"
                )
        return True

    def _read_index(self) -> dict[bytes, _Entry]:
        """The entries whose rows are all there; later ones of the same key count."""
        index, logits = self.folder / "index", self.folder / "logits"
        data = index.read_bytes() if index.exists() else b""
        there = logits.stat().st_size // (4 * self.classes) if logits.exists() else 0
        entries: dict[bytes, _Entry] = {}
        for at in range(0, len(data) - RECORD.size + 1, RECORD.size):
            key, rows, dtype, check = RECORD.unpack_from(data, at)
            if not rows or dtype >= len(TYPES) or self._end + rows > there:
                break
            entries[key] = _Entry(self._end, rows, dtype, check)
            self._end += rows
            self._records += 1
        return entries

    def _cut(self) -> None:
        """Remove what follows the last entry that counts: a process was killed while it wrote."""
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
    """A teacher that runs once for the same pixels; it gives no features.

    Args:
        teacher: a callable `images -> Exit` without gradients, which gives the same for the same batch.
        cache: an open cache, made for this teacher.
        by_image: find rows by each image's own pixels, not by the whole batch's. Where images come
            unchanged in every epoch, they are found again however they are batched; rows may then
            differ in the last bits from what the teacher would give in this very batch.
    """

    def __init__(self, teacher: Teacher, cache: LogitCache, *, by_image: bool = False) -> None:
        super().__init__()
        self.teacher = teacher
        self.cache = cache
        self.by_image = by_image
        self.read = self.computed = 0  # images

    def forward(self, images: Tensor) -> Exit:
        """The teacher's logits: all from the cache, or, if one is missing, all by the teacher."""
        keys = keys_of(images, self.by_image)
        found = [self.cache.get(key) for key in keys]
        rows = [row for row in found if row is not None]
        if len(rows) == len(keys):
            self.read += len(images)
            return Exit(torch.cat(rows).to(images.device))
        logits = self.teacher(images).logits
        self.computed += len(images)
        for key, row, part in zip(keys, found, logits.chunk(len(keys)), strict=True):
            if row is None:
                self.cache.put(key, part)
        return Exit(logits)

    def __deepcopy__(self, memo: Any) -> "CachedLogits":
        """Itself: whoever copies an objective (for an average of its weights) copies no teacher."""
        return self


def _locked(folder: Path) -> FileLock | None:
    """The lock of a cache, its folder made if need be; none where another process has it.

    Nor is there one where nothing can be written, such as on a disk that many mount to read: a cache
    that is there is used as it is.

    Raises:
        OSError: nothing can be written, and there is no cache.
    """
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
        warnings.warn(
            f"--cache {folder} cannot be written ({reason}): what it holds is read, and nothing added",
            stacklevel=3,
        )
        return None
    return lock


def keys_of(images: Tensor, by_image: bool) -> list[bytes]:
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
            error.errno, f"cannot write {file}: {error.strerror}; what it held before can be used"
        ) from error


def _ours(path: Path) -> bool:
    """What a process may leave behind that was killed before it wrote cache.json."""
    return path.name == "lock" or (path.name.startswith(".") and path.name.endswith(".part"))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
