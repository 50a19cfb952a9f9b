"""Text encoders as paths: BERT (and MiniLM), RoBERTa, DistilBERT.

Each is the library's own classifier: its weights, their names, its layers. Only the forward is ours. It
takes token ids alone, and reads as a path, whose steps hand on a pair: the mask of real tokens and the
hidden states. A layer gives its attention scores where a loss asks for them (`extras`), through the
library's interface for attention; otherwise it runs the fused kernel, which costs nothing more.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.models.bert import modeling_bert as bert
from transformers.models.distilbert import modeling_distilbert as distilbert
from transformers.models.roberta import modeling_roberta as roberta

Ids = Int64[Tensor, "batch tokens"]
Mask = Bool[Tensor, "batch tokens"]
Hidden = Float[Tensor, "batch tokens width"]
State = tuple[Mask, Hidden]
First = Float[Tensor, "batch 1 width"]
Logits = Float[Tensor, "batch classes"]
#: What a layer gives beside its state: "scores" (batch, heads, tokens, tokens), "cls" (batch, width).
Extras = dict[str, Float[Tensor, "batch ..."]]
#: The name of our attention in the library's interface, and of its argument that collects scores.
ATTENTION = "stepwell"
SCORES = "stepwell_scores"


def attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads tokens head_width"],
    key: Float[Tensor, "batch heads tokens head_width"],
    value: Float[Tensor, "batch heads tokens head_width"],
    attention_mask: Bool[Tensor, "batch 1 1 tokens"],
    dropout: float = 0.0,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Float[Tensor, "batch tokens heads head_width"], None]:
    """Attention by the fused kernel; by matrix products if a list collects scores.

    Args:
        attention_mask: true for real tokens.
        rest: `SCORES` is a list that gains the scores before mask, softmax and dropout, (batch, heads,
            tokens, tokens).
    """
    collected: list[Tensor] | None = rest.get(SCORES)
    if collected is None:
        context = F.scaled_dot_product_attention(
            query, key, value, attention_mask, dropout_p=dropout, scale=scaling
        )
        return context.transpose(1, 2).contiguous(), None
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    collected.append(scores)
    masked = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    shares = F.dropout(masked.softmax(-1), dropout, dropout > 0)
    return (shares @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)


class _Layer(nn.Module):
    """A layer that takes and gives the mask beside the hidden states.

    Extras: "scores", as of `attention`; "cls", the first token's hidden state (batch, width).
    """

    def forward(self, state: State, extras: Sequence[str] = ()) -> State | tuple[State, Extras]:
        # the library's own forward stands next in the order of bases
        return self._with_extras(super().forward, state, extras)

    def first(
        self, state: State, extras: Sequence[str] = ()
    ) -> tuple[Mask, First] | tuple[tuple[Mask, First], Extras]:
        """As `forward`, of the first token alone: no other is computed after the attention."""
        return self._with_extras(self._first, state, extras)

    def _first(self, hidden: Hidden, mask: Tensor, **more: Any) -> First:
        raise NotImplementedError

    def _with_extras(self, run: Callable[..., Tensor], state: State, extras: Sequence[str]) -> Any:
        mask, hidden = state
        collected: list[Tensor] = []
        more = {SCORES: collected} if "scores" in extras else {}
        hidden = run(hidden, mask[:, None, None, :], **more)
        if not extras:
            return mask, hidden
        known = {"cls": hidden[:, 0]} | ({"scores": collected[0]} if collected else {})
        return (mask, hidden), {name: known[name] for name in extras if name in known}


class _BertLike(_Layer):
    """A layer of BERT or RoBERTa."""

    def _first(self, hidden: Hidden, mask: Tensor, **more: Any) -> First:
        layer: Any = self
        context, _ = layer.attention.self(hidden, mask, **more)
        attended = layer.attention.output(context[:, :1], hidden[:, :1])
        return cast(Tensor, layer.feed_forward_chunk(attended))


class BertLayer(_BertLike, bert.BertLayer):
    """A layer of BERT."""


class RobertaLayer(_BertLike, roberta.RobertaLayer):
    """A layer of RoBERTa."""


class DistilBertLayer(_Layer, distilbert.TransformerBlock):
    """A layer of DistilBERT."""

    def _first(self, hidden: Hidden, mask: Tensor, **more: Any) -> First:
        layer: Any = self
        context, _ = layer.attention(hidden, mask, **more)
        attended = layer.sa_layer_norm(context[:, :1] + hidden[:, :1])
        return cast(Tensor, layer.output_layer_norm(layer.ffn(attended) + attended))


class _Input(nn.Module):
    """Embeddings that take token ids, and give the mask of real tokens beside the hidden states.

    padding, separator: ids of these tokens; without `separator`, sentences have no types.
    """

    padding: int
    separator: int | None

    def forward(self, ids: Ids, attention_mask: Mask | Ids | None = None) -> State:
        mask = ids != self.padding if attention_mask is None else attention_mask.bool()
        if self.separator is None:
            return mask, super().forward(ids)
        ends = ids == self.separator
        second = (ends.cumsum(1) > ends.long()) & mask  # after the first separator
        return mask, super().forward(ids, token_type_ids=second.long())


class BertInput(_Input, bert.BertEmbeddings):
    """The embeddings of BERT."""


class RobertaInput(_Input, roberta.RobertaEmbeddings):
    """The embeddings of RoBERTa."""


class DistilBertInput(_Input, distilbert.Embeddings):
    """The embeddings of DistilBERT."""


class Encoder(PreTrainedModel):
    """A text encoder with a classifier: token ids (batch, tokens) to logits (batch, classes).

    With one class, it predicts a number.
    """

    @property
    def padding(self) -> int:
        """The id of the padding token."""
        return int(self.config.pad_token_id)

    @torch.no_grad()
    def rescale(self, mean: float, std: float) -> None:
        """Change the head, so that outputs y become mean + std · y."""
        classifier: Any = self.classifier
        head = classifier if isinstance(classifier, nn.Linear) else classifier.out_proj
        head.weight.mul_(std)
        head.bias.mul_(std).add_(mean)

    def _as_path(self, embeddings: Any, layers: nn.ModuleList, kind: type, layer: type) -> None:
        """Give the embeddings and layers, which the library has made, the forward of a path's steps."""
        self.config._attn_implementation = ATTENTION
        embeddings.__class__ = kind
        types = getattr(self.config, "type_vocab_size", 1) > 1
        embeddings.padding = self.config.pad_token_id
        embeddings.separator = getattr(self.config, "sep_token_id", None) if types else None
        for module in layers:
            module.__class__ = layer


class Bert(Encoder, bert.BertForSequenceClassification):
    """BERT with the library's classifier."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._as_path(self.bert.embeddings, self.bert.encoder.layer, BertInput, BertLayer)

    def forward(self, ids: Ids, attention_mask: Mask | Ids | None = None) -> Logits:
        """Logits of token ids; the mask is 1 or true for real tokens, by default all but padding."""
        state = self.bert.embeddings(ids, attention_mask=attention_mask)
        for layer in self.bert.encoder.layer:
            state = layer(state)
        return self.classifier(self.dropout(self.bert.pooler(state[1])))


class Roberta(Encoder, roberta.RobertaForSequenceClassification):
    """RoBERTa with the library's classifier."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._as_path(self.roberta.embeddings, self.roberta.encoder.layer, RobertaInput, RobertaLayer)

    def forward(self, ids: Ids, attention_mask: Mask | Ids | None = None) -> Logits:
        """Logits of token ids; the mask is 1 or true for real tokens, by default all but padding."""
        state = self.roberta.embeddings(ids, attention_mask=attention_mask)
        for layer in self.roberta.encoder.layer:
            state = layer(state)
        return self.classifier(state[1])


class DistilBert(Encoder, distilbert.DistilBertForSequenceClassification):
    """DistilBERT with the library's classifier."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._as_path(
            self.distilbert.embeddings, self.distilbert.transformer.layer, DistilBertInput,
            DistilBertLayer,
        )  # fmt: skip

    def forward(self, ids: Ids, attention_mask: Mask | Ids | None = None) -> Logits:
        """Logits of token ids; the mask is 1 or true for real tokens, by default all but padding."""
        state = self.distilbert.embeddings(ids, attention_mask=attention_mask)
        for layer in self.distilbert.transformer.layer:
            state = layer(state)
        return self.classifier(self.dropout(F.relu(self.pre_classifier(state[1][:, 0]))))


CLASSES: dict[str, type[Encoder]] = {"bert": Bert, "roberta": Roberta, "distilbert": DistilBert}


def read_weights(
    make: type[Encoder], folder: Path, config: PreTrainedConfig
) -> tuple[Encoder, list[str], list[str], list[str]]:
    """An encoder with the weights of a folder, in eval mode.

    Also the names that the folder lacks, those of other shapes, and those that the encoder does not
    have. A head of other classes counts as lacking.
    """
    with _quiet():
        module, info = make.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32,
        )  # fmt: skip
    other = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    heads = [name for name in other if name.startswith(("classifier.", "pre_classifier."))]
    missing = [*info["missing_keys"], *heads]
    return module, sorted(missing), sorted(set(other) - set(heads)), sorted(info["unexpected_keys"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bars and reports away; we say ourselves what matters."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
