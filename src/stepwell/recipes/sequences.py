"""Train a recurrent network that skips the tokens that its state does not need."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch

from stepwell.data.image_flags import Images
from stepwell.data.text_files import TextFiles
from stepwell.flags import Flags, Hidden, Together, checked, flag
from stepwell.measure.sequences import Pick, accuracy_with, measure_sequences
from stepwell.measure.text import SEQUENCE
from stepwell.methods.sequences import PICKS, Sequences
from stepwell.nets import build
from stepwell.nets.families.recurrent import with_vectors
from stepwell.nets.nested.net import NestedNet
from stepwell.recipes import flags
from stepwell.tasks import text
from stepwell.tasks.measuring import Measured
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.optim import OptimizerName
from stepwell.training.optimisation import Smoothed


@dataclass(frozen=True, kw_only=True)
class Updates(Smoothed):
    """A training on texts from fresh weights."""

    epochs: int | None = 10
    batch_size: int | None = 32
    optimizer: Annotated[OptimizerName | None, flag("NAME")] = "adamw"
    lr: Annotated[float | None, flag("X")] = 1e-3


@dataclass(frozen=True, kw_only=True)
class SequencesAblation(Together):
    """Options for studies.

    Attributes:
        pick, rate: the tokens that update the state, without a gate: see `Sequences`.
    """

    pick: str = "gate"
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Skips:
    """The recurrent layer, and the price of its updates.

    Attributes:
        cell: gru or lstm.
        width: numbers of its state.
        cost_weight: price of each update of the state, beside the loss of the labels.
    """

    TITLE: ClassVar = "recurrent layer"
    cell: Annotated[Literal["gru", "lstm"], flag("CELL")] = "gru"
    width: int = 128
    cost_weight: float = 3e-3


def sequences(
    *,
    data: Annotated[str, flag("DATA", help="train.tsv, or a folder with it.")],
    out: flags.Out,
    net: Annotated[str, flag("FOLDER")],
    skips: Flags[Skips] = Skips(),
    texts: Flags[TextFiles] = TextFiles(),
    training: Flags[Updates] = Updates(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[SequencesAblation] = SequencesAblation(),
) -> dict[str, Any]:
    """Train a recurrent network whose gate decides after each token how many to skip (Skip RNN).

    Its word vectors are those of a text encoder, and stay as they are.

    Examples:
        stepwell train sequences --data reviews/ --net minilm/ --out runs/skips
        stepwell train sequences --data reviews/ --net minilm/ --out runs/few --cost-weight 0.01

    Args:
        net: folder of the encoder (config.json, tokenizer.json, model.safetensors) whose tokenizer and
            word vectors are used.
    """
    arguments = checked(locals())
    check_resumes("sequences", arguments)
    if texts.regression:
        raise ValueError("--regression: sequences have classes; train ekd predicts numbers at depths")
    torch.manual_seed(training.seed)
    splits = text.read_splits(data, out, Images(), net, texts)
    state = splits.encoder.module.state_dict()
    (vectors,) = (value for name, value in state.items() if name.endswith("word_embeddings.weight"))
    nested = build(
        f"skip-{skips.cell}/{skips.width}", words=len(vectors), inputs=vectors.shape[1],
        padding=splits.encoder.module.padding, num_classes=len(splits.train.classes),
    )  # fmt: skip
    with_vectors(nested.module, vectors)
    inputs = text.prepare(splits, None, training)
    objective = Sequences(
        nested, cost_weight=skips.cost_weight, label_smoothing=training.label_smoothing,
        **vars(ablation),
    )  # fmt: skip

    picked = ablation.pick in PICKS

    def own_pick() -> Pick:  # draws alike each time
        draw = torch.Generator().manual_seed(training.seed)
        return partial(PICKS[ablation.pick], rate=ablation.rate, draw=draw)

    def measure(net: NestedNet, test: Any) -> Measured:
        results, seen = measure_sequences(net.cpu(), test, own_pick() if picked else None)
        return Measured(results, seen.logits, seen.labels, {net.full: results["costs"]["chosen"]})

    with text.open_task("sequences", out, loop, arguments, inputs, nested) as task:
        part = task.validation
        validate = text.validator(nested, task)
        if picked and part is not None:  # the gate has learned nothing
            validate = lambda: {"chosen/accuracy": accuracy_with(nested, part, own_pick())}  # noqa: E731
        fit(
            objective, task.train, training.optim(), task.run, phase="skips", epochs=training.epochs,
            validate=validate, loop=loop, patience=training.patience,
        )  # fmt: skip
        results: dict[str, Any] = text.finish(task, nested, kind=SEQUENCE, measure=measure)
        return results
