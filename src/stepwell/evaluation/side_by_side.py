"""Teacher, students and controls on the same inputs, once, kept as a few numbers an example."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stepwell.types import Batch, Exit, Logits

Answer = Tensor | Exit
#: Images (batch, ...) to logits or an exit, or to several of them by name.
Network = Callable[[Tensor], Answer | Mapping[str, Answer]]

#: Examples whose features are kept for CKA.
CKA_EXAMPLES = 1000
#: A stage with more values an example is averaged over windows of its positions, down to so many.
FEATURE_VALUES = 2**14


class Seen(NamedTuple):
    """What one network said, an entry an example, (n,); and its features on some of them.

    top: its class; confidence: that class's probability; nll: of the true label, in nats, and 0 where
        there is none.
    kl: KL(teacher || this network), in nats.
    stages: (m, values) each, of the same m examples for every network.
    """

    top: Tensor
    confidence: Tensor
    nll: Tensor
    kl: Tensor
    stages: tuple[Tensor, ...]


class Observed(NamedTuple):
    """A teacher, students and controls on the same examples; labels (n,), -1: none.

    controls: by the student's name; empty where there is no control.
    """

    labels: Tensor
    classes: int
    teacher: Seen
    students: dict[str, Seen]
    controls: dict[str, Seen]


@torch.no_grad()
def observe(
    teacher: Network,
    student: Network,
    batches: Iterable[Batch],
    *,
    control: Network | None = None,
    seed: int = 0,
) -> Observed:
    """Run teacher, student and control side by side, once; nothing of an example's size is kept.

    Args:
        teacher, student, control, batches, seed: as for `fidelity`.

    Raises:
        ValueError: as for `fidelity`.
    """
    records: dict[tuple[str, str], _Record] = {}
    labels: list[Tensor] = []
    sample = _Sample(CKA_EXAMPLES, seed)
    classes = 0
    for images, target in batches:
        target = _one_class(target)
        labels.append(target.cpu())
        taken = sample.draw(len(target))
        ((_, taught),) = _named(teacher(images), "teacher").items()
        classes = taught.logits.shape[1]
        _check_labels(target, classes)
        answers = {("teacher", ""): taught}
        for who, network in (("student", student), ("control", control)):
            if network is not None:
                found = _named(network(images), who)
                answers |= {(who, name): exit for name, exit in found.items()}
        for (who, name), exit in answers.items():
            if exit.logits.shape != taught.logits.shape:
                raise ValueError(
                    f"the {who} gives logits {tuple(exit.logits.shape)}, the teacher "
                    f"{tuple(taught.logits.shape)}: both need the same classes, in the same order"
                )
            record = records.setdefault((who, name), _Record(f"{who} {name}".strip()))
            record.add(exit, taught.logits, target, taken)
    if not labels:
        raise ValueError("nothing to compare: the data gave no batch")
    seen = {key: record.seen(min(sample.passed, sample.size)) for key, record in records.items()}
    students = {name: found for (who, name), found in seen.items() if who == "student"}
    controls = {name: found for (who, name), found in seen.items() if who == "control"}
    if controls.keys() == {""}:
        controls = dict.fromkeys(students, controls[""])
    if controls and controls.keys() != students.keys():
        raise ValueError(
            f"the control has {', '.join(controls)}, the student {', '.join(students)}: give one "
            "control, or one for each of the student's names"
        )
    if "teacher" in students:
        raise ValueError("a student cannot be named 'teacher', which begins the teacher's numbers")
    return Observed(torch.cat(labels), classes, seen["teacher", ""], students, controls)


def predictive_kl(teacher: Logits, student: Logits) -> Float[Tensor, "batch"]:
    """KL( softmax(teacher) || softmax(student) ) of every example, in nats (double precision)."""
    log_p, log_q = (F.log_softmax(z.double(), 1) for z in (teacher, student))
    return (log_p.exp() * (log_p - log_q)).sum(1).clamp_min(0)


def _named(output: Answer | Mapping[str, Answer], who: str) -> dict[str, Exit]:
    """Answers by name; a lone one is named ""."""
    if isinstance(output, Mapping):
        if who == "teacher" and len(output) != 1:
            raise ValueError(f"{len(output)} teachers ({', '.join(output)}): compare with one")
        named: dict[str, Answer] = {"" if who == "teacher" else k: v for k, v in output.items()}
    else:
        named = {"": output}
    return {k: v if isinstance(v, Exit) else Exit(v) for k, v in named.items()}


def _one_class(labels: Tensor) -> Tensor:
    """Labels (batch,); a mixed image, whose shares of the classes are given, has none: -1."""
    return labels if labels.ndim == 1 else labels.new_full((len(labels),), -1, dtype=torch.long)


def _check_labels(labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= classes:
        raise ValueError(
            f"labels run from {low} to {high}, out of range for the teacher's {classes} classes"
        )


class _Sample:
    """At most `size` of the examples that pass by, each with the same chance (reservoir sampling)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.passed = size, 0
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> dict[int, int]:
        """Which of the next `count` examples are kept, by the place each takes."""
        number = torch.arange(self.passed, self.passed + count)
        self.passed += count
        drawn = torch.rand(count, generator=self._generator, dtype=torch.float64)
        place = torch.where(number < self.size, number, (drawn * (number + 1)).long())
        return {p: row for row, p in enumerate(place.tolist()) if p < self.size}


class _Record:
    """Collects what one network says, batch by batch."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.columns: list[tuple[Tensor, ...]] = []
        self.stages: list[Tensor] = []

    def add(self, exit: Exit, teacher: Tensor, labels: Tensor, taken: Mapping[int, int]) -> None:
        logits = exit.logits.cpu().double()
        self._check(logits)
        log_p = F.log_softmax(logits, 1)
        best, top = log_p.max(1)
        nll = F.nll_loss(log_p, labels.cpu(), reduction="none", ignore_index=-1)
        self.columns.append((top, best.exp(), nll, predictive_kl(teacher.cpu(), logits)))
        places, rows = list(taken), list(taken.values())
        if not rows:
            return
        for i, feature in enumerate(exit.features):
            kept = _flattened(feature[rows])
            if i == len(self.stages):
                self.stages.append(torch.empty(CKA_EXAMPLES, kept.shape[1]))
            self.stages[i][places] = kept

    def seen(self, kept: int) -> Seen:
        columns = (torch.cat(parts) for parts in zip(*self.columns, strict=True))
        top, confidence, nll, kl = columns
        return Seen(top, confidence, nll, kl, tuple(stage[:kept] for stage in self.stages))

    def _check(self, logits: Tensor) -> None:
        if not logits.isfinite().all():
            raise ValueError(f"the {self.who} gives logits that are not finite")
        ones = (logits.sum(1) - 1).abs().max() < 1e-3
        if logits.shape[1] > 1 and (logits >= 0).all() and ones:
            raise ValueError(
                f"the {self.who} gives probabilities (no number is negative, and each row's sum is 1) "
                "where logits are expected: leave its softmax out, or take the logarithm"
            )


def _flattened(feature: Tensor) -> Tensor:
    """A stage (batch, channels, h, w) or (batch, tokens, channels) as (batch, values), on the CPU.

    Of more than `FEATURE_VALUES` values, positions are averaged over windows.
    """
    feature = feature.float()
    if feature.shape[1:].numel() > FEATURE_VALUES:
        if feature.dim() == 4:
            side = max(1, int((FEATURE_VALUES / feature.shape[1]) ** 0.5))
            sides = [min(side, length) for length in feature.shape[2:]]
            feature = F.adaptive_avg_pool2d(feature, (sides[0], sides[1]))
        elif feature.dim() == 3:
            tokens = max(1, FEATURE_VALUES // feature.shape[2])
            feature = F.adaptive_avg_pool1d(feature.transpose(1, 2), min(tokens, feature.shape[1]))
    return feature.flatten(1).cpu()
