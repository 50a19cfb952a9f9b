"""A text teacher's outputs, computed once and kept in a file: logits, attention scores, [CLS] states.

All texts are computed in one fixed order before the training begins. So a training that is killed and
goes on finds the same numbers, to the bit, in whatever order it asks for them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from stepwell.files import write_whole
from stepwell.teachers.teacher import Frozen
from stepwell.types import Exit


class Kept(NamedTuple):
    """The outputs that are stored for each text.

    layers: of the teacher, from 1, whose scores and states are kept.
    """

    classes: int
    layers: tuple[int, ...]
    heads: int
    width: int

    def count(self, tokens: int) -> int:
        """The numbers of a text of so many tokens."""
        return self.classes + len(self.layers) * (self.width + self.heads * tokens**2)


def kept_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """The layers of a teacher that a layer map names."""
    return tuple(sorted(set(layers) - {0}))


class EncoderOutputs(nn.Module):
    """A teacher that looks its outputs up; computes them first where the file is not whole.

    Args:
        teacher: takes token ids (batch, tokens) and `extras`; not needed where the file is whole.
        texts: batches of token ids in a fixed order, which hold every text that will be asked for.
        padding: id of the padding token.
        kept: the outputs that are stored for each text.
        file: place of the numbers, 32 bits each.

    Raises:
        KeyError: in a step, a text that `texts` did not hold.
    """

    def __init__(
        self, teacher: Frozen | None, texts: Sequence[Tensor], padding: int, kept: Kept, file: Path
    ) -> None:
        super().__init__()
        self.kept, self.padding = kept, padding
        self.places: dict[bytes, int] = {}
        end = 0
        for ids in texts:
            for key, tokens in self._keys(ids):
                if key not in self.places:
                    self.places[key] = end
                    end += self.kept.count(tokens)
        done = file.with_name(f"{file.name}.done")
        if not done.is_file():
            assert teacher is not None
            self._compute(teacher, texts, file, end)
            write_whole(done, b"")
        self._numbers = np.memmap(file, np.float32, "r", shape=(end,))

    def _keys(self, ids: Int64[Tensor, "batch tokens"]) -> Iterator[tuple[bytes, int]]:
        """The key and the number of tokens of each text."""
        for row, length in zip(ids, ids.ne(self.padding).sum(1).tolist(), strict=True):
            yield row[:length].numpy().tobytes(), int(length)

    def _compute(self, teacher: Frozen, texts: Sequence[Tensor], file: Path, size: int) -> None:
        numbers = np.memmap(file, np.float32, "w+", shape=(size,))
        device = next(teacher._net[0].parameters()).device
        for ids in texts:
            exit = teacher(ids.to(device), extras=["scores", "cls"])
            scores = [exit.extras["scores"][at - 1].float().cpu() for at in self.kept.layers]
            states = [exit.extras["cls"][at - 1].float().cpu() for at in self.kept.layers]
            logits = exit.logits.float().cpu()
            for row, (key, n) in enumerate(self._keys(ids)):
                parts = [logits[row], *(s[row] for s in states)]
                parts += [s[row, :, :n, :n].flatten() for s in scores]
                whole = torch.cat(parts).numpy()
                numbers[self.places[key] : self.places[key] + len(whole)] = whole
        numbers.flush()

    @torch.no_grad()
    def forward(self, ids: Int64[Tensor, "batch tokens"], extras: Sequence[str] = ()) -> Exit:
        """Logits; with `extras`, scores and [CLS] states, a tuple of one tensor a layer.

        Layers that are not kept are empty. Scores of padding are 0.
        """
        classes, layers, heads, width = self.kept
        batch, tokens = ids.shape
        logits = torch.empty(batch, classes)
        states = torch.empty(len(layers), batch, width)
        scores = torch.zeros(len(layers), batch, heads, tokens, tokens) if "scores" in extras else None
        for row, (key, n) in enumerate(self._keys(ids.cpu())):
            start = self.places[key]
            end = start + (self.kept.count(n) if extras else classes)
            numbers = torch.from_numpy(np.array(self._numbers[start:end]))
            logits[row], rest = numbers[:classes], numbers[classes:]
            if not extras:
                continue
            split = len(layers) * width
            states[:, row] = rest[:split].view(len(layers), width)
            if scores is not None:
                scores[:, row, :, :n, :n] = rest[split:].view(len(layers), heads, n, n)
        found = {"cls": states, "scores": scores}
        most = max(layers, default=0)
        empty = torch.empty(0)
        given = {}
        for name in extras:
            kept = found[name]
            assert kept is not None
            by_layer = dict(zip(layers, kept.to(ids.device), strict=True))
            given[name] = tuple(by_layer.get(at, empty) for at in range(1, most + 1))
        return Exit(logits.to(ids.device), (), given)
