"""Text encoders: fine-tuning, kept teacher outputs, attention that is asked for, joint steps.

The encoder has MiniLM's shape (6 layers, 384 wide, 12 heads) and random weights. Lengths of texts are
drawn from a geometric distribution, much as in GLUE. Times are the processor's, of forward and
backward; those beside Hugging Face's Trainer are of whole trainings, optimizer and set-up included.
"""

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.timing import ratio, side_by_side
from stepwell.cost import count_joint_macs, count_macs, peak_bytes
from stepwell.data.tokens import TextBatches, Tokenizer, TokenSet
from stepwell.losses import attention_kl, cls_cosine, soft_target_kl
from stepwell.methods import EmbeddedKD, Supervised
from stepwell.methods.bert_internal import InternalKD
from stepwell.nets import NestedNet, build
from stepwell.tasks.text import with_last_layer
from stepwell.teachers.encoder_outputs import EncoderOutputs, StoredOutputs
from stepwell.training import Loop, Run, fit, optimizer_of
from stepwell.types import Batch

CONFIG = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
BATCH, IMAGES, ROUNDS, TOKENS, LAYERS = 32, 640, 4, 48, 6
#: The first token, the last, and how many words there are.
FIRST, LAST, WORDS = 101, 102, 30_522


class Ids(Tokenizer):
    """Stands for a tokenizer: what batches ask of one."""

    fingerprint = ""

    def __init__(self) -> None:
        self.limit, self.padding = TOKENS, 0


def texts(count: int) -> TokenSet:
    """Texts of random words."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.empty(count).geometric_(1 / 18, generator=draw).clamp(4, TOKENS).long()
    ids = torch.randint(1000, WORDS, (int(lengths.sum()),), generator=draw)
    starts = torch.tensor([0, *lengths.tolist()]).cumsum(0)
    ids[starts[:-1]], ids[starts[1:] - 1] = FIRST, LAST
    return TokenSet(ids, starts, torch.arange(count) % 2, ("0", "1"), Ids())


def encoder(layers: int, stages: Sequence[str] = (), depths: Sequence[str] = ()) -> NestedNet:
    """An encoder of MiniLM's shape."""
    options: dict[str, Any] = {"config": CONFIG | {"sep_token_id": LAST}}
    options |= {"stages": stages} if stages else {}
    return build(f"bert/{layers}", depths, num_classes=2, **options).train()


def compared(calls: dict[str, Callable[[], None]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor, which a busy machine disturbs less than those of the clock."""
    return side_by_side(calls, rounds=rounds, clock=time.process_time)


def step(objective: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Forward and backward of a loss."""

    def run() -> None:
        objective.zero_grad()
        loss().backward()

    return run


def plain_loss(objective: InternalKD, batch: Batch) -> torch.Tensor:
    """The loss of a step in a plain implementation: both networks whole, with all extras."""
    ids, _ = batch
    extras = ["scores", "cls"]
    ours = objective.student.forward_all(ids, extras=extras)[objective.student.full]
    theirs = objective.teacher(ids, extras=extras)
    terms = []
    for i in objective.active():
        layer = objective.layers[i - 1] - 1
        terms.append(
            attention_kl(ours.extras["scores"][i - 1], theirs.extras["scores"][layer], ids != 0)
        )
        terms.append(cls_cosine(ours.extras["cls"][i - 1], theirs.extras["cls"][layer]))
    if objective.stage == len(objective.stages):
        terms.append(soft_target_kl(ours.logits, theirs.logits, 1.0))
    return torch.stack(terms).sum()


def measure() -> dict[str, Any]:
    """Every comparison, as ratios of times in one run."""
    torch.manual_seed(0)
    examples = texts(IMAGES)
    batches = TextBatches(examples, BATCH, shuffle=True)
    batch = batches.at(0)
    ratios = {
        **distillation(examples, batch),
        "unsorted / by length": lengths(examples),
        **nested(batch, *with_last_layer(f"bert/{LAYERS}", ["3"])),
        **{f"{name}, first layers alone": value for name, value in nested(batch, (), ["3"]).items()},
    }
    if importlib.util.find_spec("accelerate"):  # of the extra studies; the Trainer needs it
        ratios |= fine_tuning(examples)
    return ratios


def fine_tuning(examples: TokenSet) -> dict[str, Any]:
    """Tokens per second of an epoch of fine-tuning by `fit`, over those by Hugging Face's Trainer.

    Both have AdamW, a clipped gradient and no validation; the Trainer's batches are in any order, as it
    has them by default, or of similar length.
    """
    import transformers

    os.environ["STEPWELL_QUIET"] = "1"
    transformers.utils.logging.set_verbosity_error()
    settings = transformers.BertConfig(**CONFIG, num_hidden_layers=LAYERS, num_labels=2)
    rows = [
        {"input_ids": examples.ids[a:b].tolist(), "labels": int(label)}
        for a, b, label in zip(
            examples.starts[:-1], examples.starts[1:], examples.labels, strict=True
        )
    ]  # fmt: skip

    def collate(some: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row["input_ids"]) for row in some], batch_first=True
        )
        labels = torch.tensor([row["labels"] for row in some])
        return {"input_ids": ids, "attention_mask": ids.ne(0).long(), "labels": labels}

    def theirs(order: str) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                arguments = transformers.TrainingArguments(
                    folder, num_train_epochs=1, per_device_train_batch_size=BATCH, use_cpu=True,
                    learning_rate=3e-5, max_grad_norm=5.0, save_strategy="no", report_to=[],
                    logging_strategy="no", disable_tqdm=True, train_sampling_strategy=order,
                )  # fmt: skip
                model = transformers.BertForSequenceClassification(settings)
                transformers.Trainer(
                    model, arguments, train_dataset=rows, data_collator=collate
                ).train()

        return run

    def ours() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            Run.start(Path(folder), "b", {}, data={}) as run,
        ):
            fit(
                Supervised(encoder(LAYERS).module), TextBatches(examples, BATCH, shuffle=True),
                optimizer_of("adamw", 3e-5), run, phase="t", epochs=1, loop=Loop(device="cpu"),
            )  # fmt: skip

    calls = {"ours": ours, "any": theirs("random"), "sorted": theirs("group_by_length")}
    times = compared(calls, rounds=max(1, ROUNDS // 2))
    return {
        "tokens/s over the Trainer's, as it is": ratio(times, "any", "ours"),
        "tokens/s over the Trainer's, by length": ratio(times, "sorted", "ours"),
    }


def distillation(examples: TokenSet, batch: Batch) -> dict[str, Any]:
    """Steps of the three schedules, with a teacher in each step and with kept outputs."""
    student, teacher = encoder(3), encoder(6)
    ratios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for schedule in ("all", "stacked", "progressive"):
            plain = InternalKD(student, teacher, schedule=schedule)
            quick = InternalKD(student, teacher, schedule=schedule)
            stored = StoredOutputs(
                2, plain.taught_by, CONFIG["num_attention_heads"], CONFIG["hidden_size"]
            )
            ids = [x for x, _ in TextBatches(examples, BATCH)]
            place = Path(folder) / f"{schedule}.bin"
            quick.teacher = EncoderOutputs(plain.teacher, ids, 0, stored, place)  # type: ignore[arg-type]

            def whole(objective: InternalKD = plain) -> None:
                """The plain way: the teacher and the whole student in every step."""
                for stage in range(4):
                    objective.begin(min(stage + 1, len(objective.stages)))
                    step(objective, lambda: plain_loss(objective, batch))()

            def truncated(objective: InternalKD = quick) -> None:
                """StoredOutputs outputs, and the student up to the layer that learns."""
                for stage in range(4):
                    objective.begin(min(stage + 1, len(objective.stages)))
                    step(objective, lambda: objective.training_step(batch).loss)()

            times = compared({"plain": whole, "kept": truncated}, rounds=ROUNDS)
            ratios[f"{schedule}: plain / kept outputs"] = ratio(times, "plain", "kept")
            if schedule == "progressive":
                quick.freeze = True
                times = compared({"plain": whole, "kept": truncated}, rounds=ROUNDS)
                ratios["progressive, frozen: plain / kept outputs"] = ratio(times, "plain", "kept")
    asked = InternalKD(student, teacher, cls=0.0)
    unasked = InternalKD(student, teacher, cls=0.0, attention=0.0)
    times = compared(
        {
            "asked": step(asked, lambda: asked.training_step(batch).loss),
            "unasked": step(unasked, lambda: unasked.training_step(batch).loss),
        },
        rounds=ROUNDS,
    )
    return ratios | {"attention asked / not": ratio(times, "asked", "unasked")}


def lengths(examples: TokenSet) -> dict[str, float]:
    """One pass of fine-tuning in batches of any length, over one in batches of similar length."""
    net = encoder(3)

    def epoch(by_length: bool) -> Callable[[], None]:
        batches = TextBatches(examples, BATCH, shuffle=True, by_length=by_length)

        def run() -> None:
            for ids, labels in batches.stream(0, len(batches)):
                net.zero_grad()
                cross_entropy(net(ids), labels).backward()

        return run

    times = compared({"any": epoch(False), "sorted": epoch(True)}, rounds=1)
    return ratio(times, "any", "sorted")


def nested(batch: Batch, stages: Sequence[str], depths: Sequence[str]) -> dict[str, Any]:
    """A joint step of 6 > 3, over one of the full encoder alone and over its bound by MACs."""
    net = encoder(LAYERS, stages, depths)
    labels = EmbeddedKD(net, distill_from=0.0, kl=0.0, attention=0.0)
    steps = {
        "alone": step(net, lambda: cross_entropy(net(batch.inputs), batch.labels)),
        "joint": step(net, lambda: labels.training_step(batch).loss),
    }
    times = compared(steps, rounds=ROUNDS)
    example = batch.inputs[:1]
    bound = count_joint_macs(net, example) / count_macs(net.module, example)
    joint = ratio(times, "joint", "alone")
    peaks = {}
    for name, run in steps.items():
        net.zero_grad()
        peaks[name] = peak_bytes(run)
    return {
        "joint / full encoder alone": joint, "bound by MACs": bound,
        "joint / bound": joint["median"] / bound, "peak memory": peaks["joint"] / peaks["alone"],
    }  # fmt: skip
