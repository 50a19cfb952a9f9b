"""Recurrent networks for texts by the name `skip-CELL/WIDTH` (`skip-gru/128`): they skip tokens.

Their word vectors are those of a text encoder, and are not trained.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.nets.decisions.sequences import CELLS, Mask, SkipCell, Vectors
from stepwell.nets.families.builder import Builder

PREFIX = "skip-"
#: The largest width that a name may have.
WIDEST = 4096


class Words(nn.Module):
    """Token ids (batch, tokens) to the mask of real tokens, and their vectors, each normalised.

    Padding stands at the end of a text: all before its last real token counts as text. ValueError for
    texts without any token, and for an attention mask of texts that are padded in front.
    """

    def __init__(self, words: int, inputs: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.vectors = nn.Embedding(words, inputs).requires_grad_(False)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Mask, Vectors]:
        if isinstance(ids, Tensor) and ids.shape[1] == 0:
            raise ValueError("texts of no token: give each one token at least")
        mask = self.mask(ids, attention_mask)
        vectors = self.vectors(ids)
        return mask, F.layer_norm(vectors, vectors.shape[-1:])

    def mask(self, ids: Tensor, attention_mask: Tensor | None = None) -> Mask:
        """True for real tokens."""
        given = ids != self.padding if attention_mask is None else attention_mask.bool()
        static = torch.compiler.is_compiling() or given.is_meta  # no value may be looked at
        if attention_mask is not None and not static and (~given[:, 0] & given.any(1)).any():
            raise ValueError(
                "texts padded in front: pad them at the end (a tokenizer's padding_side='right')"
            )
        # a word of the text that is the padding token is read as a word: only the end is padding
        mask: Mask = given.flip(1).cumsum(1).flip(1) > 0
        return mask


class Recurrent(nn.Module):
    """Token ids (batch, tokens) to logits (batch, classes), by one layer that skips tokens.

    Args:
        cell: a key of `CELLS`.
        width: numbers of its state.
        words: size of the vocabulary.
        inputs: numbers of a word's vector.
        padding: id of the padding token.
    """

    def __init__(
        self, cell: str, width: int, *, words: int = 1000, inputs: int = 64, padding: int = 0,
        dropout: float = 0.1, num_classes: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.words = Words(words, inputs, padding)
        self.cells = nn.ModuleList([SkipCell(cell, inputs, width)])
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)

    @property
    def padding(self) -> int:
        """The id of the padding token."""
        return self.words.padding

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Float[Tensor, "batch _"]:
        """Logits of token ids; the mask is 1 or true for real tokens, by default all but padding."""
        state = self.words(ids, attention_mask=attention_mask)
        for cell in self.cells:
            state = cell(state)
        return self.classifier(self.dropout(state))


def is_recurrent(name: str) -> bool:
    """Check whether a name is that of a recurrent network, such as "skip-gru/128"."""
    cell, slash, _ = name.removeprefix(PREFIX).partition("/")
    return name.startswith(PREFIX) and bool(slash) and cell in CELLS


def recurrent_builder(name: str) -> Builder:
    """The builder of a recurrent network; ValueError for a width that cannot be."""
    cell, _, width = name.removeprefix(PREFIX).partition("/")
    count = int(width) if width.isdecimal() else 0
    if not 1 <= count <= WIDEST:
        raise ValueError(
            f"no network {name!r}: say its width, 1 to {WIDEST}, such as {PREFIX}{cell}/128"
        )
    return Builder(partial(Recurrent, cell, count), ("cells",), "1", {"1": (1,)}, size=128)


def with_vectors(net: nn.Module, vectors: Float[Tensor, "words inputs"]) -> None:
    """Copy word vectors into a recurrent network."""
    (words,) = (inner for inner in net.modules() if isinstance(inner, Words))
    with torch.no_grad():
        words.vectors.weight.copy_(vectors)
