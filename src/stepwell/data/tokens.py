"""Texts as token ids, in batches of similar length."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from stepwell.data.loader import balanced, generator_of, seed_of
from stepwell.data.text import Text, in_one_line
from stepwell.extras import extra
from stepwell.types import Batch

#: Batches whose texts are sorted by length together, in training.
WINDOW = 50


class Tokenizer:
    """The tokenizer of an encoder.

    Args:
        content: of a tokenizer.json.
        limit: most tokens of a text, its special tokens included.
        padding: id of the padding token.

    Raises:
        ValueError: the content is no tokenizer, or it needs more than `limit` tokens for an empty text.
        ImportError: the extra `text` is not installed.
    """

    def __init__(self, content: str, limit: int, padding: int) -> None:
        with extra("text"):
            from tokenizers import Tokenizer as Library
        self.content, self.limit, self.padding = content, limit, padding
        try:
            self._library, self._cutting = Library.from_str(content), Library.from_str(content)
        except Exception as error:  # the library raises Exception itself
            raise ValueError(
                f"the encoder's tokenizer.json cannot be read ({error}): write it again with "
                "tokenizer.save_pretrained"
            ) from error
        # two, because threads share them and truncation is a state of the library's object
        for library in (self._library, self._cutting):
            library.no_padding()
            library.no_truncation()
        self.special = special = int(self._library.num_special_tokens_to_add(True))
        if limit <= special:
            raise ValueError(
                f"a text of {limit} token{'s' * (limit != 1)} has no room beside its {special} special "
                f"ones: allow {special + 1} or more (--max-tokens)"
            )
        self._cutting.enable_truncation(limit, strategy="longest_first")

    @property
    def words(self) -> int:
        """The size of the vocabulary."""
        return int(self._library.get_vocab_size())

    @property
    def fingerprint(self) -> str:
        """A hash of the vocabulary and its rules."""
        return hashlib.sha256(self.content.encode()).hexdigest()[:16]

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """The words that are marks of the tokenizer, such as [SEP]."""
        known = self._library.get_added_tokens_decoder().values()
        return tuple(token.content for token in known if token.special)

    @property
    def cutting(self) -> str:
        """The content of a tokenizer.json that cuts texts as this one does, for other programs."""
        return str(self._cutting.to_str())

    @property
    def separator(self) -> int | None:
        """The id of the token after the first text of a pair; None if there is none."""
        pair = self._library.encode("a", "b")
        ends = [i for i, text in enumerate(pair.sequence_ids, 1) if text == 0]
        after = ends[-1] if ends else len(pair.ids)
        return pair.ids[after] if None in pair.sequence_ids[after : after + 1] else None

    def encode(self, texts: Sequence[Text]) -> tuple[list[list[int]], int]:
        """The token ids of each text or pair, cut to the limit, and the number of texts that were cut.

        Of a pair the longer text is cut first.
        """
        pairs = [text[0] if len(text) == 1 else text for text in texts]
        ids = [one.ids for one in self._library.encode_batch_fast(pairs)]
        long = [i for i, one in enumerate(ids) if len(one) > self.limit]
        for i, one in zip(long, self._cutting.encode_batch_fast([pairs[i] for i in long]), strict=True):
            ids[i] = one.ids
        return ids, len(long)

    def words_of(self, ids: Sequence[int]) -> list[str]:
        """Each token as a person reads it."""
        return [self._library.decode([one], skip_special_tokens=False).strip() for one in ids]


@dataclass(frozen=True)
class TokenSet:
    """Labelled texts as token ids.

    ids: of all texts, one after the other. starts: where each text begins, and the end.
    labels: class indices, -1: no label; or numbers to predict, which are floats.
    classes: names of the classes; of numbers, their one name.
    scale: mean and standard deviation that numbers were divided by (see `standardised`).
    texts: the texts themselves. cut: how many were longer than the limit.
    """

    input: ClassVar[Literal["text"]] = "text"
    drawing: ClassVar[dict[str, Any]] = {}
    NOUN: ClassVar = "texts"
    ids: Int64[Tensor, " tokens"]
    starts: Int64[Tensor, " edges"]
    labels: Shaped[Tensor, " texts"]
    classes: tuple[str, ...]
    tokenizer: Tokenizer
    texts: tuple[Text, ...] = field(default=(), repr=False)
    cut: int = 0
    scale: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(
        cls, texts: Sequence[Text], labels: Sequence[float], classes: tuple[str, ...],
        tokenizer: Tokenizer,
    ) -> "TokenSet":  # fmt: skip
        """Encode texts whose labels are indices of `classes`, or numbers, which are floats.

        ValueError for a text of padding alone.
        """
        ids, cut = tokenizer.encode(texts)
        for text, one in zip(texts, ids, strict=True):
            if all(token == tokenizer.padding for token in one):
                raise ValueError(
                    f"the text {in_one_line(text)!r} is padding only, which no layer can read: leave "
                    "it out"
                )
        starts = torch.tensor([0, *map(len, ids)]).cumsum(0)
        flat = torch.from_numpy(np.fromiter((i for one in ids for i in one), np.int64))
        return cls(flat, starts, torch.tensor(labels), classes, tokenizer, tuple(texts), cut)

    @classmethod
    def joined(cls, sets: Sequence["TokenSet"]) -> "TokenSet":
        """Texts of several sets with the same classes and tokenizer, one after the other."""
        lengths = [torch.zeros(1, dtype=torch.int64), *(own.lengths for own in sets)]
        return replace(
            sets[0], ids=torch.cat([own.ids for own in sets]), starts=torch.cat(lengths).cumsum(0),
            labels=torch.cat([own.labels for own in sets]),
            texts=sum((own.texts for own in sets), ()), cut=sum(own.cut for own in sets),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """The most tokens of a text."""
        return self.tokenizer.limit

    @property
    def cut_note(self) -> str:
        """A sentence with the number of texts that were cut; empty if none was."""
        if not self.cut:
            return ""
        are = "are" if self.cut > 1 else "is"
        which = "the text" if len(self) == 1 else f"{self.cut:,} of {len(self):,} texts"
        return f"{which} {are} longer than {self.size} tokens and {are} cut"

    @property
    def pairs(self) -> bool | None:
        """True for pairs of texts; None if the texts are not kept."""
        return len(self.texts[0]) == 2 if self.texts else None

    @property
    def lengths(self) -> Int64[Tensor, " n"]:
        """The number of tokens of each text."""
        return self.starts.diff()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the ids, the labels and the classes."""
        digest = hashlib.sha256(repr((self.classes, self.size, self.tokenizer.fingerprint)).encode())
        for values in (self.ids, self.starts, self.labels):
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def content(self) -> str:
        """A hash of the texts and their labels, whatever the tokenizer makes of them."""
        digest = hashlib.sha256(repr((self.classes, self.texts)).encode())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def rows(self, indices: Int64[Tensor, " some"]) -> Int64[Tensor, "some tokens"]:
        """The ids of some texts, padded to the longest of them."""
        lengths = self.lengths[indices]
        width = int(lengths.max())
        at = torch.arange(width)
        places = self.starts[indices][:, None] + at
        real = at < lengths[:, None]
        return torch.where(real, self.ids[places.clamp(max=len(self.ids) - 1)], self.tokenizer.padding)

    @property
    def numeric(self) -> bool:
        """True if the labels are numbers to predict."""
        return self.labels.is_floating_point()

    def standardised(self, scale: tuple[float, float]) -> "TokenSet":
        """The same texts, their numbers less a mean and divided by a standard deviation."""
        mean, std = scale
        return replace(self, labels=(self.labels - mean) / std, scale=scale)

    def subset(self, indices: Int64[Tensor, " some"]) -> "TokenSet":
        """The texts at `indices`."""
        chosen = indices.tolist()
        flat = [self.ids[self.starts[i] : self.starts[i + 1]] for i in chosen]
        starts = torch.tensor([0, *map(len, flat)]).cumsum(0)
        ids = torch.cat(flat) if flat else self.ids[:0]
        texts = tuple(self.texts[i] for i in chosen) if self.texts else ()
        return replace(self, ids=ids, starts=starts, labels=self.labels[indices], texts=texts, cut=0)

    def split(self, fraction: float) -> tuple["TokenSet", "TokenSet"]:
        """Two parts, the second with about `fraction` of every class; the same at every call.

        Of numbers, with about `fraction` of all.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"a part to set aside is a share between 0 and 1, not {fraction}")
        order = torch.randperm(len(self), generator=generator_of(0))
        aside = torch.zeros(len(self), dtype=torch.bool)
        strata = torch.zeros(len(self), dtype=torch.long) if self.numeric else self.labels
        for index in range(len(self.classes)):
            members = order[strata[order] == index]
            aside[members[: min(max(1, round(fraction * len(members))), len(members) - 1)]] = True
        return self.subset((~aside).nonzero().flatten()), self.subset(aside.nonzero().flatten())

    def shown(self, indices: Int64[Tensor, " some"]) -> dict[str, Any]:
        """Some texts as arrays for a report."""
        texts = [in_one_line(self.texts[i]) for i in indices.tolist()] if self.texts else []
        return {"texts": np.array(texts, dtype=np.str_)}


class TextBatches:
    """Texts as batches of token ids (batch, tokens), each of texts of similar length.

    Iterating gives one pass, shortest texts first. Training asks for `stream`, whose batches are
    functions of (seed, position).

    Args:
        examples: the texts.
        batch_size: texts per batch, over all processes.
        shuffle: draw a new order every epoch; for training.
        seed: of the order.
        balance: draw every class equally often, as in `Batches`.
        by_length: batches of similar length, which have less padding; else in any order.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __init__(
        self, examples: TokenSet, batch_size: int, *, shuffle: bool = False, seed: int = 0,
        balance: bool = False, by_length: bool = True,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"a batch size of {batch_size}: it needs at least 1")
        self.examples, self.batch_size = examples, batch_size
        self.shuffle, self.seed = shuffle, seed
        self.balance, self.by_length = balance, by_length
        self.rank, self.world = 0, 1
        self.first = 0
        self._keep_orders()

    def _keep_orders(self) -> None:
        self._order = lru_cache(2)(self._draw_order)

    def __len__(self) -> int:
        """Batches in one epoch."""
        return math.ceil(len(self.examples) / self.batch_size)

    def sharded(self, rank: int, world: int) -> "TextBatches":
        """This process's share: every `world`-th text of each batch, repeated where there are few."""
        share = copy(self)
        share.rank, share.world = rank, world
        return share

    def reseeded(self, *key: object) -> "TextBatches":
        """The same texts in another order, for another phase of a run."""
        other = copy(self)
        other.seed = seed_of(self.seed, *key)
        other._keep_orders()
        return other

    def after(self, position: int) -> "TextBatches":
        """The same batches from `position` on, for the next phase of a training."""
        rest = copy(self)
        rest.first = self.first + position
        return rest

    def with_examples(self, examples: TokenSet) -> "TextBatches":
        """Another set, in one pass."""
        return TextBatches(examples, self.batch_size)

    def indices(self, position: int) -> Int64[Tensor, " batch"]:
        """The texts of this process in the batch at `position`."""
        epoch, step = divmod(self.first + position, len(self))
        batch = self._order(epoch)[step]
        if self.world > 1:
            batch = batch.repeat_interleave(-(-self.world // len(batch)))
        return batch[self.rank :: self.world]

    def at(self, position: int) -> Batch:
        """The batch at `position`, counted from the start of training over all epochs."""
        chosen = self.indices(position)
        return Batch(self.examples.rows(chosen), self.examples.labels[chosen])

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches at positions `start` to `stop`."""
        yield from map(self.at, range(start, stop))

    def __iter__(self) -> Iterator[Batch]:
        return self.stream(0, len(self))

    @property
    def order(self) -> Int64[Tensor, " n"]:
        """The texts in the order of one pass."""
        return torch.cat([*self._order(0)])

    def _draw_order(self, epoch: int) -> tuple[Shaped[Tensor, " batch"], ...]:
        """The batches of one pass."""
        lengths = self.examples.lengths
        if not self.shuffle:
            order = lengths.argsort(stable=True) if self.by_length else torch.arange(len(lengths))
            return order.split(self.batch_size)
        draw = generator_of(seed_of(self.seed, "order", epoch))
        if self.balance:
            order = balanced(self.examples.labels, draw)
        else:
            order = torch.randperm(len(lengths), generator=draw)
        if not self.by_length:
            return order.split(self.batch_size)
        windows = order.split(WINDOW * self.batch_size)
        sorted_ = torch.cat([window[lengths[window].argsort(stable=True)] for window in windows])
        batches = sorted_.split(self.batch_size)
        turn = torch.randperm(len(batches), generator=draw).tolist()
        return tuple(batches[i] for i in turn)
