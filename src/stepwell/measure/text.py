"""Networks of texts: a nested encoder with its tokenizer, in one file. They give classes or numbers."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from stepwell.data.text import LABEL, Labels, Numbers, Text, in_one_line, is_blank, read_texts
from stepwell.data.text_files import TextFiles, read_parts
from stepwell.data.tokens import TextBatches, Tokenizer, TokenSet
from stepwell.nets.files.nested import Beside, load_both, save
from stepwell.nets.nested.cascade import Cascade
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.predictions import Answers, Prediction, check_finite, probabilities
from stepwell.train_mode import check_eval_mode

#: Kinds of networks in a file's header: of classes, of numbers, and of classes by a recurrent network.
KINDS = KIND, NUMBERS, SEQUENCE = "text", "text-numbers", "sequence"
#: Texts at once.
BATCH = 64
#: What to do about a column that a file of other texts lacks.
AS_TRAINED = "name the columns as in the training"
#: Token ids of a batch, padded.
Ids = Int64[Tensor, "texts tokens"]


@dataclass(frozen=True)
class TextClassifier:
    """A nested encoder and its tokenizer. An encoder with one output predicts a number.

    pairs: it was trained on pairs of texts; None: the file does not say it.

    >>> stepwell.open_network("runs/reviews").net.predict("a lovely film")  # doctest: +SKIP
    Prediction(file=..., label='1', probability=0.98, depth='6', ...)
    """

    net: NestedNet
    tokenizer: Tokenizer
    pairs: bool | None = None

    def __getattr__(self, name: str) -> Any:
        inside = " (the encoder inside, .net, has it)" * hasattr(self.__dict__.get("net"), name)
        raise AttributeError(
            f"a network of texts has no attribute {name!r}{inside}: it has predict, classify, net and "
            "tokenizer"
        )

    def predict(
        self, texts: str | Text | Iterable[str | Text], *, depth: str | None = None, top: int = 1
    ) -> Prediction | list[Prediction]:
        """Classify a text, or several, or predict their numbers; a pair of texts is a tuple.

        Warns of texts that are cut.

        Args:
            depth: the depth that answers, the full net by default.
            top: number of most probable classes in each prediction.

        Raises:
            ValueError: no such depth, or it was never trained; an empty text; pairs among single
                texts, or where the network was trained on these, or the reverse; a network in train
                mode.
        """
        if single := isinstance(texts, str) or (isinstance(texts, tuple) and len(texts) <= 2):
            texts = [texts]
        if isinstance(texts, bytes) or not isinstance(texts, Iterable):
            raise ValueError(f"give a text, a pair, or a list of these, not {texts!r:.60}")
        rows = [tuple(text) if isinstance(text, tuple | list) else (text,) for text in texts]
        depth = self.net.full if depth is None else depth
        self.net.require_ready(depth)
        predictions = self.classify(rows, depth, top=top)
        return predictions[0] if single else predictions

    def classify(
        self, texts: Sequence[Text], by: str | Cascade | Callable[[Ids], Answers], *, top: int = 1,
        places: Sequence[str] = (),
    ) -> list[Prediction]:  # fmt: skip
        """Classify texts by a depth, a cascade, or a function of token ids.

        Errors, as for `predict`, name texts by `places`.
        """
        if type(top) is not int or top < 1:
            raise ValueError(f"top is a number of classes, 1 or more, not {top!r}")
        check_eval_mode(self.net)
        examples = self.encoded(texts, places or [f"text {i}" for i in range(1, len(texts) + 1)])
        if examples.cut:
            warnings.warn(examples.cut_note, stacklevel=2)
        return self.classify_encoded(examples, by, top=top)

    def encoded(self, texts: Sequence[Text], places: Sequence[str]) -> TokenSet:
        """The token ids of texts; errors, as for `predict`, name them by `places`."""
        self.check(texts, places)
        return TokenSet.of(texts, [-1] * len(texts), self.net.card.classes, self.tokenizer)

    def classify_encoded(
        self, examples: TokenSet, by: str | Cascade | Callable[[Ids], Answers], *, top: int = 1
    ) -> list[Prediction]:
        """Classify texts that are token ids already; arguments as for `classify`."""
        classes, texts = self.net.card.classes, examples.texts
        batches = TextBatches(examples, BATCH)
        device = next(self.net.parameters()).device
        predictions: list[Prediction] = [Prediction()] * len(texts)
        for position in range(len(batches) if len(texts) else 0):
            ids = batches.at(position).inputs.to(device)
            with torch.inference_mode():
                if isinstance(by, str):
                    logits, depths = self.net(ids, by), [by] * len(ids)
                elif isinstance(by, Cascade):
                    answer = by(ids)
                    logits, depths = answer.logits, [by.depths[i] for i in answer.depth.tolist()]
                else:
                    logits, depths = by(ids)
                check_finite(logits)
                shares = probabilities(logits, depths, self.net.card)
                shares, order = shares.sort(dim=1, descending=True, stable=True)
            for row, index in enumerate(batches.indices(position).tolist()):
                text = in_one_line(texts[index])
                if self.net.card.numeric:
                    value = float(logits[row, 0])
                    predictions[index] = Prediction(text, classes[0], depth=depths[row], value=value)
                    continue
                names = [classes[i] for i in order[row, :top].tolist()]
                best = tuple(zip(names, shares[row, :top].tolist(), strict=True))
                predictions[index] = Prediction(text, *best[0], depth=depths[row], top=best)
        return predictions

    def check(self, texts: Sequence[Text], places: Sequence[str]) -> None:
        """Refuse empty texts, and pairs among single texts or the reverse; errors as for `predict`."""
        kinds = {1: "a single text", 2: "a pair of texts with a tab between"}
        known = self.pairs is not None
        for text, place in zip(texts, places, strict=True):
            for part in text:
                if not isinstance(part, str):
                    raise ValueError(f"{place} is no text: {part!r:.60}")
                try:
                    part.encode()
                except UnicodeEncodeError:
                    raise ValueError(
                        f"{place} holds half of a surrogate pair: give whole characters"
                    ) from None
            if any(map(is_blank, text)):
                raise ValueError(f"{place} is empty")
            if len(text) not in kinds:
                raise ValueError(f"{place} is {len(text)} texts with tabs between: give one, or a pair")
            usual = 1 + bool(self.pairs) if known else len(texts[0])
            if len(text) != usual:
                whose = "an input of this network" if known else places[0]
                raise ValueError(f"{place} is {kinds[len(text)]}, and {whose} is {kinds[usual]}")


def some_ids(batches: TextBatches, count: int = 64) -> Ids:
    """Token ids of `count` texts (all, if there are fewer), evenly spaced over the set, padded."""
    examples = batches.examples
    chosen = torch.linspace(0, len(examples) - 1, min(count, len(examples))).long()
    return examples.rows(chosen)


def kind_of(examples: TokenSet) -> str:
    """The kind of network for texts: of numbers, or of classes."""
    return NUMBERS if examples.numeric else KIND


def save_text(
    net: NestedNet, path: Path, *, tokenizer: Tokenizer, kind: str = KIND, pairs: bool | None = None
) -> Path:
    """Write a nested encoder and its tokenizer to one file; errors as for `stepwell.save`.

    `pairs` as of `TextClassifier`.
    """
    content = torch.frombuffer(bytearray(tokenizer.content.encode()), dtype=torch.uint8)
    about = {"limit": tokenizer.limit, "padding": tokenizer.padding, "pairs": pairs}
    return save(net, path, beside=Beside(kind, about, {"tokenizer": content}))


def load_text(path: Path, module: Callable[[], nn.Module] | None = None) -> TextClassifier:
    """Read a network of texts of a run or a file; errors as for `stepwell.load`."""
    net, beside = load_both(path, module)
    if beside is None or beside.kind not in KINDS:
        raise ValueError(f"{path} holds no tokenizer, so it cannot read texts")
    content = beside.tensors["tokenizer"].numpy().tobytes().decode()
    about = {"pairs": None} | beside.about
    return TextClassifier(net, Tokenizer(content, about["limit"], about["padding"]), about["pairs"])


@dataclass(frozen=True)
class TextBatchParts:
    """Texts to measure on; `known`: the network was certainly trained on this data.

    train: the training part, of the run's own data only.
    """

    validation: TextBatches | None
    test: TextBatches
    known: bool
    name: str
    fingerprint: str
    train: TextBatches | None = None

    @property
    def about(self) -> dict[str, Any]:
        """The record of the data in an evaluation."""
        return {"name": self.name, "fingerprint": self.fingerprint, "own": self.known}


def text_parts(
    classifier: TextClassifier, path: Path, config: Mapping[str, Any], data: str | None = None
) -> TextBatchParts:
    """Read labelled texts to measure a network on: the run's own parts, or the file `data`.

    On other data, all of it is the test part, and there is no validation part.

    Args:
        path: of the run or the file, for messages.
        config: the run's config.json; empty for a file outside of a run.

    Raises:
        ValueError: neither a run nor `data`; the run's data has changed; a label that the network does
            not know.
    """
    card = classifier.net.card
    labels = Numbers(card.classes) if card.numeric else Labels(card.classes)
    arguments = config.get("arguments", {})
    column = arguments.get("label", card.classes[0] if card.numeric else LABEL)

    def read(file: Path) -> TokenSet:
        texts = read_texts(file, arguments.get("text", ()), column, AS_TRAINED)
        classifier.check(texts.texts, texts.places)
        return TokenSet.of(texts.texts, labels.numbers(texts), labels.classes, classifier.tokenizer)

    if data is not None:
        whole = read(Path(data))
        if whole.cut:
            warnings.warn(f"{data}: {whole.cut_note}", stacklevel=2)
        return TextBatchParts(None, TextBatches(whole, BATCH), False, data, whole.fingerprint)
    if not config:
        raise ValueError(f"{path} is not in a run directory, so say what to measure on with --data")
    test, valid = (None if (n := arguments.get(k)) is None else Path(n) for k in ("test", "valid"))
    files = TextFiles(test=test, valid=valid)
    parts = read_parts(Path(arguments["data"]), files, read)
    train, validation = parts.train, parts.validation
    fingerprint = f"{train.fingerprint}/{parts.test.fingerprint}"
    if fingerprint != config["data"]["fingerprint"]:
        raise ValueError(
            f"{arguments['data']} has changed since the network was trained on it, so its test part "
            "may hold texts of the training: name data to measure on with --data"
        )
    if validation is None and arguments.get("val_fraction"):
        train, validation = train.split(arguments["val_fraction"])
    aside = None if validation is None else TextBatches(validation, BATCH)
    tests = TextBatches(parts.test, BATCH)
    name, train_batches = config["data"]["name"], TextBatches(train, BATCH)
    return TextBatchParts(aside, tests, True, name, fingerprint, train_batches)
