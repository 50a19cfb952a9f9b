"""A shallow text encoder and its deep teacher: how they begin, and how far they end apart."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stepwell.data.tokens import TextBatches, TokenSet
from stepwell.files import config_of
from stepwell.losses import attention_kl, cls_cosine
from stepwell.measure.depths import cost_table
from stepwell.measure.text import load_text
from stepwell.measures import big
from stepwell.methods.bert_internal import InternalKD, shape_of
from stepwell.nets import Card, NestedNet, build
from stepwell.tasks.classification import Task
from stepwell.tasks.text import TextSplits
from stepwell.teachers.encoder_outputs import EncoderOutputs, Kept, kept_layers
from stepwell.teachers.teacher import Frozen
from stepwell.train_mode import in_eval_mode
from stepwell.training.progress import tell

#: Most bytes of a teacher's outputs on disk; above it, the teacher runs in every step.
MOST_BYTES = 8 * 2**30
#: The teacher's outputs in a run, while its student learns.
OUTPUTS = ("student", "teacher.bin")


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
        (task.run.phase(phase) / name).unlink(missing_ok=True)


@torch.no_grad()
def mismatch(
    student: NestedNet, teacher: NestedNet, batches: TextBatches, layers: Sequence[int]
) -> dict[str, Any]:
    """Measure the distance of a student's layers and answers from its teacher's, on labelled texts.

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


def cost_of_teacher(teacher: NestedNet, texts: TokenSet) -> dict[str, Any]:
    """The costs of a teacher, as a run has those of its rows, and its number of layers, "depth"."""
    teacher = teacher.cpu()
    teacher.card = Card(texts.classes, texts.size, input=texts.input)
    return {"depth": teacher.full, **cost_table(teacher, texts.size)[teacher.full]}


def _apart(name: str, ours: Tensor, theirs: Tensor, mask: Tensor) -> float:
    """The distance of scores or [CLS] states; not a number if their shapes differ."""
    if ours.shape != theirs.shape:
        return math.nan
    return float(attention_kl(ours, theirs, mask) if name == "scores" else cls_cosine(ours, theirs))
