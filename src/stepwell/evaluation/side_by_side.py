"""Run teacher, students and controls on the same inputs once, and store a few numbers per example."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from stepwell.train_mode import in_eval_mode
from stepwell.types import Batch, Exit, Logits, probabilities_in

Answer = Tensor | NDArray[Any] | Exit
#: Images (batch, ...) to logits or an exit, or to several of them by name.
Network = Callable[[Tensor], Answer | Mapping[str, Answer]]

#: Most examples whose features are stored for CKA.
CKA_EXAMPLES = 1000
#: Rows of logits that do not all look like probabilities by chance.
CERTAIN = 16
#: Most values per example of a stage; larger stages are averaged over windows of positions.
FEATURE_VALUES = 2**14


class Seen(NamedTuple):
    """The predictions of one network, one entry per example, and its features on a sample.

    top: the predicted class; confidence: its probability.
    nll: of the true label, in nats; 0 without a label.
    kl: KL(teacher || this network), in nats.
    stages: features of a sample of m examples, the same for every network.
    """

    top: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    nll: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]
    stages: tuple[Float[Tensor, "m values"], ...]


class Observed(NamedTuple):
    """A teacher, students and controls on the same examples; label -1: none.

    controls: by the student's name; empty without a control.
    """

    labels: Int[Tensor, " n"]
    classes: int
    teacher: Seen
    students: dict[str, Seen]
    controls: dict[str, Seen]


@torch.no_grad()
def observe(
    teacher: Network, student: Network, batches: Iterable[tuple[Any, Any]], *,
    control: Network | None = None, seed: int = 0,
) -> Observed:  # fmt: skip
    """Run teacher, student and control side by side, once; arguments and errors as for `fidelity`."""
    records: dict[tuple[str, str], _Record] = {}
    labels: list[Tensor] = []
    sample = _Sample(CKA_EXAMPLES, seed)
    classes = 0
    with in_eval_mode(*_modules(teacher, student, control)):
        for batch in batches:
            images, target = _pair(batch)
            answers = _named(teacher(images), "teacher", len(target))
            classes = answers["teacher", ""].logits.shape[1]
            target = _one_class(target, classes)
            for who, network in (("student", student), ("control", control)):
                if network is not None:
                    answers |= _named(network(images), who, len(target), classes)
            if not records:
                _check_names(answers)
                records = {(who, name): _Record(f"{who} {name}".strip()) for who, name in answers}
            if records.keys() != answers.keys():
                first, now = (
                    ", ".join(" ".join(name).strip() for name in names) for names in (records, answers)
                )
                raise ValueError(
                    f"the networks gave {first} for the first batch and {now} for batch "
                    f"{len(labels) + 1}: use the same names in every batch"
                )
            labels.append(target.cpu())
            taken = sample.draw(len(target))
            for key, exit in answers.items():
                records[key].add(exit, answers["teacher", ""].logits, target, taken)
    if not sample.passed:
        raise ValueError("nothing to compare: the data gave no batch, or only empty ones")
    seen = {key: record.seen(min(sample.passed, sample.size)) for key, record in records.items()}
    students = {name: predictions for (who, name), predictions in seen.items() if who == "student"}
    controls = {name: predictions for (who, name), predictions in seen.items() if who == "control"}
    if controls.keys() == {""}:
        controls = dict.fromkeys(students, controls[""])
    return Observed(torch.cat(labels), classes, seen["teacher", ""], students, controls)


def predictive_kl(teacher: Logits, student: Logits) -> Float[Tensor, " batch"]:
    """KL( softmax(teacher) || softmax(student) ) of every example, in nats (double precision)."""
    log_p, log_q = (F.log_softmax(z.double(), 1) for z in (teacher, student))
    return (log_p.exp() * (log_p - log_q)).sum(1).clamp_min(0)


def _modules(*networks: Network | None) -> Iterator[nn.Module]:
    """The modules among networks, and the owners of bound methods such as `net.forward_all`."""
    for network in networks:
        owner = getattr(network, "__self__", network)
        if isinstance(owner, nn.Module):
            yield owner


def _pair(batch: Any) -> Batch:
    """A batch as images and labels; anything else is an error."""
    try:
        images, labels = batch
        if isinstance(labels := _as_tensor(labels), Tensor):
            return Batch(images, labels)
        received = f"images and {_kind(labels)}"
    except (TypeError, ValueError):
        received = _kind(batch)
    raise ValueError(f"a batch is a pair of images and a tensor or array of labels, not {received}")


def _as_tensor(value: Any) -> Any:
    """Convert a numpy array of numbers to a tensor; return anything else unchanged."""
    if not (isinstance(value, np.ndarray) and value.dtype.kind in "iuf"):
        return value
    return torch.tensor(value.astype(np.int64) if value.dtype.kind in "iu" else value.copy())


def _named(
    output: Any, who: str, count: int, classes: int | None = None
) -> dict[tuple[str, str], Exit]:
    """A network's exits for `count` images, by role and name; a lone answer is named "".

    `classes` is the teacher's number of classes, which the others must have.
    """
    answers = dict(output) if isinstance(output, Mapping) else {"": output}
    if who == "teacher" and len(answers) != 1:
        raise ValueError(f"{len(answers)} teachers ({', '.join(map(str, answers))}): give one")
    named = {}
    for name, answer in answers.items():
        label = f"the {who} {'' if who == 'teacher' else name}".strip()
        logits, features = answer[:2] if isinstance(answer, Exit) else (answer, ())
        exit = Exit(_as_tensor(logits), tuple(map(_as_tensor, features)))
        if not isinstance(exit.logits, Tensor):
            raise ValueError(
                f"{label} gives {_kind(exit.logits)}, not logits (a tensor or array (batch, classes)), "
                "an Exit, or several of these by name"
            )
        shape = tuple(exit.logits.shape)
        if len(shape) != 2:
            raise ValueError(f"{label} gives a tensor {shape}: logits (batch, classes) are expected")
        if shape[0] != count:
            raise ValueError(f"{label} gives {shape[0]} rows of logits for {count} labels")
        if shape[1] < 2:
            raise ValueError(
                f"{label} gives logits {shape}, but at least two classes are needed: turn a single "
                "logit z into the two columns (0, z)"
            )
        if classes is not None and shape[1] != classes:
            raise ValueError(
                f"{label} gives logits {shape}, the teacher {(count, classes)}: both need the same "
                "classes in the same order"
            )
        if wrong := [len(feature) for feature in exit.features if len(feature) != count]:
            raise ValueError(f"{label} gives {wrong[0]} rows of features for {count} labels")
        named[who, "" if who == "teacher" else name] = exit
    return named


def _check_names(answers: Iterable[tuple[str, str]]) -> None:
    students, controls = (
        [name for role, name in answers if role == who] for who in ("student", "control")
    )
    if controls and controls != [""] and set(controls) != set(students):
        raise ValueError(
            f"the control has {', '.join(controls)}, the student {', '.join(students)}: give one "
            "control, or one for each of the student's names"
        )
    if "teacher" in students:
        raise ValueError("a student cannot be named 'teacher': keys of the teacher begin so")


def _one_class(labels: Tensor, classes: int) -> Tensor:
    """Class indices (batch,); -1 for images without a label, and for mixed images."""
    if labels.ndim == 2 and labels.shape[1] == classes:
        return labels.new_full((len(labels),), -1, dtype=torch.long)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels are {tuple(labels.shape)} {labels.dtype}: give class numbers (batch,), or shares "
            f"(batch, {classes}) of mixed images"
        )
    if not len(labels):
        return labels
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= classes:
        raise ValueError(
            f"labels run from {low} to {high}, out of range for the teacher's {classes} classes"
        )
    return labels.long()


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


class _Sample:
    """A random sample of at most `size` examples of a stream (reservoir sampling)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.passed = size, 0
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> dict[int, int]:
        """The rows of the next `count` examples that enter the sample, by their place in it."""
        number = torch.arange(self.passed, self.passed + count)
        self.passed += count
        drawn = torch.rand(count, generator=self._generator, dtype=torch.float64)
        place = torch.where(number < self.size, number, (drawn * (number + 1)).long())
        return {p: row for row, p in enumerate(place.tolist()) if p < self.size}


class _Record:
    """Collects one network's predictions batch by batch."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.problem: str | None = None  # all examples so far look like probabilities
        self.examples = 0  # checked so far
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
            values = _flattened(feature[rows])
            if i == len(self.stages):
                self.stages.append(torch.empty(CKA_EXAMPLES, values.shape[1]))
            self.stages[i][places] = values

    def seen(self, sampled: int) -> Seen:
        self._refuse_probabilities()
        top, confidence, nll, kl = (torch.cat(parts) for parts in zip(*self.columns, strict=True))
        return Seen(top, confidence, nll, kl, tuple(stage[:sampled] for stage in self.stages))

    def _check(self, logits: Tensor) -> None:
        if not logits.isfinite().all():
            raise ValueError(f"the {self.who} gives logits that are not finite")
        if self.examples < CERTAIN and (self.examples == 0 or self.problem):
            self.problem = probabilities_in(logits, f"the {self.who}")
            self.examples += len(logits)
            if self.examples >= CERTAIN:
                self._refuse_probabilities()

    def _refuse_probabilities(self) -> None:
        if self.problem:
            raise ValueError(f"{self.problem}: remove the softmax, or take the logarithm")


def _flattened(feature: Tensor) -> Tensor:
    """A stage (batch, channels, h, w) or (batch, tokens, channels) as (batch, values), on the CPU."""
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
