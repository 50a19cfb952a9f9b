"""The task of classifying texts: how a run opens its data and network, and writes its results.

It opens and finishes a run as `tasks.classification` does for images. The data, the encoder and the
tokenizer in the network's file are its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from stepwell.data.image_flags import Images, LabelledImages
from stepwell.data.text import Labels, read_texts
from stepwell.data.text_files import TextFiles, read_parts, training_file
from stepwell.data.tokens import TextBatches, Tokenizer, TokenSet
from stepwell.files import config_of
from stepwell.losses import attention_kl, cls_cosine
from stepwell.measure.text import KIND, load_text, save_text
from stepwell.measures import big
from stepwell.methods.bert_internal import InternalKD, shape_of
from stepwell.nets import Card, NestedNet, build
from stepwell.nets.families.encoders import Pretrained, encoder_name, read_pretrained
from stepwell.nets.files.container import digest
from stepwell.nets.files.initial_weights import Start, initialise
from stepwell.nets.files.nested import fingerprint
from stepwell.nets.nested.net import NormSharing
from stepwell.tasks import classification
from stepwell.tasks.classification import Inputs, Task, open_task, untrained_depths, validator
from stepwell.teachers import OpenTeacher
from stepwell.teachers.encoder_outputs import EncoderOutputs, Kept, kept_layers
from stepwell.teachers.teacher import Frozen
from stepwell.train_mode import in_eval_mode
from stepwell.training.optimisation import Optimisation
from stepwell.training.progress import tell

Training = TypeVar("Training", bound=Optimisation)

__all__ = [
    "finish", "name_of", "open_task", "prepare", "read_splits", "settled", "start_network",
    "untrained_depths", "validator",
]  # fmt: skip
#: Most bytes of a teacher's outputs on disk; above it, the teacher runs in every step.
MOST_BYTES = 8 * 2**30
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


def name_of(net: str) -> str:
    """The name of the encoder in a folder, such as "bert/6"."""
    return encoder_name(Path(net))


def settled(training: Training) -> Training:
    """The training with the usual settings of fine-tuning where the caller set none."""
    return training.settled(**USUAL)


def read_splits(
    data: str, out: Path, images: Images, net: str, texts: TextFiles = TextFiles()
) -> TextSplits:
    """The texts of `data`, a file or a folder with train.tsv, as token ids of the encoder `net`.

    ValueError for flags of images; a file or folder that cannot be used; labels that do not fit.
    """
    refuse_image_flags(images)
    file = training_file(Path(data))
    labels = Labels.of(read_texts(file, texts.text, texts.label))
    encoder = read_pretrained(Path(net), len(labels.classes))
    limit = limit_of(encoder, texts.max_tokens)
    tokenizer = Tokenizer(encoder.tokenizer, limit, encoder.config.get("pad_token_id") or 0)
    if tokenizer.words > encoder.config["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {tokenizer.words:,} words and the encoder "
            f"{encoder.config['vocab_size']:,}: they are not of one model"
        )
    parts = read_parts(Path(data), texts, partial(_encoded, texts, labels, tokenizer))
    if parts.aside:
        tell(f"note: {file} has no test part: {len(parts.test)} of its texts are set aside for it")
    return TextSplits(data, parts.train, parts.test, parts.validation, encoder)


def _encoded(files: TextFiles, labels: Labels, tokenizer: Tokenizer, path: Path) -> TokenSet:
    """Read a file as token ids; says how many texts were cut."""
    texts = read_texts(path, files.text, files.label)
    found = TokenSet.of(texts.texts, labels.numbers(texts), labels.classes, tokenizer)
    if found.cut:
        tell(
            f"note: {found.cut:,} of {len(found):,} texts in {path} are longer than "
            f"{tokenizer.limit} tokens and are cut (--max-tokens)"
        )
    return found


def limit_of(encoder: Pretrained, limit: int | None) -> int:
    """The most tokens of a text; ValueError for more than the encoder has positions for."""
    reserved = 2 if encoder.name.startswith("roberta") else 0  # its positions begin behind padding's
    most: int = encoder.config["max_position_embeddings"] - reserved
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
            raise ValueError(f"--{field.name} is for images, and --data names texts: leave it out")


def encoder_folder(teacher: str) -> Path:
    """The folder of an encoder: `teacher` itself, or the one that a text run began with.

    ValueError if it is neither, or the run's folder is gone.
    """
    path = Path(teacher)
    if not (path / "net.safetensors").is_file():
        return path
    net = config_of(path / "net.safetensors").get("arguments", {}).get("net")
    if not net or not Path(net).is_dir():
        raise ValueError(
            f"{teacher} is a run whose encoder's folder ({net}) is not there, and its tokenizer and "
            "pretrained weights are needed: name that folder as --teacher"
        )
    return Path(net)


def trained_encoder(teacher: str, splits: TextSplits) -> NestedNet | None:
    """The trained encoder of a text run, to teach these classes; None if `teacher` is a folder."""
    if not (Path(teacher) / "net.safetensors").is_file():
        return None
    found = load_text(Path(teacher) / "net.safetensors")
    if found.net.card.classes != splits.train.classes:
        raise ValueError(
            f"{teacher} has the classes {', '.join(found.net.card.classes)}, and the data "
            f"{', '.join(splits.train.classes)}: teach its own classes"
        )
    if found.tokenizer.fingerprint != splits.train.tokenizer.fingerprint:
        raise ValueError(f"{teacher} has another vocabulary than its encoder's folder has now")
    return found.net


def shallow(splits: TextSplits, layers: int) -> NestedNet:
    """An encoder like that of the texts with fewer layers, and random weights."""
    architecture = splits.encoder.name.partition("/")[0]
    classes = len(splits.train.classes)
    return build(f"{architecture}/{layers}", config=splits.encoder.config, num_classes=classes)


def copy_layers(source: Mapping[str, Tensor], student: NestedNet, layers: Sequence[int]) -> None:
    """Start a student with the weights of a deeper encoder, its layers with those of `layers`, from 1.

    A layer of 0 stays as it is.
    """
    (stage,) = student.stages
    state = dict(student.module.state_dict())
    for name in state:
        if not name.startswith(f"{stage}."):
            state[name] = source[name]
            continue
        number, _, rest = name.removeprefix(f"{stage}.").partition(".")
        if theirs := layers[int(number)]:
            state[name] = source[f"{stage}.{theirs - 1}.{rest}"]
    student.load_full(state)


#: The teacher's outputs in a run, while its student learns.
OUTPUTS = ("student", "teacher.bin")


def kept_outputs(task: Task[TextBatches], teacher: NestedNet, objective: InternalKD) -> nn.Module:
    """The teacher's outputs on the training texts, looked up; the teacher itself if they are too many.

    In a run whose student has learned, or in one of several processes, the teacher itself.
    """
    phase, name = OUTPUTS
    folder, texts = task.run.phase(phase), task.train.examples
    heads, width = shape_of(teacher)
    own = Kept(len(texts.classes), kept_layers(objective.layers), heads, width)
    needed = 4 * sum(own.count(n) for n in texts.lengths.tolist())
    if (folder / "done").exists() or not task.run.writes:
        return objective.teacher
    if needed > MOST_BYTES:
        tell(f"note: the teacher runs in every step, because its outputs take {big(needed)}B")
        return objective.teacher
    batches = [ids for ids, _ in task.train.with_examples(texts)]
    padding = texts.tokenizer.padding
    return EncoderOutputs(Frozen(teacher, copy=False), batches, padding, own, folder / name)


def drop_outputs(task: Task[TextBatches]) -> None:
    """Remove the teacher's outputs from a finished run."""
    phase, name = OUTPUTS
    if task.run.writes:
        for file in (task.run.phase(phase) / name, task.run.phase(phase) / f"{name}.done"):
            file.unlink(missing_ok=True)


@torch.no_grad()
def mismatch(
    student: NestedNet, teacher: NestedNet, batches: TextBatches, layers: Sequence[int]
) -> dict[str, Any]:
    """How far a student's layers and answers are from its teacher's, on labelled texts.

    Returns:
        By layer of the student "attention_kl" (nats) and "cls_cosine" (1 - cosine), None where they
        cannot be compared; "layers", the teacher's; "teacher_accuracy"; "agreement" of the two; and
        "agreement_on_errors", on texts where the teacher is wrong (None without any).
    """
    device = next(student.parameters()).device
    teacher = teacher.to(device)
    sums, count = torch.zeros(2, len(layers), dtype=torch.double), 0
    alike = [torch.zeros(2, dtype=torch.long) for _ in range(2)]  # all texts, and the teacher's errors
    right = 0
    padding = batches.examples.tokenizer.padding
    with in_eval_mode(student), in_eval_mode(teacher):
        for ids, labels in batches:
            x, mask = ids.to(device), ids.ne(padding).to(device)
            ours, theirs = (
                net.forward_all(x, [net.full], extras=["scores", "cls"])[net.full]
                for net in (student, teacher)
            )
            for i, at in enumerate(layers):
                if at:
                    parts = [
                        (n, ours.extras[n][i], theirs.extras[n][at - 1]) for n in ("scores", "cls")
                    ]
                    sums[:, i] += len(ids) * torch.tensor(
                        [_apart(name, a, b, mask) for name, a, b in parts], dtype=torch.double
                    )
            count += len(ids)
            answers, truth = ours.logits.argmax(1).cpu(), theirs.logits.argmax(1).cpu()
            right += int((truth == labels).sum())
            for tally, chosen in zip(alike, (labels >= 0, truth != labels), strict=True):
                tally += torch.tensor([int((answers == truth)[chosen].sum()), int(chosen.sum())])
    kl, cosine = (
        [None if not at or value != value else value for at, value in zip(layers, row, strict=True)]
        for row in (sums / count).tolist()
    )
    shares = [int(same) / int(n) if n else None for same, n in alike]
    return {
        "layers": [*layers], "attention_kl": kl, "cls_cosine": cosine,
        "teacher_accuracy": right / count, "agreement": shares[0], "agreement_on_errors": shares[1],
    }  # fmt: skip


def _apart(name: str, ours: Tensor, theirs: Tensor, mask: Tensor) -> float:
    """The distance of scores or [CLS] states; not a number if their shapes differ."""
    if ours.shape != theirs.shape:
        return math.nan
    return float(attention_kl(ours, theirs, mask) if name == "scores" else cls_cosine(ours, theirs))


def start_network(
    splits: TextSplits, net: str, depths: Sequence[str] = (), *, stages: Sequence[str] = (),
    stem: Literal["auto", "imagenet", "small"] = "auto", norms: NormSharing = "private",
    init: Literal["pretrained"] | Path | None = None,
) -> tuple[NestedNet, Start]:  # fmt: skip
    """Build the nested encoder with the weights of its folder, or of `init`, a run or a file.

    Errors as for `build`; ValueError for a stem, or `init` "pretrained".
    """
    if stem != "auto":
        raise ValueError(f"--stem {stem} is for images, and --data names texts: leave it out")
    if init == "pretrained":
        raise ValueError(f"--init pretrained: the weights of {net} are the start already; leave it out")
    encoder = splits.encoder
    own: dict[str, Any] = {"stages": stages} if stages else {}
    nested = build(
        encoder.name, depths, norms=norms, config=encoder.config,
        num_classes=len(splits.train.classes), **own,
    )  # fmt: skip
    nested.load_full(encoder.module.state_dict())
    if isinstance(init, Path):
        return nested, initialise(nested, init, splits.train.classes)
    return nested, Start(Card(input="text"), encoder.fresh)


def prepare(
    splits: TextSplits, images: Images, training: Optimisation, *, start: Start | None = None,
    init: Literal["pretrained"] | Path | None = None, teacher: OpenTeacher | None = None,
) -> Inputs[TextBatches]:  # fmt: skip
    """Turn token ids into batches; ValueError for a teacher of images."""
    if teacher is not None:
        raise ValueError("--teacher teaches images here; for texts use stepwell train bert")
    train, validation = splits.train, splits.validation
    if validation is None and training.val_fraction:
        train, validation = train.split(training.val_fraction)
    balance = isinstance(images, LabelledImages) and images.balance
    assert training.batch_size is not None
    batches = TextBatches(train, training.batch_size, shuffle=True, seed=training.seed, balance=balance)
    classification.check_patience(training, validation is not None)
    about = {
        "name": splits.name, "fingerprint": f"{splits.train.fingerprint}/{splits.test.fingerprint}",
        "classes": list(train.classes), "train": len(train),
        "validation": len(validation) if validation else 0, "test": len(splits.test),
        "size": train.size, "cut": splits.train.cut + splits.test.cut,
    }  # fmt: skip
    known = splits.encoder.module.state_dict()
    pretrained = {k: v for k, v in known.items() if k not in splits.encoder.fresh}
    weights = [digest({}, pretrained)[:16]]  # a resumed run must find the same encoder
    weights += [fingerprint(init)] if isinstance(init, Path) else []
    aside = None if validation is None else batches.with_examples(validation)
    return Inputs(batches, aside, batches.with_examples(splits.test), None, about, tuple(weights))


def finish(
    task: Task[TextBatches], net: NestedNet, untrained: Mapping[str, Sequence[int]] | None = None,
    record: Mapping[str, Any] | None = None, trained: Sequence[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the trained `net` on the test part, write the run's results, and return them.

    Args as for `classification.finish`; the tokenizer goes into the network's file.
    """
    tokenizer = task.train.examples.tokenizer
    return classification.finish(
        task, net, untrained, record, trained, kind=KIND,
        write=partial(save_text, tokenizer=tokenizer), read=lambda file: load_text(file).net,
    )  # fmt: skip
