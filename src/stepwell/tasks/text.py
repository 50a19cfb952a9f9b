"""The task of texts with classes or numbers: how a run opens its data and network, and ends.

It opens and finishes a run as `tasks.classification` does for images. The data, the encoder and the
tokenizer in the network's file are its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from stepwell.data.image_flags import Images, LabelledImages
from stepwell.data.pictures.flags import Pictures
from stepwell.data.text import Labels, Numbers, Texts, read_texts
from stepwell.data.text_files import TextFiles, read_parts, training_file
from stepwell.data.tokens import TextBatches, Tokenizer, TokenSet
from stepwell.measure.text import kind_of, load_text, save_text
from stepwell.nets import Card, NestedNet, build
from stepwell.nets.families.encoders import (
    ARCHITECTURES,
    Pretrained,
    encoder_name,
    most_tokens,
    read_pretrained,
)
from stepwell.nets.files.container import digest
from stepwell.nets.files.initial_weights import Start, initialise
from stepwell.nets.files.nested import fingerprint
from stepwell.nets.nested.net import NormSharing
from stepwell.tasks import measuring
from stepwell.tasks.measuring import Measured
from stepwell.tasks.task import Inputs, Task, check_patience, open_task
from stepwell.teachers import OpenTeacher
from stepwell.training.optimisation import Optimisation, Smoothed
from stepwell.training.progress import tell

Training = TypeVar("Training", bound=Optimisation)

__all__ = [
    "finish", "name_of", "open_task", "prepare", "read_splits", "settled", "start_network",
    "validator",
]  # fmt: skip
#: Words more than the tokenizer's that an encoder may have: sizes are rounded up for speed.
SPARE = 128
#: Tokens of a text, at most, where the encoder takes as many.
LIMIT = 128
#: Length, batches and rate of fine-tuning, where the caller does not set them.
USUAL: dict[str, Any] = {"epochs": 3, "batch_size": 32, "optimizer": "adamw", "lr": 3e-5}


class TextSplits(NamedTuple):
    """The parts of labelled texts as token ids, and the encoder that they are for."""

    name: str
    train: TokenSet
    test: TokenSet
    validation: TokenSet | None
    encoder: Pretrained

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the training texts' numbers; of classes, 0 and 1."""
        if not self.train.numeric:
            return 0.0, 1.0
        numbers = self.train.labels.double()
        return float(numbers.mean()), float(numbers.std(correction=0))


def name_of(net: str) -> str:
    """The name of the encoder in a folder, such as "bert/6"."""
    return encoder_name(Path(net))


def settled(training: Training) -> Training:
    """The training with the usual settings of fine-tuning where the caller set none."""
    usual = dict(USUAL)
    if training.optimizer == "sgd":
        del usual["lr"]  # which is AdamW's
    return training.settled(**usual)


def read_splits(
    data: str, out: Path, images: Images, net: str, texts: TextFiles = TextFiles(),
    pictures: Pictures = Pictures(),
) -> TextSplits:  # fmt: skip
    """The texts of `data`, a file or a folder with train.tsv, as token ids of the encoder `net`.

    ValueError for flags of images; otherwise as for `read_texts_of`.
    """
    refuse_image_flags(images)
    if flag := pictures.changed:
        raise ValueError(f"--{flag} is for complex networks, and --data names texts: leave it out")
    return read_texts_of(data, net, texts)


def read_texts_of(data: str, net: str, texts: TextFiles) -> TextSplits:
    """The texts of `data` as token ids of the encoder in the folder `net`.

    ValueError for a file or folder that cannot be used, and for labels that do not fit.
    """
    file = training_file(Path(data))
    read = lru_cache(partial(read_texts, columns=texts.text, label=texts.label))  # each file once
    labels = labels_of(read(file), texts)
    encoder = read_pretrained(Path(net), len(labels.classes))
    limit = limit_of(encoder, texts.max_tokens)
    tokenizer = Tokenizer(encoder.tokenizer, limit, encoder.module.padding)
    if tokenizer.words > encoder.config["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {tokenizer.words:,} words and the encoder "
            f"{encoder.config['vocab_size']:,}: they are not of one model"
        )
    if tokenizer.words < encoder.config["vocab_size"] - SPARE:
        tell(
            f"note: the tokenizer has {tokenizer.words:,} words and the encoder "
            f"{encoder.config['vocab_size']:,}: check that they are of one model"
        )
    if not tokenizer.special:
        tell(
            "note: the tokenizer puts no mark such as [CLS] before a text, so the classifier reads its "
            "first word: check that it is the encoder's own"
        )
    like = read(file)
    parts = read_parts(Path(data), texts, lambda path: _encoded(read(path), like, labels, tokenizer))
    if parts.aside:
        tell(f"note: {file} has no test part: {len(parts.test)} of its texts are set aside for it")
    for name, part in (("test", parts.test), ("validation", parts.validation)):
        known = set() if part is None else {*parts.train.texts} & {*part.texts}
        if known:
            tell(
                f"note: {len(known)} of the {name} texts are training texts, too, so the network looks "
                "better on them than it is"
            )
    return TextSplits(data, parts.train, parts.test, parts.validation, encoder)


def labels_of(texts: Texts, files: TextFiles) -> Labels | Numbers:
    """The classes of training texts, or the numbers; errors as for `Labels.of` and `Numbers.of`."""
    if files.regression:
        return Numbers.of(texts, files.label)
    labels = Labels.of(texts, files.label)
    if labels.measured:
        tell(
            f"note: {texts.path} has {len(labels.classes)} different numbers as labels, and each is a "
            "class of its own: --regression predicts the number instead"
        )
    return labels


def _encoded(texts: Texts, like: Texts, labels: Labels | Numbers, tokenizer: Tokenizer) -> TokenSet:
    """Turn a file's texts into token ids, and say how many were cut.

    ValueError for pairs where the training texts, `like`, are single ones, or the reverse.
    """
    if len(texts.texts[0]) != len(like.texts[0]):
        both = sorted((like, texts), key=lambda one: len(one.texts[0]))
        raise ValueError(
            f"{both[0].path} has single texts and {both[1].path} has pairs: name the same columns "
            "with --text"
        )
    encoded = TokenSet.of(texts.texts, labels.numbers(texts), labels.classes, tokenizer)
    if encoded.cut:
        tell(f"note: {texts.path}: {encoded.cut_note} (--max-tokens)")
    marked = [
        line
        for text, line in zip(texts.texts, texts.lines, strict=True)
        if any(mark in part for part in text for mark in tokenizer.marks)
    ]
    if marked:
        marks = ", ".join(tokenizer.marks)
        tell(
            f"note: {texts.path}: {len(marked)} of its texts, the first in line {marked[0]}, hold a "
            f"mark of the tokenizer ({marks}) as a word, and it is read as the mark"
        )
    return encoded


def limit_of(encoder: Pretrained, limit: int | None) -> int:
    """The most tokens of a text; ValueError for more than the encoder has positions for."""
    most = most_tokens(encoder.module.config, encoder.module.padding)
    if limit is None:
        return min(LIMIT, most)
    if limit > most:
        raise ValueError(f"--max-tokens {limit}: this encoder takes at most {most} tokens")
    return limit


def refuse_image_flags(images: Images) -> None:
    """Raise ValueError for a flag of images that was set."""
    usual = type(images)()
    for field in fields(usual):
        if field.name != "balance" and getattr(images, field.name) != getattr(usual, field.name):
            name = field.name.replace("_", "-")
            raise ValueError(f"--{name} is for images, and --data names texts: leave it out")


def start_network(
    splits: TextSplits, net: str | NestedNet, depths: Sequence[str] = (), *,
    stages: Sequence[str] = (), stem: Literal["auto", "imagenet", "small"] = "auto",
    norms: NormSharing = "private", init: Literal["pretrained"] | Path | None = None,
) -> tuple[NestedNet, Start]:  # fmt: skip
    """Build the nested encoder with the weights of its folder, or of `init`, a run or a file.

    `net` is the folder, or an encoder that is built from it already, and stays as it is without `init`.
    Depths that are numbers of layers keep the encoder's last layer (`with_last_layer`). Errors as for
    `build`; ValueError for a stem, `init` "pretrained", or depths of an encoder that is built already.
    """
    if stem != "auto":
        raise ValueError(f"--stem {stem} is for images, and --data names texts: leave it out")
    if init == "pretrained":
        raise ValueError(
            "--init pretrained: the weights of the encoder's folder (--net) are the start already; "
            "leave it out"
        )
    encoder = splits.encoder
    start = Start(Card(input="text"), encoder.fresh)
    if isinstance(net, NestedNet):
        if depths or stages or norms != "private":
            raise ValueError("depths, stages and norms are for an encoder's folder: this one is built")
        if init is None:
            return net, start
    else:
        if not stages:
            stages, depths = with_last_layer(encoder.name, depths)
        own: dict[str, Any] = {"stages": stages} if stages else {}
        net = build(
            encoder.name, depths, norms=norms, config=encoder.config,
            num_classes=len(splits.train.classes), **own,
        )  # fmt: skip
        net.load_full(encoder.module.state_dict())
    nested = net
    if isinstance(init, Path):
        start = initialise(nested, init, splits.train.classes)
    if not start.fresh:
        standardise(nested, splits.scale)
    return nested, start


def with_last_layer(name: str, depths: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Stages and depths of which a depth of k layers is the first k - 1 and the last one.

    The [CLS] state, which the classifier reads, carries little information before the last layers of a
    pretrained encoder, and a depth that ends there can stay at chance. Depths by other names or of one
    layer are first layers alone, without stages; ValueError for both kinds in one encoder.

    >>> with_last_layer("bert/6", ["2", "4"])
    (('bert.encoder.layer[0:5]', 'bert.encoder.layer[5:6]'), ['2=1,1', '4=3,1'])
    """
    layers = int(name.partition("/")[2])
    keeping = [d for d in depths if d.isdecimal() and 2 <= int(d) < layers]
    if not keeping or any(d.isdecimal() and int(d) >= layers for d in depths):  # refused by `build`
        return (), depths
    if first := [d for d in depths if d not in keeping]:
        all_first = " ".join(f"{d}={d}" if d.isdecimal() else d for d in depths)
        raise ValueError(
            f"--depths {' '.join(depths)}: {keeping[0]} keeps the encoder's last layer and {first[0]} "
            f"does not, and one encoder holds one kind: leave {first[0]} out, or name first layers "
            f"alone with --depths {all_first}"
        )
    stage, _ = ARCHITECTURES[name.partition("/")[0]]
    cut = (f"{stage}[0:{layers - 1}]", f"{stage}[{layers - 1}:{layers}]")
    return cut, [f"{d}={int(d) - 1},1" for d in depths]


def standardise(net: NestedNet, scale: tuple[float, float]) -> None:
    """Let a network that predicts numbers predict them less a mean, divided by a standard deviation."""
    mean, std = scale
    module: Any = net.module
    if scale != (0.0, 1.0):
        module.rescale(-mean / std, 1 / std)


def prepare(
    splits: TextSplits, images: Images | None, training: Optimisation, *, start: Start | None = None,
    init: Literal["pretrained"] | Path | None = None, teacher: OpenTeacher | None = None,
) -> Inputs[TextBatches]:  # fmt: skip
    """Turn token ids into batches; ValueError for a teacher of images, or a flag of classes.

    Numbers to train on are standardised: the same learning rates and weights suit all columns.
    """
    if teacher is not None:
        raise ValueError("--teacher teaches images here; for texts use stepwell train bert")
    train, validation = splits.train, splits.validation
    if validation is None and training.val_fraction:
        train, validation = train.split(training.val_fraction)
    balance = isinstance(images, LabelledImages) and images.balance
    if train.numeric:
        smoothed = isinstance(training, Smoothed) and training.label_smoothing
        for name, value in (("balance", balance), ("label-smoothing", smoothed)):
            if value:
                raise ValueError(
                    f"--{name} is for classes, and --regression predicts numbers: leave it out"
                )
        train = train.standardised(splits.scale)
        validation = None if validation is None else validation.standardised(splits.scale)
    assert training.batch_size is not None
    batches = TextBatches(train, training.batch_size, shuffle=True, seed=training.seed, balance=balance)
    check_patience(training, validation is not None)
    about: dict[str, Any] = {
        "name": splits.name, "fingerprint": f"{splits.train.fingerprint}/{splits.test.fingerprint}",
        "classes": list(train.classes), "train": len(train),
        "validation": len(validation) if validation else 0, "test": len(splits.test),
        "size": train.size, "cut": splits.train.cut + splits.test.cut,
        "content": f"{splits.train.content}/{splits.test.content}",
        "tokenizer": train.tokenizer.fingerprint,
    }  # fmt: skip
    if splits.validation is not None:
        about["valid"] = splits.validation.fingerprint
    known = splits.encoder.module.state_dict()
    pretrained = {k: v for k, v in known.items() if k not in splits.encoder.fresh}
    weights = [digest({}, pretrained)[:16]]  # a resumed run must find the same encoder
    weights += [fingerprint(init)] if isinstance(init, Path) else []
    aside = None if validation is None else batches.with_examples(validation)
    return Inputs(batches, aside, batches.with_examples(splits.test), None, about, tuple(weights))


def finish(
    task: Task[TextBatches], net: NestedNet, untrained: Mapping[str, Sequence[int]] | None = None,
    record: Mapping[str, Any] | None = None, trained: Sequence[str] | None = None, *,
    cascade: Mapping[str, Any] | None = None, kind: str | None = None,
    measure: Callable[[NestedNet, Any], Measured] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the trained `net` on the test part, write the run's results, and return them.

    Args as for `measuring.finish`; the kind is by default that of the labels. The tokenizer
    goes into the network's file, whose network predicts numbers as they stand in the data.
    """
    examples = task.train.examples
    mean, std = examples.scale
    module: Any = net.module
    if examples.numeric:
        module.rescale(mean, std)
    kind = kind or kind_of(examples)
    return measuring.finish(
        task, net, untrained, record, trained, kind=kind, cascade=cascade, measure=measure,
        write=partial(save_text, tokenizer=examples.tokenizer, kind=kind, pairs=examples.pairs),
        read=lambda file: load_text(file).net,
    )  # fmt: skip


def validator(
    net: NestedNet, task: Task[TextBatches], depths: Sequence[str] | None = None
) -> Callable[[], dict[str, float]] | None:
    """A call that measures `net` on the validation part; none without such a part."""
    return measuring.validator(net, task, depths, kind_of(task.train.examples))
