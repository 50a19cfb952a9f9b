"""Attention maps of a text encoder and its teacher on a few test texts, for the report of a run."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepwell.data.text import in_one_line
from stepwell.data.tokens import TextBatches, TokenSet
from stepwell.files import write_whole
from stepwell.nets import NestedNet
from stepwell.results import MAPS
from stepwell.tasks.task import Task
from stepwell.train_mode import in_eval_mode
from stepwell.types import Exit

#: Tokens of a text whose maps are easy to read, and the usual number.
READABLE, USUAL = range(6, 19), 12
#: Texts to choose from, texts that are shown, and tokens of a text, at most.
CANDIDATES, SHOWN, TOKENS = 64, 3, 24


@torch.no_grad()
def write_maps(
    task: Task[TextBatches],
    student: NestedNet,
    teacher: NestedNet,
    layers: Sequence[int],
    scale: tuple[float, float] = (0.0, 1.0),
) -> list[dict[str, Any]]:
    """Write the maps of a few test texts to the run: means over heads, in `MAPS`.

    One text that both answer rightly, one that the teacher answers wrongly, and one on which they
    differ come first, where there are such.

    Args:
        layers: the teacher's layer of each of the student's, from 1; 0: none.
        scale: mean and standard deviation of numbers that the networks predict standardised.

    Returns:
        For each text "text"; "tokens", and whether they are "cut"; "truth", and the answers of
        "teacher" and "student". The arrays are "N/student" and "N/teacher" (layers, tokens, tokens), of
        the student's layers that have a teacher's.
    """
    examples = _candidates(task.test.examples)
    device = next(student.parameters()).device
    ids = examples.rows(torch.arange(len(examples)))
    mask = ids.ne(examples.tokenizer.padding)
    with in_eval_mode(student), in_eval_mode(teacher):
        ours, theirs = (
            net.forward_all(ids.to(device), [net.full], extras=["scores"])[net.full]
            for net in (student, teacher)
        )
    pairs = [(i, at - 1) for i, at in enumerate(layers) if at]
    arrays, record = {}, []
    for number, row in enumerate(_chosen(ours.logits, theirs.logits, examples.labels)):
        count = min(int(mask[row].sum()), TOKENS)
        for whose, exit, side in (("student", ours, 0), ("teacher", theirs, 1)):
            maps = [_map(exit, pair[side], row, mask[row])[:count, :count] for pair in pairs]
            arrays[f"{number}/{whose}"] = torch.stack(maps).numpy() if maps else np.empty((0, 0, 0))
        record.append({
            "text": in_one_line(examples.texts[row]) if examples.texts else "",
            "cut": count < int(mask[row].sum()),
            "tokens": examples.tokenizer.words_of(ids[row, :count].tolist()),
            "truth": _in_words(examples.labels[row], examples.classes),
            "teacher": _in_words(theirs.logits[row], examples.classes, scale),
            "student": _in_words(ours.logits[row], examples.classes, scale),
        })  # fmt: skip
    if task.run.writes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_whole(task.run.path / MAPS, buffer.getvalue())
    return record


def _candidates(examples: TokenSet) -> TokenSet:
    """Texts that are short enough to read easily; the shortest ones, if there are too few of those."""
    lengths = examples.lengths
    readable = (lengths >= READABLE.start) & (lengths < READABLE.stop)
    if readable.sum() < SHOWN:
        return examples.subset(lengths.argsort(stable=True)[:SHOWN])
    some = readable.nonzero().flatten()
    spaced = some[torch.linspace(0, len(some) - 1, min(CANDIDATES, len(some))).long()]
    return examples.subset(spaced[(lengths[spaced] - USUAL).abs().argsort(stable=True)])


def _chosen(student: Tensor, teacher: Tensor, labels: Tensor) -> list[int]:
    """The rows to show: first one of each kind of answers."""
    kinds: list[Tensor] = []
    if not labels.is_floating_point():
        answers, theirs = student.argmax(1).cpu(), teacher.argmax(1).cpu()
        kinds = [(answers == labels) & (theirs == labels), theirs != labels, answers != theirs]
    first = [int(kind.nonzero()[0]) for kind in kinds if kind.any()]
    return [*dict.fromkeys([*first, *range(len(labels))])][:SHOWN]


def _map(exit: Exit, layer: int, row: int, real: Tensor) -> Tensor:
    """The attention of a layer to the real tokens of a text, mean over heads."""
    scores = exit.extras["scores"][layer][row].float().cpu()
    return scores.masked_fill(~real, -torch.inf).softmax(-1).mean(0)


def _in_words(answer: Tensor, classes: Sequence[str], scale: tuple[float, float] = (0.0, 1.0)) -> str:
    """A class with its probability, a true class, or a number, standardised by `scale`."""
    if answer.is_floating_point() and answer.numel() == 1:
        mean, std = scale
        return f"{float(answer) * std + mean:.2f}"
    if answer.numel() == 1:
        return classes[int(answer)]
    share, best = answer.softmax(0).max(0)
    return f"{classes[int(best)]} ({100 * float(share):.0f}%)"
