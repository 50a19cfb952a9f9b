"""What every recipe that trains an image classifier begins and ends with."""

import contextlib
import io
import time
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from stepwell.data import Batches, ImageSet, load_images
from stepwell.data.images import check_outside
from stepwell.device import device_name
from stepwell.evaluation import churn, evaluate, gather_logits
from stepwell.evaluation.accuracy import measures
from stepwell.files import write_whole
from stepwell.measure.data_parts import batches_for, data_fingerprint, fitted, part_of
from stepwell.measure.depths import accuracy_on, cost_table, logits_where_it_is
from stepwell.nets import Card, NestedNet, build, builder_of
from stepwell.nets.files.nested import Start, fingerprint, initialise, load, save
from stepwell.nets.files.pretrained import start_pretrained
from stepwell.nets.nested.calibrate import calibrate
from stepwell.nets.nested.input_size import check_size
from stepwell.ranges import check_numbers
from stepwell.results import read_results
from stepwell.teachers import OpenTeacher
from stepwell.train_mode import in_eval_mode
from stepwell.training import Run
from stepwell.training.fit import check_devices, device_of
from stepwell.training.progress import tell

#: Example pictures kept for the report: at most so many of each kind.
PICTURES = 24
Net = TypeVar("Net", bound=nn.Module)


class Task(NamedTuple):
    """An open run and its data as batches, all normalised alike; and the teacher, if there is one.

    device: where networks are trained, and measured.
    """

    run: Run
    train: Batches
    validation: Batches | None
    test: Batches
    teacher: nn.Module | None = None
    device: torch.device = torch.device("cpu")


def tell_measuring(task: Task) -> None:
    """Say that the network is measured now, which takes a while where it is large."""
    tell(f"measuring on {len(task.test.images)} test images", quiet=not task.run.writes)


@contextlib.contextmanager
def open_classifier(
    recipe: str,
    arguments: Mapping[str, Any],
    net: str | NestedNet,
    depths: Sequence[str] = (),
    *,
    teacher: OpenTeacher | None = None,
    check: Callable[[NestedNet, nn.Module | None, int, Start | None], object] | None = None,
    choose: Callable[[ImageSet], ImageSet] | None = None,
) -> Iterator[tuple[Task, NestedNet, Start | None]]:
    """Read the data, build the network and open the run directory that a recipe's arguments name.

    Args:
        arguments: the recipe's own, with `data`, `out`, `size`, `flip`, `val_fraction`, `batch_size`,
            `seed` and, where it has them, `part`, `init` and `stem` among them.
        net: the network to build, with sub-nets `depths`; or one that is built.
        teacher: is made ready for the data; images are normalised as it expects them, if there is no
            `init` that says how, and its weights must not change under a run that is resumed.
        check: gets the network, the teacher made ready, the size of images and what the network took
            from `init`, before there is a run directory, and raises ValueError for what cannot work; it
            may draw random numbers.
        choose: the training part to the images that take its place.

    Yields:
        The task; the network, with weights from `init` if that is set; and what it took from there.
    """
    check_arguments(arguments)
    check_outside(arguments["data"], Path(arguments["out"]))
    splits = load_images(arguments["data"], arguments["size"])
    size, classes = splits.train.size, splits.train.classes
    nested = (
        net
        if isinstance(net, NestedNet)
        else build(
            net,
            depths,
            norms=arguments.get("norms", "private"),
            num_classes=len(classes),
            **input_arguments(net, size, arguments.get("stem")),
        )
    )
    check_size(nested, size)
    for note in splits.notes:
        warnings.warn(note, stacklevel=3)
    init: Literal["pretrained"] | Path | None = arguments.get("init")
    start = _start(nested, init, classes)
    if start is not None and start.fresh:
        warnings.warn(
            f"{init}: its classifier is for other classes; ours starts fresh", stacklevel=3
        )
    # A teacher's images can be converted, those that trained weights expect cannot.
    normalisation = None if start is None else (start.card.mean, start.card.std)
    if normalisation is None and teacher is not None:
        normalisation = teacher.normalisation
    train, validation = batches_for(splits, arguments, normalisation, choose)
    taught_by = None if teacher is None else fitted(teacher, train)
    if validation is None and arguments.get("on_drop") == "rollback":
        raise ValueError(
            "--on-drop rollback compares the full net on a validation part: set --val-fraction above 0"
        )
    if check is not None:
        with torch.random.fork_rng(devices=[]):
            check(nested, taught_by, size, start)
    data = {
        "name": splits.name,
        "fingerprint": data_fingerprint(splits),
        "classes": list(classes),
        "train": len(train.images),
        "validation": len(validation.images) if validation else 0,
        "test": len(splits.test),
        "size": size,
    }
    if choose is not None:
        data["chosen"] = train.images.fingerprint
    if train.extra:
        data["unlabeled"] = "/".join(extra.images.fingerprint for extra in train.extra)
    weights = [fingerprint(init)] if isinstance(init, Path) else []
    weights += [] if teacher is None else [teacher.fingerprint]
    run = Run.start(
        Path(arguments["out"]),
        recipe,
        arguments,
        data=data,
        teacher="/".join(weights) or None,
    )
    with run:
        test = train.with_images(splits.test)
        device = device_of(arguments["loop"]) if "loop" in arguments else torch.device("cpu")
        yield Task(run, train, validation, test, taught_by, device), nested, start


def _start(
    # In this order, everywhere: `typing` gives back the first union of these members that it met,
    # and to a command line whose union begins with Path "pretrained" is a file.
    net: NestedNet,
    init: Literal["pretrained"] | Path | None,
    classes: tuple[str, ...],
) -> Start | None:
    if init is None:
        return None
    if isinstance(init, Path):
        return initialise(net, init, classes)
    return start_pretrained(net, classes)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse values that no training can use, before any time is spent.

    Raises:
        ValueError: a number is out of its range; no such device or part; options that do nothing.
    """
    check_numbers(arguments)
    if "loop" in arguments:
        check_devices(arguments["loop"])
    if arguments.get("part") is not None:
        part_of(arguments["part"])
    if "distill_data" in arguments:
        arguments["distill_data"].check()


def input_arguments(net: str, size: int, stem: str | None) -> dict[str, Any]:
    """The builder's arguments for images of `size` pixels: the stem, where there is a choice.

    Raises:
        ValueError: no such network, or it has no choice.
    """
    builder = builder_of(net)
    arguments: dict[str, Any] = {}
    if builder.stems:
        small = "small" if size < 64 else "imagenet"
        arguments["stem"] = small if stem in (None, "auto") else stem
    elif stem not in (None, "auto"):
        raise ValueError(f"--stem {stem}: {net} has one stem only")
    if builder.size_argument is not None:
        arguments[builder.size_argument] = size
    return arguments


def validator(
    net: NestedNet, task: Task, depths: Sequence[str] | None = None
) -> Callable[[], dict[str, float]] | None:
    """A call that measures `net` on the validation part, or none where there is no such part."""
    batches = task.validation
    if batches is None:
        return None

    def validate() -> dict[str, float]:
        with in_eval_mode(net):
            return evaluate(logits_where_it_is(net, depths), batches)

    return validate


def finish(
    task: Task,
    net: NestedNet,
    untrained: Mapping[str, Sequence[int]] | None = None,
    found: Mapping[str, Any] | None = None,
    trained: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure the trained `net` once on the test part, and write the run's results.

    Depths in `untrained` are added now, and get norm statistics from the training images. So do those
    of the net that are not among `trained` (all, by default; the full net always is), and a warning
    names them. What the recipe has `found` stands in the results, too. All runs on the task's device
    but the times, which are those of a processor.

    Writes net.safetensors, predictions.npz and, last, results.json; returns its content. A run that
    has all three keeps them; where one of the last two is missing or damaged, what is in the file is
    measured again, and the depths that `stepwell calibrate` added to it stay.
    """
    run = task.run
    file, predictions = run.path / "net.safetensors", run.path / "predictions.npz"
    kept, results = finished(run, load)
    if results is not None:
        return results
    net = (net if kept is None else kept).to(task.device)
    if kept is None:
        _complete(net, untrained or {}, task.train, net.depths if trained is None else trained)
        if task.validation is not None:
            net.card = net.card.with_accuracy(*accuracy_on(net, task.validation, "validation"))
    tell_measuring(task)
    logits, labels = gather_logits(logits_where_it_is(net), task.test)
    net = net.cpu()
    costs = cost_table(net, task.train.images.size)
    if kept is None:
        net.card = net.card.with_costs(costs, device_name())
    results = {
        "kind": "classifier",
        "rows": "depth",
        "test": measures(logits, labels, net.card.classes),
        "churn": churn(logits, labels),
        "examples": len(labels),
        "costs": costs,
        **spent(run),
        **(found or {}),
    }
    if run.writes:
        if kept is None:
            save(net, file)
        results["file_bytes"] = file.stat().st_size
        write_predictions(predictions, logits, labels, task.test)
        run.write_json("results.json", results)
    return results


def _complete(
    net: NestedNet,
    untrained: Mapping[str, Sequence[int]],
    train: Batches,
    trained: Collection[str],
) -> None:
    """Make a file's network of the trained `net`: with all its depths, and what it was trained on."""
    net.eval()
    net.mark("trained")
    if missed := [depth for depth in net.subnets if depth not in trained]:
        net.mark("fresh", *missed)
        warnings.warn(
            f"in the weights that are kept, no step has trained depth {', '.join(missed)}: norms get "
            'statistics from the training images, and the status is "calibrated". Train longer, or '
            "from an earlier --distill-from",
            stacklevel=3,
        )
    for depth, blocks in untrained.items():
        net.add_depth(depth, blocks)
    calibrate(net, train.with_images(train.images))
    net.card = Card(train.images.classes, train.images.size, train.mean, train.std)


def finished(run: Run, load: Callable[[Path], Net]) -> tuple[Net | None, dict[str, Any] | None]:
    """The network in a run's file, if it is there and undamaged; and the results of a finished run."""
    net = results = None
    with contextlib.suppress(ValueError, FileNotFoundError):
        net = load(run.path / "net.safetensors")
    with contextlib.suppress(ValueError, FileNotFoundError):  # damaged, or not there
        results = read_results(run.path)
    whole = net is not None and zipfile.is_zipfile(run.path / "predictions.npz")
    return net, results if whole else None


def spent(run: Run) -> dict[str, Any]:
    """Seconds of all phases together, by the clock and of the processor; and when they had passed."""
    last = {line["phase"]: line for line in run.metrics()}
    seconds = {n: sum(line[n] for line in last.values()) for n in ("seconds", "cpu_seconds")}
    return seconds | {"finished": time.strftime("%Y-%m-%d %H:%M:%S")}


def write_predictions(
    path: Path,
    logits: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    test: Batches,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Every depth's logits on the test part, and the pictures that a report shows.

    First pictures on which the depths disagree, then others.

    Args:
        more: arrays by name that stand beside them.
    """
    tops = torch.stack([values.argmax(1) for values in logits.values()])
    disagree = (tops != tops[-1]).any(0)
    chosen = torch.cat(
        [
            disagree.nonzero().flatten()[:PICTURES],
            (~disagree).nonzero().flatten()[: PICTURES // 2],
        ]
    )
    arrays = {f"logits/{name}": values.numpy() for name, values in logits.items()}
    arrays |= {
        "labels": labels.numpy(),
        "image_index": chosen.numpy(),
        "images": test.images.pixels[chosen].permute(0, 2, 3, 1).numpy(),
        **(more or {}),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_whole(path, buffer.getvalue())
