"""Train a network with early exits, and the cascade that stops where it is sure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.data.text_files import TextFiles
from stepwell.flags import Flags, checked, flag
from stepwell.measure.cascade import check_search
from stepwell.methods import EmbeddedKD, ExitHeads, Supervised
from stepwell.nets.nested.net import NestedNet
from stepwell.recipes import flags
from stepwell.tasks import task_of
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.optimisation import Smoothed
from stepwell.training.progress import tell

Schedule = Literal["joint", "frozen"]
#: Exits of a network of one stage, where the caller names none: of images, and of texts.
IN_ONE_STAGE = {"image": 2, "text": 5}


@dataclass(frozen=True, kw_only=True)
class Exits:
    """Exits, their losses, and the thresholds of the cascade.

    Attributes:
        exits: places of the exits: NAME=BLOCKS,..., the blocks of each stage, 0 for later stages.
        schedule: joint: all exits train together; frozen: the network trains alone, then the
            exits' heads on top of it (as in DeeBERT).
        weights: of the exits' losses: equal (1 each, as in MSDNet), or depth (as in PABEE: exit j of K
            has 2 j / (K (K + 1)), in all 1).
        kl: weight of the deepest exit's soft targets for the others.
        temperature: temperature of the soft targets.
        criterion: measure by which the cascade is sure: see `stepwell eval`.
        search: of the cascade's thresholds: best for the network's accuracy, or geometric (MSDNet's).
        temper: fit a temperature for each exit before the search.
    """

    TITLE: ClassVar = "exit"
    exits: Annotated[tuple[str, ...], flag("NAME=BLOCKS ...", "behind each stage or layer")] = ()
    schedule: Annotated[Schedule, flag("SCHEDULE")] = "joint"
    weights: Annotated[Literal["equal", "depth"], flag("NAME")] = "equal"
    kl: float = 0.0
    temperature: float = 3.0
    criterion: Annotated[Literal["confidence", "entropy", "patience", "learned"], flag("NAME")] = (
        "confidence"
    )
    search: Annotated[Literal["best", "geometric"], flag("NAME")] = "best"
    temper: Annotated[bool, flag()] = False

    def added_to(self, net: NestedNet, input_size: Sequence[int], most: int = 2) -> None:
        """Add the exits to a network for inputs of a shape; ValueError if one cannot be.

        `most`: as for `usual_places`.
        """
        for name, blocks in (places_of(self.exits) or usual_places(net, most)).items():
            net.add_exit(name, blocks, input_size=input_size)

    def weights_of(self, net: NestedNet) -> tuple[dict[str, float], float]:
        """The weights of the exits' losses by name, and that of the full net's."""
        depths = [*net.depths]
        shares = [1.0] * len(depths)
        if self.weights == "depth":
            shares = [2 * j / (len(depths) * (len(depths) + 1)) for j in range(1, len(depths) + 1)]
        return dict(zip(depths[:-1], shares, strict=False)), shares[-1]


def exits(
    *,
    data: flags.Labelled,
    out: flags.Out,
    net: flags.NetOrEncoder = "resnet20",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    ending: Flags[Exits] = Exits(),
    images: Flags[TrainingImages] = TrainingImages(),
    texts: Flags[TextFiles] = TextFiles(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
) -> dict[str, Any]:
    """Train a network with early exits, and find where each input may leave (MSDNet, PABEE and others).

    The thresholds are set on the validation part; `stepwell predict RUN --cascade` uses them.

    Examples:
        stepwell train exits --data digits --out runs/exits
        stepwell train exits --data photos/ --out runs/photos --net resnet34 --exits a=3,0,0,0 b=3,4,0,0
        stepwell train exits --data cifar10 --out runs/msdnet --net msdnet10 --search geometric
        stepwell train exits --data reviews/ --out runs/reviews --net minilm/ --criterion patience
    """
    init = flags.file_of(init)
    training = task_of(data, net).settled(training)
    arguments = checked(locals())
    check_resumes("exits", arguments)
    check_search(ending.criterion, ending.search)
    kind = task_of(data, net)
    torch.manual_seed(training.seed)
    if texts.regression:
        raise ValueError("--regression: exits decide by classes; train ekd predicts numbers at depths")
    splits = kind.read_splits(data, out, images, net, texts)
    nested, start = kind.start_network(splits, net, stem=stem)
    size, input = splits.train.size, splits.train.input
    ending.added_to(nested, (size,) if input == "text" else (3, size, size), IN_ONE_STAGE[input])
    nested, begun = kind.start_network(splits, nested, init=init)
    start = begun or start
    inputs = kind.prepare(splits, images, training, start=start, init=init)
    weights, full_weight = ending.weights_of(nested)
    frozen, smoothing = ending.schedule == "frozen", training.label_smoothing
    method = ExitHeads if frozen else partial(EmbeddedKD, distill_from=0.0)
    options: dict[str, Any] = {
        "weights": weights, "full_weight": full_weight, "kl": ending.kl,
        "temperature": ending.temperature, "attention": 0.0, "label_smoothing": smoothing,
    }  # fmt: skip
    with kind.open_task("exits", out, loop, arguments, inputs, nested) as task:
        learn = partial(
            fit, train=task.train, run=task.run, loop=loop, epochs=training.epochs,
            patience=training.patience,
        )  # fmt: skip
        if frozen and (start is None or start.fresh):
            tell(f"two phases: the network alone, then its exits (epochs: {training.epochs} each)",
                 quiet=not task.run.writes)  # fmt: skip
            alone = Supervised(nested.module, label_smoothing=smoothing)
            validate = kind.validator(nested, task, [nested.full])
            learn(alone, optim=training.optim(), phase="full", validate=validate)
        objective = method(nested, **options)
        learn(objective, optim=training.optim(), phase="exits",
              validate=kind.validator(nested, task))  # fmt: skip
        nested.requires_grad_(True)
        cascade = {name: getattr(ending, name) for name in ("criterion", "search", "temper")}
        results: dict[str, Any] = kind.finish(task, nested, cascade=cascade)
        return results


def places_of(exits: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The blocks of exits typed as NAME=BLOCKS,...; ValueError for another form, or a name twice."""
    places: dict[str, tuple[int, ...]] = {}
    for text in exits:
        name, _, blocks = text.partition("=")
        try:
            counts = tuple(int(count) for count in blocks.split(","))
        except ValueError:
            raise ValueError(
                f"--exits {text}: write NAME=BLOCKS,..., the blocks of each stage, such as early=3,0,0"
            ) from None
        if name in places:
            raise ValueError(f"--exits: exit {name!r} is named twice: drop one of them")
        places[name] = counts
    return places


def usual_places(net: NestedNet, most: int = 2) -> Mapping[str, tuple[int, ...]]:
    """An exit behind every stage but the last; of one stage, `most` exits behind equal parts of it.

    A stage of few blocks has an exit behind each. ValueError for a network of one block.
    """
    full = net.depths[net.full]
    if len(full) > 1:
        places = [(*full[:i], *(0,) * (len(full) - i)) for i in range(1, len(full))]
    else:
        parts = range(1, most + 1)
        counts = dict.fromkeys(round(full[0] * part / (most + 1)) for part in parts)
        places = [(count,) for count in counts if 0 < count < full[0]]
    if not places:
        raise ValueError(f"a network of {full[0]} block has no place for an exit: name a deeper --net")
    return {f"exit{i}": place for i, place in enumerate(places, start=1)}
