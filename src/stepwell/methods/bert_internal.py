"""Distillation from a text encoder's internal representations.

After Aguilar et al. 2020 (arXiv:1910.03723). Layer i of the student learns layer m(i) of the teacher:
its attention (KL) and its [CLS] state (cosine).

    L_int(i) = a · KL(P_m(i) || P_i) + c · (1 - cos(h_m(i), h_i))

- *all*: every step has all layers and the task (soft targets, labels).
- *progressive*: one layer after the other, then the task stage.
- *stacked*: layer after layer, each joined by the layers before it, then the task stage.

The paper could not be read: means over heads and examples, and the even split of the steps over layers
and the task stage, are a *reconstruction*.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from stepwell.losses import attention_kl, cls_cosine, label_loss, teacher_loss
from stepwell.methods.objective import Objective
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.steps import Request, Value
from stepwell.ranges import check_choice, check_numbers
from stepwell.teachers.teacher import Frozen
from stepwell.types import Batch, Step

Schedule = Literal["all", "progressive", "stacked"]
#: Decay of the moving average of the cosine loss that a threshold is compared with, and the steps that
#: a stage takes at least.
SMOOTHING, FEWEST = 0.9, 10


def layer_map(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer of each of the student's, from 1, evenly spaced up to the last one.

    In equal groups, it is the upper layer of each; otherwise the nearest layer, the even one of two.

    >>> layer_map(3, 6), layer_map(4, 6), layer_map(2, 5)
    ((2, 4, 6), (2, 3, 4, 6), (2, 5))
    """
    return tuple(max(1, round(i * teacher / student)) for i in range(1, student + 1))


class InternalKD(Objective):
    """Teach a shallow text encoder by a deep one, layer by layer.

    The caller runs the stages: `begin` starts one, `lengths` says how many steps each takes. So each
    stage can have an optimizer and a schedule of its own.

    Args:
        student: an encoder; its full depth learns.
        teacher: another one, frozen.
        layers: the teacher's layer of each of the student's, from 1; by default `layer_map`. 0: none.
        schedule: all, progressive or stacked.
        attention: a, the weight of attention.
        cls: c, the weight of the [CLS] states.
        kl: weight of the teacher's soft targets; of numbers, of the squared difference.
        ce: weight of the labels.
        temperature: T of the soft targets.
        keep_task: keep soft targets and labels in the loss while layers are learned.
        freeze: freeze learned layers until the task stage, in progressive. These steps take less time.
        label_share: share of the steps of the task stage, in progressive and stacked; by default, the
            task stage is as long as the stage of one layer.
        threshold: a stage may end before its time once the cosine loss is below it: the mean over the
            stage's layers, in a moving average over steps.
        shuffled: a control: each text learns the attention and states of another text of its batch.
            A text alone in its batch learns neither.

    Raises:
        ValueError: a value is out of range, or has no effect; a layer that does not exist; other
            vocabularies; unequal numbers of heads, with attention; no loss.
    """

    def __init__(
        self,
        student: NestedNet,
        teacher: NestedNet,
        *,
        layers: Sequence[int] | None = None,
        schedule: str = "all",
        attention: float = 1.0,
        cls: float = 1.0,
        kl: float = 1.0,
        ce: float = 0.0,
        temperature: float = 1.0,
        keep_task: bool = False,
        freeze: bool = False,
        label_share: float | None = None,
        threshold: float | None = None,
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        check_numbers(locals(), flags=False)
        check_choice("schedule", schedule, Schedule)
        if not (kl or ce or attention or cls):
            raise ValueError("the student has no loss: --attention, --cls, --kl and --ce are all 0")
        if schedule != "all" and not (kl or ce):
            raise ValueError(f"schedule {schedule!r} ends with a task stage: set --kl or --ce above 0")
        if schedule != "all" and not (attention or cls):
            raise ValueError(
                f"schedule {schedule!r} begins with layers: set --attention or --cls above 0"
            )
        staged = {"threshold": threshold, "label_share": label_share, "keep_task": keep_task}
        if schedule == "all" and (ignored := [n for n, v in staged.items() if v not in (None, False)]):
            flag = ignored[0].replace("_", "-")
            raise ValueError(f"--{flag} is for the schedules progressive and stacked, not 'all'")
        if threshold is not None and not cls:
            raise ValueError("--threshold compares the loss of [CLS] states: set --cls above 0")
        for net in (student, teacher):
            shape_of(net)  # refuses what is no text encoder
        ours, theirs = (
            (net.module.config.vocab_size, net.module.padding)  # type: ignore[union-attr]
            for net in (student, teacher)
        )
        if ours != theirs:
            raise ValueError(
                f"the student has {ours[0]:,} tokens and padding {ours[1]}, the teacher {theirs[0]:,} "
                f"and {theirs[1]}: their vocabularies must be the same"
            )
        self.student, self.padding = student, int(student.module.padding)  # type: ignore[arg-type]
        self.teacher: nn.Module = Frozen(teacher)
        self.depth = layers_of(student)
        most = layers_of(teacher)
        self.layers = tuple(layers) if layers is not None else layer_map(self.depth, most)
        if len(self.layers) != self.depth:
            raise ValueError(
                f"the layer map names {len(self.layers)} layer{'s' * (len(self.layers) != 1)}, and the "
                f"student has {self.depth}"
            )
        if wrong := [m for m in self.layers if not 0 <= m <= most]:
            raise ValueError(f"the layer map names layer {wrong[0]}; the teacher has 1 to {most}")
        if freeze and schedule != "progressive":
            raise ValueError(f"--freeze is for the schedule progressive, not {schedule!r}")
        self.keep_task, self.freeze = keep_task, freeze
        self.attention, self.cls, self.kl, self.ce = attention, cls, kl, ce
        self.temperature, self.threshold, self.shuffled = temperature, threshold, shuffled
        learned = [i for i, at in enumerate(self.layers, 1) if at and (attention or cls)]
        self.extras = [n for n, weight in (("scores", attention), ("cls", cls)) if weight and learned]
        self.stages = _stages(schedule, learned)
        if not (kl or ce or learned):
            raise ValueError("the student has no loss: --layers names none, --kl and --ce are 0")
        if schedule != "all" and not learned:
            raise ValueError(f"schedule {schedule!r} begins with layers: --layers names none")
        self.label_share = 1 / len(self.stages) if label_share is None else label_share
        (heads, width), (their_heads, their_width) = shape_of(student), shape_of(teacher)
        if attention and heads != their_heads:
            raise ValueError(
                f"the student has {heads} heads of attention and the teacher {their_heads}: set "
                "--attention to 0, or take a student of as many"
            )
        unequal = bool(cls) and width != their_width
        maps = [nn.Linear(width, their_width) for _ in self.layers] if unequal else []
        self.projections = nn.ModuleList(maps)
        self.stage = 1  # the current one, from 1; the last is the task stage
        if threshold is not None:  # in the state dict: a resumed stage ends at the same step
            self.cosine: Tensor
            self.cosine_steps: Tensor
            self.register_buffer("cosine", torch.zeros(()))
            self.register_buffer("cosine_steps", torch.zeros((), dtype=torch.long))

    def lengths(self, steps: int) -> tuple[int, ...]:
        """The steps of each stage, of a training of `steps`; ValueError for too few."""
        *layers, _ = self.stages
        share = (1 - self.label_share) / max(1, len(layers))
        ends = [math.ceil(steps * share * k - 1e-9) for k in range(len(self.stages))] + [steps]
        lengths = tuple(b - a for a, b in pairwise(ends))
        if min(lengths) < 1:
            raise ValueError(
                f"{steps} steps are too few for {len(lengths)} stages (--label-share "
                f"{self.label_share:g}): train for more epochs"
            )
        return lengths

    def begin(self, stage: int) -> None:
        """Begin a stage, from 1 to the number of `stages`."""
        self.stage = stage
        if self.threshold is not None:
            self.cosine.zero_()
            self.cosine_steps.zero_()

    @property
    def done(self) -> bool | None:
        """True if this stage may end, because its cosine loss is below the threshold; None: never."""
        if self.threshold is None or not self.active():
            return None
        steps = int(self.cosine_steps)
        return steps >= FEWEST and float(self.cosine) / (1 - SMOOTHING**steps) < self.threshold

    def active(self) -> tuple[int, ...]:
        """The student's layers with a loss in this stage, from 1."""
        return self.stages[self.stage - 1]

    @property
    def taught_by(self) -> tuple[int, ...]:
        """The teacher's layers whose attention or states the losses read, from 1."""
        return tuple(sorted(set(self.layers) - {0})) if self.extras else ()

    @property
    def reads_teacher(self) -> bool:
        """True if a loss reads the teacher's outputs."""
        return bool(self.kl or self.extras)

    def training_step(self, batch: Batch) -> Step:
        """The loss of this stage: of its layers, its task, or both."""
        ids, labels = batch
        active = self.active()
        with_task = self.stage == len(self.stages) or self.keep_task
        soft = self.kl if with_task else 0.0
        target = None
        if active or soft:
            with torch.autocast(ids.device.type, enabled=False):  # as stored outputs are computed
                target = self.teacher(ids, extras=self.extras) if active else self.teacher(ids)
        logs: dict[str, Tensor] = {}
        loss = []
        last = None if with_task else max(active)
        value, internal = self._run(ids, set(active), last)
        for i in active:
            assert target is not None
            for name, weight, layer_loss in self._internal(i, internal[i], target.extras, ids):
                logs[f"{name}/{i}"] = layer_loss
                loss.append(weight * layer_loss)
        if with_task:
            assert isinstance(value, Tensor)
            if soft:
                assert target is not None
                term = teacher_loss(value, target.logits, self.temperature)
                logs[term.name] = term.value
                loss.append(soft * term.value)
            if self.ce:
                term = label_loss(value, labels)
                logs[term.name] = term.value
                loss.append(self.ce * term.value)
        self._note(logs, active)
        return Step(torch.stack(loss).sum(), logs)

    def _internal(
        self, i: int, ours: Mapping[str, Tensor], theirs: Mapping[str, Sequence[Tensor]],
        ids: Int64[Tensor, "batch tokens"],
    ) -> Iterator[tuple[str, float, Float[Tensor, ""]]]:  # fmt: skip
        """Name, weight and value of each loss of a student's layer."""
        at = self.layers[i - 1] - 1
        turn = int(self.shuffled)  # to the text before it
        share = float(len(ids) > turn)
        if self.attention:
            real: Bool[Tensor, "batch tokens"] = ids.ne(self.padding)
            scores, mask = theirs["scores"][at].roll(turn, 0), real & real.roll(turn, 0)
            yield "attention", share * self.attention, attention_kl(ours["scores"], scores, mask)
        if self.cls:
            state = self.projections[i - 1](ours["cls"]) if len(self.projections) else ours["cls"]
            yield "cls", share * self.cls, cls_cosine(state, theirs["cls"][at].roll(turn, 0))

    def _run(
        self, ids: Int64[Tensor, "batch tokens"], learning: set[int], last: int | None
    ) -> tuple[Value, dict[int, dict[str, Tensor]]]:
        """Run the student up to layer `last` (None: to the logits), with extras of layers that learn.

        Losses and classifier read only the first token of the last layer that runs. So this layer
        computes no other token after its attention.
        """
        first = len(self.student.plan.gaps[0])
        path, names = self.student.path(), self.student.keywords(self.student.full)
        stop = len(path) if last is None else first + last
        top = min(stop, first + self.depth) - 1
        request, internal = Request({}, tuple(self.extras)), dict[int, dict[str, Tensor]]()
        value: Value = ids
        frozen = (
            first + min(self.active()) - 1 if self.freeze and self.stage > 1 and self.active() else 0
        )
        for at in range(stop):
            layer = at - first + 1
            step: Any = path[at].first if at == top else path[at]
            with torch.set_grad_enabled(torch.is_grad_enabled() and at >= frozen):
                if layer in learning:
                    value, internal[layer] = request.call(step, value, names[at])
                else:
                    value = step(value)
        return value, internal

    @torch.no_grad()
    def _note(self, logs: dict[str, Tensor], active: Sequence[int]) -> None:
        """Add the cosine loss of a step to its moving average, which `done` reads."""
        if self.threshold is not None and active:
            now = torch.stack([logs[f"cls/{i}"] for i in active]).mean()
            self.cosine.lerp_(now.to(self.cosine.dtype), 1 - SMOOTHING)
            self.cosine_steps.add_(1)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if state.pop(f"{prefix}stage_reached", None) is not None:  # of an older version
            state.pop(f"{prefix}cosine", None)
        super()._load_from_state_dict(state, prefix, *rest)


def _stages(schedule: str, learned: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The student's layers with a loss in each stage; the task stage is the last."""
    if schedule == "all":
        return (tuple(learned),)
    firsts = range(len(learned)) if schedule == "progressive" else [0] * len(learned)
    return (*(tuple(learned[first : k + 1]) for k, first in enumerate(firsts)), ())


def layers_of(net: NestedNet) -> int:
    """The number of layers of an encoder."""
    return sum(net.depths[net.full])


def shape_of(net: NestedNet) -> tuple[int, int]:
    """The number of heads and the width of an encoder; ValueError for another network."""
    config: Any = getattr(net.module, "config", None)
    if not hasattr(config, "num_attention_heads"):
        raise ValueError(f"{type(net.module).__name__} is no text encoder: build one, such as bert/6")
    return int(config.num_attention_heads), int(config.hidden_size)
