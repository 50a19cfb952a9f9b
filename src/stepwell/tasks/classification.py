"""The task of classifying images: how a run opens its data and network, and writes its results."""

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from stepwell.cost import count_macs
from stepwell.data import Batches, ImageSet, Splits, load_images
from stepwell.data.decoding import DIFFERENT
from stepwell.data.formats import Drawing
from stepwell.data.image_flags import Augmentation, Images
from stepwell.data.images import check_outside
from stepwell.data.pictures.flags import Pictures
from stepwell.data.text_files import TextFiles, holds_texts
from stepwell.device import device_name
from stepwell.evaluation import gather_logits, tally
from stepwell.files import config_of, write_whole
from stepwell.measure.cascade import calibrate_cascade, cascade_curve, measure_cascade
from stepwell.measure.data_parts import batches_for, data_fingerprint, fitted, in_random_order
from stepwell.measure.depths import (
    Examples,
    accuracy_on,
    cost_table,
    logits_where_it_is,
    results_of,
    tally_of,
)
from stepwell.measure.inputs import INPUTS
from stepwell.measure.mixtures import mixture_record
from stepwell.measures import big
from stepwell.nets import Card, NestedNet, build, builder_of, named_depths
from stepwell.nets.adders.layers import adder_layers
from stepwell.nets.decisions.deciding import use_break_even
from stepwell.nets.files.initial_weights import Start, initialise, start_pretrained
from stepwell.nets.files.nested import fingerprint, load, save
from stepwell.nets.nested.calibrate import calibrate, estimate_all
from stepwell.nets.nested.cascade import Cascade
from stepwell.nets.nested.depth_names import check_depth
from stepwell.nets.nested.input_size import check_size
from stepwell.nets.nested.net import NormSharing
from stepwell.tasks.advice import advise
from stepwell.tasks.finishing import finished, spent
from stepwell.teachers import OpenTeacher
from stepwell.train_mode import in_eval_mode
from stepwell.training import Loop, Run
from stepwell.training.job import Stream, device_of
from stepwell.training.optimisation import Optimisation
from stepwell.training.progress import tell

Training = TypeVar("Training", bound=Optimisation)
B = TypeVar("B", bound=Stream)

#: Length and batches of a training on images, where the caller does not set them.
USUAL: dict[str, Any] = {"epochs": 40, "batch_size": 128, "optimizer": "sgd"}
#: Largest number of example pictures of each kind in the report.
PICTURES = 24
#: Images that give the norms of an adder network their statistics before a validation.
SETTLING = 2048
#: Images below this size get the small stem.
SMALL = 64


@dataclass(frozen=True)
class Inputs(Generic[B]):
    """Data and teacher of a run before it has a directory; all parts are prepared alike.

    about: the record of the data in config.json.
    weights: fingerprints of the weights that a resumed run must find unchanged.
    """

    train: B
    validation: B | None
    test: B
    teacher: nn.Module | None
    about: Mapping[str, Any]
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task(Generic[B]):
    """An open run and its data as batches, all normalised alike; and the teacher, if there is one.

    device: the device of training and measuring.
    """

    run: Run
    train: B
    validation: B | None
    test: B
    teacher: nn.Module | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def name_of(net: str) -> str:
    """The name of the network that --net names, which is itself."""
    return net


def settled(training: Training) -> Training:
    """The training with the usual settings of images where the caller set none."""
    return training.settled(**USUAL)


def read_splits(
    data: str, out: Path, images: Images, net: str | None = None, texts: TextFiles = TextFiles(),
    pictures: Drawing = Pictures(),
) -> Splits:  # fmt: skip
    """The images of `data`, at the size that `images` names, or their own, or the usual one of `net`.

    ValueError if `out` lies in `data`, `data` are texts, a flag of texts was set, or one of pictures
    of networks and `data` are none.
    """
    refuse_texts(data)
    for one in fields(texts):
        if getattr(texts, one.name) != getattr(TextFiles(), one.name):
            name = one.name.replace("_", "-")
            raise ValueError(
                f"--{name} is for texts, and --data {data} is no .tsv file and no folder with "
                "train.tsv: leave it out, or name texts"
            )
    check_outside(data, out)
    usual = DIFFERENT if net is None else builder_of(net).size
    size = images.size or size_of_run(out, data)
    splits = load_images(data, size, usual, drawing=pictures.record)
    if not splits.train.drawing and (flag := pictures.changed):
        raise ValueError(
            f"--{flag} is for complex networks, and --data {data} holds none: leave it out"
        )
    for note in splits.notes:
        warnings.warn(note, stacklevel=3)
    return splits


def refuse_texts(
    data: str, instead: str = "texts are for train ekd, supervised, exits and bert"
) -> None:
    """Raise ValueError for data of texts, which says what to do `instead`."""
    if holds_texts(data):
        raise ValueError(f"--data {data} holds texts, and this recipe takes images only: {instead}")


def size_of_run(out: Path, data: str | None) -> int | None:
    """The size of the images of a run on `data` in `out`, if there is one to be resumed."""
    config = config_of(out / "net.safetensors", "put it right, or use another --out")
    if not config or config["arguments"].get("data") != data:
        return None
    size: int | None = config["data"].get("size")
    return size


def start_network(
    splits: Splits, net: str | NestedNet, depths: Sequence[str] = (), *, stages: Sequence[str] = (),
    stem: Literal["auto", "imagenet", "small"] = "auto", norms: NormSharing = "private",
    init: Literal["pretrained"] | Path | None = None, **parts: Any,
) -> tuple[NestedNet, Start | None]:  # fmt: skip
    """Build the network for some data, with its initial weights, and a record of these.

    Args:
        net: a network's name, or a network that is built already.
        stages: stages in place of the network's own, as for `build`.
        init: a file of weights, or "pretrained"; by default the weights are random.
        parts: further arguments of `build`, such as gates.

    Raises:
        ValueError: no such network or depth; the images are too small; `init` does not fit.
    """
    size, classes = splits.train.size, splits.train.classes
    if isinstance(net, str):
        if own_recipe := builder_of(net).recipe:
            raise ValueError(f"--net {net}: only `stepwell train {own_recipe}` teaches its decisions")
        own = input_arguments(net, size, stem) | ({"stages": stages} if stages else {})
        net = build(net, depths, norms=norms, num_classes=len(classes), **own, **parts)
    check_size(net, size)
    if init is None:
        return net, None
    start = start_pretrained(net, classes) if init == "pretrained" else initialise(net, init, classes)
    if start.fresh:
        note = "its classifier is for other classes; ours starts fresh"
        warnings.warn(f"{init}: {note}", stacklevel=3)
    return net, start


def prepare(
    splits: Splits, images: Images, training: Optimisation, *, start: Start | None = None,
    init: Literal["pretrained"] | Path | None = None, teacher: OpenTeacher | None = None,
    choose: Callable[[ImageSet], ImageSet] | None = None, changes: Augmentation | None = None,
    logits: bool = True,
) -> Inputs[Batches]:  # fmt: skip
    """Turn images into batches, and make the teacher ready for them.

    Args:
        start, init: the initial weights, which say how images are normalised; without them a
            teacher says it, else the training images do.
        choose: maps the training part to the images that replace it.
        changes: of the training images; by default those of `images`.
        logits: the teacher's logits teach, so its classes must be those of the images.
    """
    if changes is None:
        changes = images if isinstance(images, Augmentation) else Augmentation()
    # A teacher's images can be converted; trained weights expect their own normalisation.
    normalisation = None if start is None else (start.card.mean, start.card.std)
    if normalisation is None and teacher is not None:
        normalisation = teacher.normalisation
    assert training.batch_size is not None
    train, validation = batches_for(
        splits, images, batch_size=training.batch_size, val_fraction=training.val_fraction,
        seed=training.seed, normalisation=normalisation, choose=choose, changes=changes,
    )  # fmt: skip
    check_patience(training, validation is not None)
    about = {
        "name": splits.name, "fingerprint": data_fingerprint(splits),
        "classes": list(splits.train.classes), "train": len(train.images),
        "validation": len(validation.images) if validation else 0, "test": len(splits.test),
        "size": splits.train.size,
    }  # fmt: skip
    if choose is not None:
        about["chosen"] = train.images.fingerprint
    if train.extra:
        about["unlabeled"] = "/".join(extra.images.fingerprint for extra in train.extra)
    weights = [fingerprint(init)] if isinstance(init, Path) else []
    weights += [] if teacher is None else [teacher.fingerprint]
    ready = None if teacher is None else fitted(teacher, train, logits=logits)
    test = train.with_images(splits.test)
    return Inputs(train, validation, test, ready, about, tuple(weights))


def check_patience(training: Optimisation, validated: bool) -> None:
    """Refuse patience without a validation part."""
    if training.patience is not None and not validated:
        raise ValueError(
            f"--patience {training.patience} counts epochs without a better validation score, and "
            "there is no validation part: set --val-fraction above 0"
        )


@contextlib.contextmanager
def open_task(
    recipe: str, out: Path, loop: Loop, arguments: Mapping[str, Any], inputs: Inputs[B],
    net: NestedNet | None = None,
) -> Iterator[Task[B]]:  # fmt: skip
    """Open the run directory of a recipe, and say what `net` costs; errors as for `Run.start`."""
    teacher = "/".join(inputs.weights) or None
    with Run.start(out, recipe, arguments, data=inputs.about, teacher=teacher) as run:
        if net is not None and run.writes and not (out / "results.json").exists():
            batches: Any = inputs.train
            examples = batches.examples
            tell_cost(net, examples.size, arguments.get("stem", "auto"), examples.input)
        parts = inputs.train, inputs.validation, inputs.test
        yield Task(run, *parts, inputs.teacher, device_of(loop))


def untrained_depths(net: NestedNet, depths: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Blocks per stage of depths that are added after the training; ValueError if one cannot be."""
    assert net.builder is not None
    name, arguments = net.builder
    own = {"stages": arguments["stages"]} if "stages" in arguments else {}
    added = named_depths(name, depths, **own)
    present = net.depths
    for depth, blocks in added.items():
        check_depth(depth, blocks, present, net.stages, net.depths[net.full])
        present[depth] = blocks
    return added


def tell_measuring(task: Task) -> None:
    """Say that the network is being measured, which takes a while for a large one."""
    examples = task.test.examples
    tell(f"measuring on {len(examples)} test {examples.NOUN}", quiet=not task.run.writes)


def tell_cost(net: NestedNet, size: int, stem: str, input: str = "image") -> None:
    """Say which stem and how many MACs an input takes, and whether a larger image costs less."""
    assert net.builder is not None
    name, arguments = net.builder
    kind = INPUTS[input]
    own = arguments.get("stem", "")
    stems = {"small": " with the small stem (3×3, stride 1)", "imagenet": " with the imagenet stem"}
    macs = _macs(net, input, size)
    text = f"{name}{stems.get(own, '')}: {big(macs)} MACs per {kind.noun} of {size} {kind.unit}"
    if own == "small" and stem == "auto" and 32 < size < SMALL:
        larger = _macs(build(name, **arguments | {"stem": "imagenet"}), "image", SMALL)
        if larger < macs:
            text += f"; --size {SMALL} takes the imagenet stem and costs less, {big(larger)}"
    tell(text)


def _macs(net: NestedNet, kind: str, size: int) -> int:
    twin = deepcopy(net.module).to("meta").eval()  # shapes without arithmetic
    return count_macs(twin, INPUTS[kind].blank(1, size).to("meta"))


def input_arguments(net: str, size: int, stem: str | None) -> dict[str, Any]:
    """The builder's arguments for images of `size` pixels: the stem, where there is a choice."""
    builder = builder_of(net)
    arguments: dict[str, Any] = {}
    if builder.stems:
        small = "small" if size < SMALL else "imagenet"
        arguments["stem"] = small if stem in (None, "auto") else stem
    elif stem not in (None, "auto"):
        raise ValueError(f"--stem {stem}: {net} has one stem only")
    if builder.size_argument is not None:
        arguments[builder.size_argument] = size
    return arguments


def validator(
    net: NestedNet, task: Task, depths: Sequence[str] | None = None, kind: str = "classifier"
) -> Callable[[], dict[str, float]] | None:
    """A call that measures `net`, of a `kind`, on the validation part; none without such a part.

    The norms of an adder network get present statistics before (see `settle`).
    """
    batches = task.validation
    if batches is None:
        return None

    def validate() -> dict[str, float]:
        if adder_layers(net.module):
            settle(net, task.train, SETTLING)
        with in_eval_mode(net):
            return tally(logits_where_it_is(net, depths), batches, tally_of(kind)).measures()

    return validate


def settle(net: NestedNet, train: Batches, images: int | None = None) -> None:
    """Replace the norms' statistics by those of training images without augmentation.

    The filters of adder layers change fast, and the moving averages of training lag behind: after a
    short training, the same weights are far less accurate with them.

    Args:
        images: most images to take, in whole batches; by default all.
    """
    most = None if images is None else -(-images // train.batch_size)
    estimate_all(net, islice(in_random_order(train), most))


class Measured(NamedTuple):
    """A network measured on the test part.

    logits, labels: by row, and of the examples. costs: by depth. more: arrays for predictions.npz.
    """

    results: dict[str, Any]
    logits: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    costs: Mapping[str, Mapping[str, Any]]
    more: Mapping[str, np.ndarray] = {}


def finish(
    task: Task[Any], net: NestedNet, untrained: Mapping[str, Sequence[int]] | None = None,
    record: Mapping[str, Any] | None = None, trained: Sequence[str] | None = None, *,
    kind: str = "classifier", write: Callable[[NestedNet, Path], object] | None = None,
    read: Callable[[Path], NestedNet] | None = None, cascade: Mapping[str, Any] | None = None,
    measure: Callable[[NestedNet, Any], Measured] | None = None,
    decide: Callable[[NestedNet], object] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the trained `net` once on the test part, write the run's results, and return them.

    Everything runs on the task's device; only the times are measured on the CPU. Writes
    net.safetensors, predictions.npz and, last, results.json. A run that has all three keeps them. If
    one of the last two is missing or damaged, the network in the file is measured again, with the
    depths that `stepwell calibrate` added to it.

    Args:
        untrained: depths to add, by blocks per stage, with norm statistics from the training images.
        record: further entries of the results.
        trained: depths that training has reached; all by default. Other depths get norm statistics
            from the training images, with a warning.
        kind: of the network. write, read: its file, by default as `save` and `load` do.
        cascade: options of `calibrate_cascade`, which sets a cascade on the validation part.
        decide: sets what decisions of the trained network need, before it is measured and written.
        measure: measures the network on the test part, and leaves it on the CPU; by default each depth.
    """
    run = task.run
    file, predictions = run.path / "net.safetensors", run.path / "predictions.npz"
    kept, results = finished(run, read or load)
    if results is not None:
        return results
    net = (net if kept is None else kept).to(task.device)
    if kept is None:
        _complete(net, untrained or {}, task.train, net.depths if trained is None else trained)
        if adder_layers(net.module):
            settle(net, task.train)
        if decide is not None:
            decide(net)
        if task.validation is not None and not net.card.numeric:
            net.card = net.card.with_accuracy(*accuracy_on(net, task.validation, "validation"))
            if cascade is not None:
                found = calibrate_cascade(net, task.validation, **cascade)
                net.card = replace(net.card, cascade=found)
        elif cascade is not None:
            warnings.warn(
                "there is no validation part, so the exits have no thresholds: set --val-fraction "
                "above 0, or `stepwell eval --cascade --save` with --data of a val/ folder",
                stacklevel=2,
            )
    tell_measuring(task)
    seen = (measure or partial(measured, kind=kind))(net, task.test)
    if kept is None:
        net.card = net.card.with_costs(seen.costs, device_name())
    results = {**seen.results, **spent(run), **(record or {})}
    if cascade is not None and net.card.cascade:
        on_test = measure_cascade(Cascade.of(net), task.test)
        results["cascade"] = {"validation": net.card.cascade, "test": on_test}
        if task.validation is not None:
            known = seen.logits, seen.labels
            results["cascade"]["curve"] = cascade_curve(net, task.validation, *known, **cascade)
    if run.writes:
        if kept is None:
            (write or save)(net, file)
        results["file_bytes"] = file.stat().st_size
        write_predictions(predictions, seen.logits, seen.labels, task.test, seen.more)
        run.write_json("results.json", results)
        if not net.card.numeric:
            answers = seen.logits.get(net.full, next(iter(seen.logits.values())))
            advise(run, net, task.train.examples, answers, seen.labels)
    return results


def measured(net: NestedNet, test: Any, kind: str = "classifier") -> Measured:
    """Measure every depth; the network is on the CPU afterwards."""
    use_break_even(net.module, {})  # answers do not depend on a clock
    logits, labels = gather_logits(logits_where_it_is(net), test)
    record = mixture_record(net.cpu(), test)
    costs = cost_table(net, net.card.size)
    results = results_of(tally_of(kind).add(logits, labels), net.card.classes, costs, kind)
    return Measured(results | record, logits, labels, costs)


def _complete(
    net: NestedNet, untrained: Mapping[str, Sequence[int]], train: Any, trained: Collection[str]
) -> None:
    """Add and calibrate the depths that are not trained; write the card."""
    net.eval()
    net.mark("trained")
    if missing := [depth for depth in net.subnets if depth not in trained]:
        net.mark("fresh", *missing)
        warnings.warn(
            f"in the weights that are kept, no step has trained depth {', '.join(missing)}: norms get "
            'statistics from the training data, and the status is "calibrated": use more --epochs',
            stacklevel=3,
        )
    for depth, blocks in untrained.items():
        net.add_depth(depth, blocks)
    examples = train.examples
    calibrate(net, train.with_examples(examples))
    net.card = Card(
        examples.classes, examples.size, train.mean, train.std, input=examples.input,
        drawing=examples.drawing,
    )  # fmt: skip


def write_predictions(
    path: Path, logits: Mapping[str, torch.Tensor], labels: torch.Tensor, test: Examples,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Every depth's outputs on the test part, and examples for a report.

    Disagreements of depths come first, of all classes in turn; of numbers, the full net's largest
    errors.

    Args:
        more: arrays by name that stand beside them.
    """
    *_, full = logits.values()
    numeric = labels.is_floating_point()
    if numeric:
        chosen = (full[:, 0] - labels).abs().argsort(descending=True)[:PICTURES]
    else:
        tops = torch.stack([values.argmax(1) for values in logits.values()])
        disagree = (tops != tops[-1]).any(0)
        unlike, alike = (in_turn(mask.nonzero().flatten(), labels) for mask in (disagree, ~disagree))
        chosen = torch.cat([unlike[:PICTURES], alike[: PICTURES // 2]])
    what = "numbers" if numeric else "logits"
    arrays = {f"{what}/{name}": values.numpy() for name, values in logits.items()}
    arrays |= {
        "labels": labels.numpy(), "image_index": chosen.numpy(),
        **test.examples.shown(test.order[chosen]), **(more or {}),
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_whole(path, buffer.getvalue())


def in_turn(
    indices: Int[torch.Tensor, " some"], labels: Int[torch.Tensor, " n"]
) -> Int[torch.Tensor, " some"]:
    """Order examples so that the classes take turns; of a class, the earlier example comes first."""
    seen: Counter[int] = Counter()
    turn = []
    for label in labels[indices].tolist():
        turn.append(seen[label])
        seen[label] += 1
    return indices[torch.tensor(turn, dtype=torch.long).argsort(stable=True)]
