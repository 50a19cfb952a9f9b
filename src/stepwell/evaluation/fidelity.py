"""Fidelity: how far a student gives its teacher's predictions, apart from how often it is right.

After "Does Knowledge Distillation Really Work?" (Stanton et al. 2021), with two things that a number
needs before it means anything: a confidence interval, and a control. Two networks trained apart agree
on most images, because both are mostly right; only what a student agrees with its teacher *beyond* a
student of another teacher was passed on by that teacher.
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
    teacher: Network,
    student: Network,
    batches: Iterable[tuple[Any, Any]],
    *,
    control: Network | None = None,
    classes: Sequence[str] = (),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """How far a student gives its teacher's predictions, on the very same inputs.

    All numbers are sums over the examples divided once, so it does not matter how the data is cut
    into batches. Probabilities are at temperature 1; whatever a student was taught at. Modules (and
    methods of modules) run in eval mode, and are then in the modes that they were in.

    Args:
        teacher: images to logits (batch, classes), a tensor or a numpy array, or to an `Exit`; its
            features, if any, give CKA.
        student: the same; or several networks by name, such as the depths of one.
        batches: images and true labels; of those without a label (-1, or shares of several classes)
            only what the networks have to do with each other is measured.
        control: a student of *another* teacher (another seed, as a rule), trained like `student`: a
            lone network, or one for each of the student's names.
        classes: names of the classes, for the numbers of each.
        level: of the confidence intervals.
        resamples: of the bootstrap over examples.
        seed: of the bootstrap, and of the examples whose features are compared.

    Returns:
        Flat numbers; "KEY/low" and "KEY/high" are the ends of the interval of KEY. Of the student,
        under "NAME/" where it has names (W: Wilson's interval, B: bootstrap over examples, J:
        jackknife):

        - "agreement" (W): share of examples with the teacher's top class;
          "agreement_on_right", "agreement_on_errors" (W): of those that the teacher gets right and
          wrong; the latter counts the teacher's very mistakes.
        - "errors_shared" (W): of the student's mistakes, the share that are the teacher's very ones.
        - "kl" (B): mean KL(teacher || student), in nats.
        - "accuracy" (W), "nll" (B), "ece" (of `BINS` bins; B, basic), and the teacher's:
          "teacher/accuracy", ...
        - "gain" (B): accuracy of the student less the teacher's.
        - "cka/STAGE" (J): debiased linear CKA of the stage; ".../linear" and ".../rbf": the plain
          forms. On at most `CKA_EXAMPLES` examples, drawn from all with `seed`.
        - "control/KEY": the control's own agreement, KL, CKA, accuracy, ...
        - "transfer" (B): agreement less the control's, "transfer_on_errors" (B) on the teacher's
          mistakes, "transfer_kl" (B): the control's KL less the student's. All are paired.
        - "class/NAME/agreement" (W), "class/NAME/accuracy" (W): of the examples of one true class;
          "examples/NAME" says how many.

        What has no meaning is left out: agreement on errors where there is none, accuracy where there
        are no labels, CKA of features that are the same for all examples.

    Raises:
        ValueError: no examples; the networks differ in the number of classes, it is less than two, or
            not that of `classes`; a class is named twice; a network gives probabilities, or logits that
            are not finite; `control` has other names than `student`.

    >>> batch = Batch(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    >>> fidelity(lambda x: x, lambda x: 2 * x, [batch])["agreement"]
    1.0
    """
    _check_classes(classes)
    seen = observe(teacher, student, batches, control=control, seed=seed)
    return fidelity_measures(seen, classes, level=level, resamples=resamples, seed=seed)


def fidelity_of(
    teacher: Answer,
    student: Answer | Mapping[str, Answer],
    labels: Labels | NDArray[Any],
    *,
    control: Answer | Mapping[str, Answer] | None = None,
    classes: Sequence[str] = (),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """What `fidelity` gives, of logits (n, classes) or exits that are at hand, as tensors or arrays.

    Raises:
        ValueError: as for `fidelity`.
    """
    return fidelity(
        lambda _: teacher,
        lambda _: student,
        [(labels, labels)],
        control=None if control is None else lambda _: control,
        classes=classes,
        level=level,
        resamples=resamples,
        seed=seed,
    )


def agreement_matrix(
    teacher: Int[Tensor, " n"], student: Int[Tensor, " n"], classes: int
) -> Int[Tensor, "classes classes"]:
    """How many examples get class i (row) from the teacher and class j (column) from the student."""
    return torch.bincount(teacher * classes + student, minlength=classes**2).view(classes, classes)


def fidelity_measures(
    seen: Observed,
    classes: Sequence[str] = (),
    *,
    stages: Sequence[str] = (),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """What `fidelity` gives, of networks that were observed.

    Args:
        stages: names of the student's stages; their numbers from 1 by default.
    """
    _check_classes(classes)
    if classes and len(classes) != seen.classes:
        raise ValueError(
            f"the networks tell {seen.classes} classes apart, and {len(classes)} are named"
        )
    measured = _Measures(seen, tuple(classes), tuple(stages), level, resamples, seed)
    numbers = measured.alone("teacher/", seen.teacher)
    for name in seen.students:
        numbers |= measured.pair(name)
    for i, name in enumerate(classes):
        numbers[f"examples/{name}"] = float((seen.labels == i).sum())
    return numbers


def _check_classes(classes: Sequence[str]) -> None:
    """Refuse two classes of one name, of which the numbers of one would be lost."""
    if twice := [name for name in dict.fromkeys(classes) if list(classes).count(name) > 1]:
        raise ValueError(f"class {twice[0]!r} is named twice: give each class a name of its own")


@dataclass
class _Measures:
    """The numbers of one `Observed`; Gram matrices of the teacher's stages are made once."""

    seen: Observed
    classes: tuple[str, ...]
    stages: tuple[str, ...]
    level: float
    resamples: int
    seed: int
    _grams: dict[Kernel, list[Tensor | None]] = field(default_factory=dict)

    @property
    def known(self) -> Tensor:
        """Which examples have a label, (n,)."""
        return self.seen.labels >= 0

    def alone(self, prefix: str, network: Seen) -> dict[str, float]:
        """Accuracy, likelihood and calibration of one network."""
        labels, known = self.seen.labels, self.known
        if not known.any():
            return {}
        right = network.top == labels
        numbers = _flat(f"{prefix}accuracy", share(right[known], self.level))
        numbers |= self._means(prefix, {"nll": network.nll[known]})
        error = calibration_error(
            network.confidence[known],
            right[known],
            level=self.level,
            resamples=self.resamples,
            seed=self.seed,
        )
        numbers |= _flat(f"{prefix}ece", error)
        for i, name in enumerate(self.classes):
            if (member := labels == i).any():
                key = f"{prefix}class/{name}/accuracy"
                numbers |= _flat(key, share(right[member], self.level))
        return numbers

    def pair(self, name: str) -> dict[str, float]:
        """One student against the teacher and, where there is one, against the control."""
        seen, prefix = self.seen, f"{name}/" if name else ""
        student, control = seen.students[name], seen.controls.get(name)
        numbers = self.alone(prefix, student) | self._shares(prefix, student)
        if self.known.any():
            right = [(n.top == seen.labels)[self.known] for n in (student, seen.teacher)]
            numbers |= self._means(prefix, {"gain": right[0].double() - right[1].double()})
        columns = {"kl": student.kl}
        if control is not None:
            own = f"{prefix}control/"
            numbers |= self.alone(own, control) | self._shares(own, control)
            numbers |= self._means(own, {"kl": control.kl})
            numbers |= self._cka(own, control, plain=False)
            same = [(n.top == seen.teacher.top).double() for n in (student, control)]
            difference = same[0] - same[1]
            columns |= {"transfer": difference, "transfer_kl": control.kl - student.kl}
            wrong = self.known & (seen.teacher.top != seen.labels)
            if wrong.any():
                on_errors = {"transfer_on_errors": difference[wrong]}
                numbers |= self._means(prefix, on_errors)
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
        numbers: dict[str, float] = {}
        for key, group in groups.items():
            if group.any():
                numbers |= _flat(f"{prefix}{key}", share(same[group], self.level))
        return numbers

    def _means(self, prefix: str, columns: Mapping[str, Tensor]) -> dict[str, float]:
        values = torch.stack([*columns.values()], 1)
        found = means(values, level=self.level, resamples=self.resamples, seed=self.seed)
        numbers: dict[str, float] = {}
        for key, interval in zip(columns, found, strict=True):
            numbers |= _flat(f"{prefix}{key}", interval)
        return numbers

    def _cka(self, prefix: str, student: Seen, *, plain: bool = True) -> dict[str, float]:
        """CKA of each stage with the teacher's; of unlike numbers of stages, the last are paired."""
        count = min(len(student.stages), len(self.seen.teacher.stages))
        names = tuple(str(i + 1) for i in range(len(student.stages)))
        if len(self.stages) == len(names):
            names = self.stages
        numbers: dict[str, float] = {}
        if not count:
            return numbers
        kernels: tuple[Kernel, ...] = ("linear", "rbf") if plain else ("linear",)
        for kernel in kernels:
            theirs = [_gram(stage, kernel) for stage in student.stages[-count:]]
            pairs = zip(names[-count:], self._teacher_grams(kernel)[-count:], theirs, strict=True)
            for name, *grams in pairs:
                key = f"{prefix}cka/{name}"
                if plain and (found := _aligned(*grams, debiased=False, level=self.level)):
                    numbers[f"{key}/{kernel}"] = found.value
                if kernel == "linear" and (
                    found := _aligned(*grams, debiased=True, level=self.level)
                ):
                    numbers |= _flat(key, found)
        return numbers

    def _teacher_grams(self, kernel: Kernel) -> list[Tensor | None]:
        if kernel not in self._grams:
            self._grams[kernel] = [_gram(stage, kernel) for stage in self.seen.teacher.stages]
        return self._grams[kernel]


def _gram(stage: Tensor, kernel: Kernel) -> Tensor | None:
    """The Gram matrix of a stage; none where its examples are too much alike for one."""
    with contextlib.suppress(ValueError):
        return gram(stage, kernel)
    return None


def _aligned(
    k: Tensor | None, l: Tensor | None, *, debiased: bool, level: float
) -> Interval | None:
    """CKA of two stages; none where the features are too few or the same for all."""
    if k is not None and l is not None:
        with contextlib.suppress(ValueError):
            return align(k, l, debiased=debiased, level=level)
    return None


def _flat(key: str, interval: Interval) -> dict[str, float]:
    return {key: interval.value, f"{key}/low": interval.low, f"{key}/high": interval.high}
