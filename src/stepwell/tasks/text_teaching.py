"""A shallow text encoder and its deep teacher: how they begin, and how far they end apart."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from stepwell.data.tokens import TextBatches, TokenSet
from stepwell.evaluation import NumberTally
from stepwell.files import config_of
from stepwell.losses import attention_kl, cls_cosine
from stepwell.measure.depths import cost_table
from stepwell.measure.text import KIND, NUMBERS, load_text
from stepwell.measures import big
from stepwell.methods.bert_internal import InternalKD, shape_of
from stepwell.nets import Card, NestedNet, build
from stepwell.nets.files.container import kind_of
from stepwell.tasks.task import Task
from stepwell.tasks.text import TextSplits
from stepwell.teachers.encoder_outputs import EncoderOutputs, StoredOutputs
from stepwell.teachers.teacher import Frozen
from stepwell.train_mode import in_eval_mode
from stepwell.training.progress import tell

#: Most bytes of a teacher's outputs on disk; above it, the teacher runs in every step.
MOST_BYTES = 8 * 2**30
#: The teacher's outputs in a run, while its student learns.
OUTPUTS = ("student", "teacher.bin")


#: What may teach, in messages.
FITS = (
    "name a run of train supervised or train ekd on texts, its net.safetensors, or a folder with "
    "config.json, tokenizer.json and model.safetensors"
)


def encoder_folder(teacher: str) -> Path:
    """The folder of an encoder: `teacher` itself, or the one that a text run began with.

    ValueError if it is neither, or the run's folder is gone.
    """
    path = Path(teacher)
    if not path.exists():
        raise ValueError(f"no teacher {teacher}: {FITS}")
    file = file_of(teacher)
    if file is None and (path / "phases").is_dir():
        raise ValueError(
            f"{teacher} is a run that has not ended, so it cannot teach: give its command again, which "
            "goes on where it stopped"
        )
    if file is None:
        return path
    if path.is_file() and (path.parent / "tokenizer.json").is_file():
        raise ValueError(f"--teacher {teacher}: name its folder, {path.parent}")
    if kind_of(file) not in (KIND, NUMBERS):
        raise ValueError(f"{teacher} holds no network of texts: {FITS}")
    arguments = config_of(file).get("arguments", {})
    net = arguments.get("net")
    if net is None:
        whose = "a run of train bert" if arguments else "a file outside of its run"
        raise ValueError(f"{teacher} is {whose}, which cannot teach: {FITS}")
    if not Path(net).is_dir():
        raise ValueError(
            f"{teacher} is a run whose encoder's folder ({net}) is not there, and its tokenizer and "
            "pretrained weights are needed: put it there again, or name another teacher"
        )
    return Path(net)


def file_of(teacher: str) -> Path | None:
    """The file of a teacher that is a trained network; None for the folder of an encoder."""
    path = Path(teacher)
    file = path / "net.safetensors" if path.is_dir() else path
    return file if file.is_file() else None


def trained_encoder(teacher: str, splits: TextSplits) -> NestedNet | None:
    """The trained encoder of a text run, to teach these classes or numbers; None for a folder.

    ValueError if it has other classes, or another vocabulary.
    """
    file = file_of(teacher)
    if file is None:
        return None
    network = load_text(file)
    theirs, ours = network.net.card, splits.train
    if theirs.numeric != ours.numeric:
        gives, are = ("numbers", "classes") if theirs.numeric else ("classes", "numbers")
        raise ValueError(
            f"{teacher} gives {gives}, and the labels are {are} "
            f"({'with' if ours.numeric else 'without'} --regression): teach what it gives"
        )
    if theirs.classes != ours.classes and not ours.numeric:
        raise ValueError(
            f"{teacher} has the classes {', '.join(theirs.classes)}, and the data "
            f"{', '.join(ours.classes)}: teach its own classes"
        )
    if None not in (network.pairs, ours.pairs) and network.pairs != ours.pairs:
        kinds = {True: "pairs of texts", False: "single texts"}
        raise ValueError(
            f"{teacher} was trained on {kinds[bool(network.pairs)]}, and the data has "
            f"{kinds[bool(ours.pairs)]}: name the same columns with --text, or another teacher"
        )
    if network.tokenizer.fingerprint != splits.train.tokenizer.fingerprint:
        raise ValueError(f"{teacher} has another vocabulary than its encoder's folder has now")
    return network.net


def shallow(splits: TextSplits, layers: int) -> NestedNet:
    """An encoder like that of the texts with fewer layers, and random weights."""
    architecture = splits.encoder.name.partition("/")[0]
    classes = len(splits.train.classes)
    return build(f"{architecture}/{layers}", config=splits.encoder.config, num_classes=classes)


def copy_layers(
    source: Mapping[str, Shaped[Tensor, "..."]], student: NestedNet, layers: Sequence[int]
) -> None:
    """Start a student with the weights of a deeper encoder: its layers are `layers` of that, from 1."""
    (stage,) = student.stages
    state = dict(student.module.state_dict())
    for name in state:
        if not name.startswith(f"{stage}."):
            state[name] = source[name]
            continue
        number, _, rest = name.removeprefix(f"{stage}.").partition(".")
        state[name] = source[f"{stage}.{layers[int(number)] - 1}.{rest}"]
    student.load_full(state)


def stored_outputs(task: Task[TextBatches], teacher: NestedNet, objective: InternalKD) -> nn.Module:
    """The teacher's outputs on the training texts, looked up; the teacher itself if they are too many.

    The teacher itself, too, if no loss reads it, or the student has learned already.
    """
    phase, name = OUTPUTS
    folder, texts = task.run.phase(phase), task.train.examples
    heads, width = shape_of(teacher)
    heads, width = heads * bool(objective.attention), width * bool(objective.cls)
    own = StoredOutputs(len(texts.classes), objective.taught_by, heads, width)
    needed = 4 * sum(own.count(n) for n in texts.lengths.tolist())
    if (folder / "done").exists() or not objective.reads_teacher:
        return objective.teacher
    if needed > MOST_BYTES:
        tell(f"note: the teacher runs in every step, because its outputs take {big(needed)}B")
        return objective.teacher
    batches = [ids for ids, _ in task.train.with_examples(texts)]
    padding = texts.tokenizer.padding
    return EncoderOutputs(Frozen(teacher, copy=False), batches, padding, own, folder / name)


def layer_stages(task: Task[TextBatches], stages: int) -> range:
    """The stages before the task stage, from 1; none if the student has learned already.

    Older versions had one learning rate schedule for all stages. A student that one of them began
    starts again.
    """
    student = task.run.phase(OUTPUTS[0])
    if (student / "done").exists():
        return range(0)
    if stages > 1 and task.run.writes and not (task.run.phase("stage-1") / "last.ckpt").exists():
        (student / "last.ckpt").unlink(missing_ok=True)
    return range(1, stages)


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
        By layer of the student "attention_kl" (nats, mean over rows of attention) and "cls_cosine"
        (1 - cosine, mean over texts), None where they cannot be compared; "layers", the teacher's;
        "teacher_accuracy"; "agreement" of the two; and "agreement_on_errors", on texts where the
        teacher is wrong (None without any). Of numbers, "teacher_pearson" and "agreement", the
        correlations of the teacher with the true numbers and with the student.
    """
    device = next(student.parameters()).device
    teacher = teacher.to(device)
    sums, counts = torch.zeros(2, len(layers), dtype=torch.double), torch.zeros(2, 1)
    answers: list[tuple[Tensor, Tensor, Tensor]] = []
    padding = batches.examples.tokenizer.padding
    with in_eval_mode(student), in_eval_mode(teacher):
        for ids, labels in batches:
            x, mask = ids.to(device), ids.ne(padding).to(device)
            ours, theirs = (
                net.forward_all(x, [net.full], extras=["scores", "cls"])[net.full]
                for net in (student, teacher)
            )
            batch = torch.tensor([[int(mask.sum())], [len(ids)]])  # rows of attention, and texts
            for i, at in enumerate(layers):
                if at:
                    parts = [
                        (n, ours.extras[n][i], theirs.extras[n][at - 1]) for n in ("scores", "cls")
                    ]
                    means = torch.tensor([_distance(name, a, b, mask) for name, a, b in parts])
                    sums[:, i] += batch[:, 0] * means
            counts += batch
            answers.append((ours.logits.cpu(), theirs.logits.cpu(), labels))
    kl, cosine = (
        [None if not at or value != value else value for at, value in zip(layers, row, strict=True)]
        for row in (sums / counts).tolist()
    )
    student_logits, teacher_logits, truth = (torch.cat(parts) for parts in zip(*answers, strict=True))
    return {
        "layers": [*layers], "attention_kl": kl, "cls_cosine": cosine,
        **_agreement(student_logits, teacher_logits, truth),
    }  # fmt: skip


def _agreement(
    student: Float[Tensor, "n outputs"],
    teacher: Float[Tensor, "n outputs"],
    truth: Shaped[Tensor, " n"],
) -> dict[str, float | None]:
    """Agreement of the answers of student and teacher; of numbers, their correlations."""
    if truth.is_floating_point():
        of_teacher = NumberTally().add({"": teacher}, truth).measures()["pearson"]
        of_both = NumberTally().add({"": student}, teacher[:, 0]).measures()["pearson"]
        return {"teacher_pearson": of_teacher, "agreement": of_both}
    answers, theirs = student.argmax(1), teacher.argmax(1)
    same, right = answers == theirs, theirs == truth

    def share(of: Tensor) -> float | None:
        return int(of.sum()) / len(of) if len(of) else None

    return {
        "teacher_accuracy": share(right), "agreement": share(same),
        "agreement_on_errors": share(same[~right]),
    }  # fmt: skip


def cost_of_teacher(teacher: NestedNet, texts: TokenSet) -> dict[str, Any]:
    """The costs of a teacher, as a run has those of its rows, and its number of layers, "depth"."""
    teacher = teacher.cpu()
    teacher.card = Card(texts.classes, texts.size, input=texts.input)
    return {"depth": teacher.full, **cost_table(teacher, texts.size)[teacher.full]}


def _distance(
    name: str, ours: Float[Tensor, "batch ..."], theirs: Float[Tensor, "batch ..."],
    mask: Bool[Tensor, "batch tokens"],
) -> float:  # fmt: skip
    """The distance of scores or [CLS] states; not a number if their shapes differ."""
    if ours.shape != theirs.shape:
        return math.nan
    return float(attention_kl(ours, theirs, mask) if name == "scores" else cls_cosine(ours, theirs))
