"""A tiny encoder and texts that it can learn, for tests and quick runs."""

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

GOOD, BAD = ("fine", "great", "lovely", "warm"), ("dull", "poor", "cold", "grim")
REST = ("the", "film", "is", "a", "tale", "of", "two", "friends", "and", "their", "dog")


def write_tokenizer(folder: Path, kind: str = "bert") -> int:
    """Write tokenizer.json; gives the size of its vocabulary."""
    pad, unknown, first, last = (
        ("<pad>", "<unk>", "<s>", "</s>") if kind == "roberta" else ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    )
    special = [first, pad, last, unknown] if kind == "roberta" else [pad, unknown, first, last]
    vocabulary = {word: i for i, word in enumerate([*special, *GOOD, *BAD, *REST, '"', ","])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    ends = (last, vocabulary[last]), (first, vocabulary[first])
    tokenizer.post_processor = (
        processors.RobertaProcessing(*ends) if kind == "roberta" else processors.BertProcessing(*ends)
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


def write_encoder(folder: Path, kind: str = "bert", layers: int = 4, width: int = 16, heads: int = 2,
                  labels: int | None = None) -> Path:  # fmt: skip
    """Write a folder as transformers does, with random weights."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    words = write_tokenizer(folder, kind)
    torch.manual_seed(0)
    pad = 1 if kind == "roberta" else 0
    if kind == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=words, dim=width, hidden_dim=2 * width, n_layers=layers, n_heads=heads,
            max_position_embeddings=40, dropout=0.05, attention_dropout=0.05, initializer_range=0.1,
        )  # fmt: skip
    else:
        make = transformers.RobertaConfig if kind == "roberta" else transformers.BertConfig
        config = make(
            vocab_size=words, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=40, pad_token_id=pad,
            type_vocab_size=1 if kind == "roberta" else 2, initializer_range=0.1,
            hidden_dropout_prob=0.05, attention_probs_dropout_prob=0.05,
        )  # fmt: skip
    if labels is None:
        model = transformers.AutoModel.from_config(config)
    else:
        config.num_labels = labels
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    return folder


def texts(count: int, seed: int = 0, pairs: bool = False) -> list[tuple[str, ...]]:
    """Rows of a text or two and a label: 1 if a good word is in the (last) text, 0 if a bad one is."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = draw.choices(REST, k=draw.randint(2, 9))
        words.insert(draw.randrange(len(words)), draw.choice(GOOD if i % 2 else BAD))
        text = " ".join(words)
        rows.append((*(["the tale"] if pairs else []), text, str(i % 2)))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] | None = None) -> Path:
    """Write rows under a header."""
    pair = len(rows[0]) == 3
    header = header or (("sentence1", "sentence2", "label") if pair else ("sentence", "label"))
    lines = ["\t".join(row) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def small_study(folder: Path) -> dict[str, Any]:
    """Write texts and an encoder of six layers into a folder; gives the study's arguments for them."""
    data = folder / "texts"
    data.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", 96, 0), ("dev", 48, 1)):
        write_tsv(data / f"{name}.tsv", texts(count, seed))
    return {"data": str(data), "net": str(write_encoder(folder / "encoder", layers=6))}
