"""Train a shallow text encoder by a deep one's attention maps and [CLS] states, layer by layer."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch

from stepwell.data.text_files import TextFiles
from stepwell.flags import Flags, Hidden, Together, checked, flag
from stepwell.methods import Supervised
from stepwell.methods.bert_internal import InternalKD, Schedule, layer_map, layers_of
from stepwell.recipes import flags
from stepwell.tasks import text, text_teaching
from stepwell.tasks.attention_maps import write_maps
from stepwell.teachers import Frozen
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.optimisation import Optimisation

Start = Literal["pretrained", "teacher"]


@dataclass(frozen=True, kw_only=True)
class Internal:
    """Losses between student and teacher, and their order in time.

    Attributes:
        schedule: all: layers and soft targets in every step; progressive: one layer after the
            other, then the task stage (soft targets, labels); stacked: layer joins layer, then
            the task stage.
        layers: the teacher's layer of each of the student's, from 1; 0: none.
        attention: weight of the attention maps (KL).
        cls: weight of the [CLS] states (cosine).
        kl: weight of the teacher's soft targets.
        ce: weight of the labels.
        temperature: temperature of the soft targets.
        keep_task: soft targets and labels count in every step.
        freeze: freeze learned layers until the task stage, in progressive.
        label_share: share of the steps of the task stage, in progressive and stacked.
        threshold: a stage ends early once its mean cosine loss is below this.
    """

    TITLE: ClassVar = "teaching"
    schedule: Annotated[Schedule, flag("SCHEDULE")] = "all"
    layers: Annotated[tuple[int, ...] | None, flag("N ...", "evenly spaced")] = None
    attention: float = 1.0
    cls: float = 1.0
    kl: float = 1.0
    ce: float = 0.0
    temperature: float = 1.0
    keep_task: Annotated[bool, flag()] = False
    freeze: Annotated[bool, flag()] = False
    label_share: Annotated[float | None, flag("X", "equal stages")] = None
    threshold: Annotated[float | None, flag("X", "by steps alone")] = None


@dataclass(frozen=True, kw_only=True)
class BertAblation(Together):
    """Options for studies.

    Attributes:
        shuffled: each text learns the attention and states of another text of its batch.
    """

    shuffled: bool = False


def bert(
    *,
    data: Annotated[str, flag("DATA", help="train.tsv, or a folder with it.")],
    out: flags.Out,
    teacher: Annotated[str, flag("RUN|FILE|FOLDER")],
    student_layers: Annotated[int, flag("N")] = 3,
    start: Annotated[Start, flag("START")] = "pretrained",
    teacher_epochs: Annotated[int | None, flag("N", "as --epochs")] = None,
    keep_outputs: bool = True,
    texts: Flags[TextFiles] = TextFiles(),
    internal: Flags[Internal] = Internal(),
    training: Flags[Optimisation] = Optimisation(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[BertAblation] = BertAblation(),
) -> dict[str, Any]:
    """Teach a shallow text encoder by a deep one's internal representations (Aguilar et al. 2020).

    A folder of Hugging Face's is fine-tuned first, and teaches then, unless its config.json (id2label)
    names these classes in this order. A run of `train supervised` or `train ekd` on texts teaches at
    once.

    Examples:
        stepwell train bert --teacher minilm/ --data reviews/ --out runs/small
        stepwell train bert --teacher runs/big --data reviews/ --student-layers 2 --out runs/tiny

    Args:
        teacher: a run on texts or its file, or a folder with config.json, tokenizer.json and
            model.safetensors.
        student_layers: layers of the student.
        start: the student begins with evenly spaced layers of the teacher, before its
            fine-tuning (pretrained) or after it (teacher).
        teacher_epochs: passes of the teacher's fine-tuning.
        keep_outputs: compute the teacher's outputs once, and store them in the run until its end
            (of one process).
    """
    training = text.settled(training)
    arguments = checked(locals())
    check_resumes("bert", arguments)
    torch.manual_seed(training.seed)
    folder = text_teaching.encoder_folder(teacher)
    splits = text.read_texts_of(data, str(folder), texts)
    deep, initial = text.start_network(splits, str(folder))
    trained = text_teaching.trained_encoder(teacher, splits)
    pretrained = {k: v.clone() for k, v in deep.module.state_dict().items()}
    if trained is not None:
        deep.load_full(trained.module.state_dict())
        text.standardise(deep, splits.scale)
    most = layers_of(deep)
    if not 1 <= student_layers <= most:
        raise ValueError(f"--student-layers {student_layers}: the teacher has {most}")
    inputs = text.prepare(splits, None, training, init=text_teaching.file_of(teacher))
    shallow = text_teaching.shallow(splits, student_layers)
    options: dict[str, Any] = vars(internal) | vars(ablation)
    assert training.epochs is not None
    objective = InternalKD(shallow, deep, **options)  # its errors come before there is a run
    lengths = objective.lengths(training.epochs * len(inputs.train))
    with text.open_task("bert", out, loop, arguments, inputs, shallow) as task:
        named = splits.encoder.classes == splits.train.classes  # a head of these classes
        known = trained is not None or (named and not initial.fresh)
        if not known:
            fit(
                Supervised(deep.module), task.train, training.optim(), task.run, phase="teacher",
                epochs=teacher_epochs or training.epochs, validate=text.validator(deep, task),
                loop=loop, patience=training.patience,
            )  # fmt: skip
        objective.teacher = Frozen(deep, copy=False)
        if keep_outputs and loop.devices == 1:  # all processes have one kind of teacher
            objective.teacher = text_teaching.stored_outputs(task, deep, objective)
        source = pretrained if start == "pretrained" else deep.module.state_dict()
        text_teaching.copy_layers(source, shallow, layer_map(student_layers, most))
        learn = partial(fit, objective, optim=training.optim(), run=task.run, loop=loop)
        taken = 0
        for stage in text_teaching.layer_stages(task, len(lengths)):
            objective.begin(stage)  # each has its own warm-up and decay
            steps = lengths[stage - 1]
            taken += learn(train=task.train.after(taken), phase=f"stage-{stage}", steps=steps)
        objective.begin(len(lengths))
        learn(
            train=task.train.after(taken), phase="student", steps=sum(lengths) - taken,
            validate=text.validator(shallow, task), patience=training.patience,
        )  # fmt: skip
        record = text_teaching.mismatch(shallow, deep, task.test, objective.layers)
        record["examples"] = write_maps(task, shallow, deep, objective.layers, splits.scale)
        record["teacher"] = text_teaching.cost_of_teacher(deep, splits.train)
        results: dict[str, Any] = text.finish(task, shallow, record={"bert": record})
        text_teaching.drop_outputs(task)
        return results
