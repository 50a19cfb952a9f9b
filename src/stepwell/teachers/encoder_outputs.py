"""A text teacher's outputs, computed once and stored in a file: logits, attention scores, [CLS] states.

All texts are computed in one fixed order before the training begins. So a training that is killed and
goes on finds the same numbers, to the bit, in whatever order it asks for them.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from stepwell.files import sync_folder
from stepwell.nets.files.container import digest
from stepwell.teachers.teacher import Frozen
from stepwell.types import Exit

#: Bytes of the checksum at the end of the file, and of the parts in which it is read for it.
CHECKSUM, CHUNK = 4, 1 << 22


class StoredOutputs(NamedTuple):
    """The outputs that are stored for each text.

    layers: the teacher's layers, from 1, whose scores and [CLS] states are stored.
    heads: 0 to store no scores. width: 0 to store no states.
    """

    classes: int
    layers: tuple[int, ...]
    heads: int
    width: int

    def count(self, tokens: int) -> int:
        """The number of stored values of a text of `tokens` tokens."""
        return self.classes + len(self.layers) * (self.width + self.heads * tokens**2)


class EncoderOutputs(nn.Module):
    """A teacher that looks its outputs up; computes them first where the file is not whole.

    A file that was cut off, or is of another teacher or other texts, is computed anew.

    Args:
        teacher: takes token ids (batch, tokens) and `extras`.
        texts: batches of token ids in a fixed order, which hold every text of the training.
        padding: id of the padding token.
        stored: the outputs that are stored for each text.
        file: place of the numbers, 32 bits each, after a hash of the texts and the teacher.

    Raises:
        KeyError: in a step, a text that `texts` did not hold.
        OSError: the file cannot be written, such as on a full disk.
    """

    def __init__(
        self, teacher: Frozen, texts: Sequence[Int64[Tensor, "_ _"]], padding: int,
        stored: StoredOutputs, file: Path,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stored, self.padding = stored, padding
        self.places: dict[bytes, int] = {}
        weights = {name: value.cpu() for name, value in teacher._net[0].state_dict().items()}
        mark = hashlib.sha256(repr((stored, digest({}, weights))).encode())
        end = 0
        for ids in texts:
            for key, tokens in self._keys(ids):
                if key not in self.places:
                    mark.update(key)
                    self.places[key] = end
                    end += self.stored.count(tokens)
        head = mark.digest()
        if not _is_whole(file, head, len(head) + 4 * end):
            with _writing(file) as out:
                out.write(head)
                checksum = 0
                for numbers in self._computed(teacher, texts):
                    checksum = crc32(numbers, checksum)
                    out.write(numbers)
                out.write(checksum.to_bytes(CHECKSUM))
        self._numbers = np.memmap(file, np.float32, "r", len(head), (end,))

    def _keys(self, ids: Int64[Tensor, "batch tokens"]) -> Iterator[tuple[bytes, int]]:
        """The key and the number of tokens of each text, which may hold the padding token itself."""
        ends = torch.arange(1, ids.shape[1] + 1) * ids.ne(self.padding)
        for row, length in zip(ids, ends.amax(1).tolist(), strict=True):
            yield row[:length].numpy().tobytes(), int(length)

    def _computed(self, teacher: Frozen, texts: Sequence[Tensor]) -> Iterator[bytes]:
        """The numbers of each text in the order of their places."""
        device = next(teacher._net[0].parameters()).device
        written = 0
        _, layers, heads, width = self.stored
        extras = [name for name, size in (("scores", heads), ("cls", width)) if layers and size]
        for ids in texts:
            exit = teacher(ids.to(device), extras=extras)
            scores, states = (
                [exit.extras[name][at - 1].float().cpu() for at in layers if name in extras]
                for name in ("scores", "cls")
            )
            logits = exit.logits.float().cpu()
            for row, (key, n) in enumerate(self._keys(ids)):
                if self.places[key] != written:
                    continue  # the same text as an earlier one
                parts = [logits[row], *(s[row] for s in states)]
                parts += [s[row, :, :n, :n].flatten() for s in scores]
                numbers = torch.cat(parts).numpy()
                written += len(numbers)
                yield numbers.tobytes()

    @torch.no_grad()
    def forward(self, ids: Int64[Tensor, "batch tokens"], extras: Sequence[str] = ()) -> Exit:
        """Logits; with `extras`, stored scores or [CLS] states, a tuple of one tensor a layer.

        Layers that are not stored are empty. Scores of padding are 0.
        """
        classes, layers, heads, width = self.stored
        batch, tokens = ids.shape
        logits = torch.empty(batch, classes)
        states = torch.empty(len(layers), batch, width)
        scores = torch.zeros(len(layers), batch, heads, tokens, tokens) if "scores" in extras else None
        for row, (key, n) in enumerate(self._keys(ids.cpu())):
            start = self.places[key]
            end = start + (self.stored.count(n) if extras else classes)
            numbers = torch.from_numpy(np.array(self._numbers[start:end]))
            logits[row], rest = numbers[:classes], numbers[classes:]
            if not extras:
                continue
            split = len(layers) * width
            states[:, row] = rest[:split].view(len(layers), width)
            if scores is not None:
                scores[:, row, :, :n, :n] = rest[split:].view(len(layers), heads, n, n)
        most, empty = max(layers, default=0), torch.empty(0)
        given = {}
        for name in extras:
            values = states if scores is None or name == "cls" else scores
            by_layer = dict(zip(layers, values.to(ids.device), strict=True))
            given[name] = tuple(by_layer.get(at, empty) for at in range(1, most + 1))
        return Exit(logits.to(ids.device), (), given)


def _is_whole(file: Path, head: bytes, size: int) -> bool:
    """Check that a file begins with `head`, and ends after `size` bytes with their right checksum."""
    if not file.is_file() or file.stat().st_size != size + CHECKSUM:
        return False
    with file.open("rb") as content:
        if content.read(len(head)) != head:
            return False
        checksum, left = 0, size - len(head)
        while part := content.read(min(left, CHUNK)):
            checksum, left = crc32(part, checksum), left - len(part)
        return content.read() == checksum.to_bytes(CHECKSUM)


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[BinaryIO]:
    """A temporary file that replaces `file` when it is whole; a run removes what a kill left of it."""
    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f"cannot write {file}: {error.strerror}; --no-keep-outputs needs no file"
            ) from error
        raise
    sync_folder(file.parent)
