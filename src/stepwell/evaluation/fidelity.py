"""Fidelity: how closely a student matches its teacher's predictions, apart from its accuracy.

After "Does Knowledge Distillation Really Work?" (Stanton et al. 2021), with confidence intervals and a
control: only agreement *beyond* that of a student of another teacher was passed on by the teacher.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from stepwell.evaluation.calibration import calibration_error
from stepwell.evaluation.cka import Kernel, align, gram
from stepwell.evaluation.intervals import LEVEL, RESAMPLES, Interval, means, share
from stepwell.evaluation.side_by_side import Answer, Network, Observed, Seen, observe
from stepwell.types import Labels


def fidelity(
    teacher: Network, student: Network, batches: Iterable[tuple[Any, Any]], *,
    control: Network | None = None, classes: Sequence[str] = (), level: float = LEVEL,
    resamples: int = RESAMPLES, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Measure how closely a student matches its teacher's predictions on the same inputs.

    All numbers are sums over the examples divided once, so they do not depend on the batches.
    Probabilities are at temperature 1. Modules (and methods of modules) run in eval mode; their modes
    are restored afterwards.

    Args:
        teacher: images to logits (batch, classes), a tensor or a numpy array, or to an `Exit`; its
            features, if any, give CKA.
        student: the same; or several networks by name, such as the depths of one.
        batches: images and true labels. Images without a label (-1, or shares of several classes)
            count only where networks are compared with each other.
        control: a student of *another* teacher (usually of another seed), trained like `student`: one
            network, or one for each of the student's names.
        classes: names of the classes, for numbers by class.
        level: of the confidence intervals; resamples: of the bootstrap over examples.
        seed: of the bootstrap, and of the sample of examples for CKA.

    Returns:
        Flat numbers; "KEY/low" and "KEY/high" are the ends of the interval of KEY. Keys of a named
        student begin with "NAME/". Intervals: W (Wilson), B (bootstrap over examples), J (jackknife).

        - "agreement" (W): share of examples with the teacher's top class; "agreement_on_right",
          "agreement_on_errors" (W): the same where the teacher is right or wrong.
        - "errors_shared" (W): share of the student's mistakes that are also the teacher's.
        - "kl" (B): mean KL(teacher || student), in nats.
        - "accuracy" (W), "nll" (B), "ece" (of `BINS` bins; B, basic), and "teacher/accuracy", ...
        - "gain" (B): the student's accuracy minus the teacher's.
        - "cka/STAGE" (J): debiased linear CKA of the stage; ".../linear" and ".../rbf": the plain
          forms. On at most `CKA_EXAMPLES` examples, drawn from all with `seed`.
        - "control/KEY": the control's own agreement, KL, CKA, accuracy, ...
        - "transfer" (B): agreement minus the control's; "transfer_on_errors" (B): the same on the
          teacher's mistakes; "transfer_kl" (B): the control's KL minus the student's. All are paired.
        - "class/NAME/agreement" (W), "class/NAME/accuracy" (W): on the "examples/NAME" examples of one
          true class.

        Numbers that are undefined for these examples are left out.

    Raises:
        ValueError: no examples; the numbers of classes differ or are below two; a class is named twice;
            a network gives probabilities, or logits that are not finite; `control` and `student` have
            different names.

    >>> batch = Batch(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    >>> fidelity(lambda x: x, lambda x: 2 * x, [batch])["agreement"]
    1.0
    """
    _check_classes(classes)
    seen = observe(teacher, student, batches, control=control, seed=seed)
    return fidelity_measures(seen, classes, level=level, resamples=resamples, seed=seed)


def fidelity_of(
    teacher: Answer, student: Answer | Mapping[str, Answer], labels: Labels | NDArray[Any], *,
    control: Answer | Mapping[str, Answer] | None = None, classes: Sequence[str] = (),
    level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """`fidelity` of given logits (n, classes) or exits, as tensors or arrays; errors as there."""
    other = None if control is None else lambda _: control
    return fidelity(
        lambda _: teacher, lambda _: student, [(labels, labels)], control=other,
        classes=classes, level=level, resamples=resamples, seed=seed,
    )  # fmt: skip


def agreement_matrix(
    teacher: Int[Tensor, " n"], student: Int[Tensor, " n"], classes: int
) -> Int[Tensor, "classes classes"]:
    """Count the examples of class i (row) by the teacher and class j (column) by the student."""
    return torch.bincount(teacher * classes + student, minlength=classes**2).view(classes, classes)


def fidelity_measures(
    seen: Observed, classes: Sequence[str] = (), *, stages: Sequence[str] = (), level: float = LEVEL,
    resamples: int = RESAMPLES, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """`fidelity` of networks that `observe` has run; `stages` names the student's stages."""
    _check_classes(classes)
    if classes and len(classes) != seen.classes:
        raise ValueError(
            f"the networks have {seen.classes} classes, but {len(classes)} names are given"
        )
    bootstrap = {"resamples": resamples, "seed": seed}
    measured = _Measures(seen, tuple(classes), tuple(stages), level, bootstrap)
    numbers = measured.alone("teacher/", seen.teacher)
    for name in seen.students:
        numbers |= measured.pair(name)
    for i, name in enumerate(classes):
        numbers[f"examples/{name}"] = float((seen.labels == i).sum())
    return numbers


def _check_classes(classes: Sequence[str]) -> None:
    """Refuse two classes of one name, whose numbers would overwrite each other."""
    if twice := [name for name in dict.fromkeys(classes) if list(classes).count(name) > 1]:
        raise ValueError(f"class {twice[0]!r} is named twice: give each class a name of its own")


@dataclass
class _Measures:
    """The numbers of one `Observed`; Gram matrices of the teacher's stages are computed once."""

    seen: Observed
    classes: tuple[str, ...]
    stages: tuple[str, ...]
    level: float
    bootstrap: dict[str, int]
    _grams: dict[Kernel, list[Tensor | None]] = field(default_factory=dict)

    @property
    def known(self) -> Tensor:
        """True for the examples with a label, (n,)."""
        return self.seen.labels >= 0

    def alone(self, prefix: str, network: Seen) -> dict[str, float]:
        """Accuracy, likelihood and calibration of one network."""
        labels, known = self.seen.labels, self.known
        if not known.any():
            return {}
        right = network.top == labels
        confidence = network.confidence[known]
        error = calibration_error(confidence, right[known], level=self.level, **self.bootstrap)
        numbers = self._share(prefix, {"accuracy": right[known]})
        numbers |= self._means(prefix, {"nll": network.nll[known]}) | _flat(f"{prefix}ece", error)
        members = {f"class/{c}/accuracy": right[labels == i] for i, c in enumerate(self.classes)}
        return numbers | self._share(prefix, members)

    def pair(self, name: str) -> dict[str, float]:
        """One student compared with the teacher and, if there is one, with the control."""
        seen, prefix = self.seen, f"{name}/" if name else ""
        student, control = seen.students[name], seen.controls.get(name)
        numbers = self.alone(prefix, student) | self._shares(prefix, student)
        if self.known.any():
            right = [(network.top == seen.labels)[self.known] for network in (student, seen.teacher)]
            numbers |= self._means(prefix, {"gain": right[0].double() - right[1].double()})
        columns = {"kl": student.kl}
        if control is not None:
            control_prefix = f"{prefix}control/"
            numbers |= self.alone(control_prefix, control) | self._shares(control_prefix, control)
            numbers |= self._means(control_prefix, {"kl": control.kl})
            numbers |= self._cka(control_prefix, control, plain=False)
            agreed = [(network.top == seen.teacher.top).double() for network in (student, control)]
            difference = agreed[0] - agreed[1]
            columns |= {"transfer": difference, "transfer_kl": control.kl - student.kl}
            wrong = self.known & (seen.teacher.top != seen.labels)
            if wrong.any():
                numbers |= self._means(prefix, {"transfer_on_errors": difference[wrong]})
        return numbers | self._means(prefix, columns) | self._cka(prefix, student)

    def _shares(self, prefix: str, student: Seen) -> dict[str, float]:
        labels, teacher, known = self.seen.labels, self.seen.teacher.top, self.known
        same = student.top == teacher
        groups = {
            "agreement": torch.ones_like(same),
            "agreement_on_right": teacher == labels,
            "agreement_on_errors": known & (teacher != labels),
            "errors_shared": known & (student.top != labels),
        }
        groups |= {f"class/{name}/agreement": labels == i for i, name in enumerate(self.classes)}
        return self._share(prefix, {key: same[group] for key, group in groups.items()})

    def _share(self, prefix: str, columns: Mapping[str, Tensor]) -> dict[str, float]:
        """The shares of true examples; columns without an example are left out."""
        numbers: dict[str, float] = {}
        for key, hits in columns.items():
            if len(hits):
                numbers |= _flat(f"{prefix}{key}", share(hits, self.level))
        return numbers

    def _means(self, prefix: str, columns: Mapping[str, Tensor]) -> dict[str, float]:
        values = torch.stack([*columns.values()], 1)
        intervals = means(values, level=self.level, **self.bootstrap)
        numbers: dict[str, float] = {}
        for key, interval in zip(columns, intervals, strict=True):
            numbers |= _flat(f"{prefix}{key}", interval)
        return numbers

    def _cka(self, prefix: str, student: Seen, *, plain: bool = True) -> dict[str, float]:
        """CKA of each stage with the teacher's; the last stages are paired if their numbers differ."""
        count = min(len(student.stages), len(self.seen.teacher.stages))
        names = tuple(str(i + 1) for i in range(len(student.stages)))
        if len(self.stages) == len(names):
            names = self.stages
        numbers: dict[str, float] = {}
        if not count:
            return numbers
        kernels: tuple[Kernel, ...] = ("linear", "rbf") if plain else ("linear",)
        for kernel in kernels:
            student_grams = [_gram(stage, kernel) for stage in student.stages[-count:]]
            pairs = zip(
                names[-count:], self._teacher_grams(kernel)[-count:], student_grams, strict=True
            )
            for name, *grams in pairs:
                key = f"{prefix}cka/{name}"
                if plain and (interval := _aligned(*grams, debiased=False, level=self.level)):
                    numbers[f"{key}/{kernel}"] = interval.value
                linear = kernel == "linear"
                if linear and (interval := _aligned(*grams, debiased=True, level=self.level)):
                    numbers |= _flat(key, interval)
        return numbers

    def _teacher_grams(self, kernel: Kernel) -> list[Tensor | None]:
        if kernel not in self._grams:
            self._grams[kernel] = [_gram(stage, kernel) for stage in self.seen.teacher.stages]
        return self._grams[kernel]


def _gram(stage: Tensor, kernel: Kernel) -> Tensor | None:
    """The Gram matrix of a stage, or None if its examples are too similar."""
    with contextlib.suppress(ValueError):
        return gram(stage, kernel)
    return None


def _aligned(k: Tensor | None, l: Tensor | None, *, debiased: bool, level: float) -> Interval | None:
    """CKA of two stages, or None if there are too few examples or all have the same features."""
    if k is not None and l is not None:
        with contextlib.suppress(ValueError):
            return align(k, l, debiased=debiased, level=level)
    return None


def _flat(key: str, interval: Interval) -> dict[str, float]:
    return {key: interval.value, f"{key}/low": interval.low, f"{key}/high": interval.high}
