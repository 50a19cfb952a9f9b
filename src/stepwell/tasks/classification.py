"""The task of classifying images: how a run opens its data and its network."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from stepwell.data import Batches, ImageSet, Splits, load_images
from stepwell.data.decoding import DIFFERENT
from stepwell.data.folders import check_outside
from stepwell.data.formats import Drawing, format_of
from stepwell.data.image_flags import Augmentation, Images
from stepwell.data.pictures.flags import Pictures
from stepwell.data.text_files import TextFiles, holds_texts
from stepwell.files import check_folder, config_of
from stepwell.measure.data_parts import batches_for, data_fingerprint, fitted
from stepwell.nets import NestedNet, build, builder_of
from stepwell.nets.files.initial_weights import Start, initialise, start_pretrained
from stepwell.nets.files.nested import fingerprint
from stepwell.nets.nested.input_size import check_size
from stepwell.nets.nested.net import NormSharing
from stepwell.tasks import measuring, networks
from stepwell.tasks.measuring import validator as validator
from stepwell.tasks.task import SMALL, Inputs, Task, check_patience
from stepwell.tasks.task import open_task as open_task
from stepwell.teachers import OpenTeacher
from stepwell.training.optimisation import Optimisation

Training = TypeVar("Training", bound=Optimisation)

#: How a training ends on images of a format, by its name; on photographs as `measuring.finish`.
ENDS = {"network": networks.finish}
#: Length and batches of a training on images, where the caller does not set them.
USUAL: dict[str, Any] = {"epochs": 40, "batch_size": 128, "optimizer": "sgd"}


def name_of(net: str) -> str:
    """The name of the network that --net names, which is itself."""
    return net


def settled(training: Training) -> Training:
    """The training with the usual settings of images where the caller set none."""
    return training.settled(**USUAL)


def read_splits(
    data: str, out: Path, images: Images, net: str | None = None, texts: TextFiles = TextFiles(),
    pictures: Drawing = Pictures(), *, drawn: bool = False,
) -> Splits:  # fmt: skip
    """The images of `data`, at the size that `images` names, or their own, or the usual one of `net`.

    ValueError if `out` lies in `data` or cannot be made, if `data` holds texts or a flag of texts was
    set, or if a flag of pictures was set and `data` holds no networks.

    drawn: the recipe takes only what `pictures` draws, and no photographs.
    """
    if not (drawn and Path(data).is_file()):  # a table may hold edges, and no file is a data set
        refuse_texts(data, takes=format_of(pictures.record if drawn else {}).NOUN)
    for one in fields(texts):
        if getattr(texts, one.name) != getattr(TextFiles(), one.name):
            name = one.name.replace("_", "-")
            raise ValueError(
                f"--{name} is for texts, and --data {data} is no .tsv file and no folder with "
                "train.tsv: leave it out, or name texts"
            )
    check_outside(data, out)
    check_folder("--out", out)
    usual = DIFFERENT if net is None else builder_of(net).size
    size = images.size or size_of_run(out, data)
    splits = load_images(data, size, usual, drawing=pictures.record, drawn=drawn)
    if not splits.train.drawing and (flag := pictures.changed):
        raise ValueError(
            f"--{flag} is for complex networks, and --data {data} holds none: leave it out"
        )
    for note in splits.notes:
        warnings.warn(note, stacklevel=3)
    return splits


def refuse_texts(
    data: str, instead: str = "texts are for train ekd, supervised, exits, sequences and bert",
    *, takes: str = "image",
) -> None:  # fmt: skip
    """Raise ValueError for data of texts, which says what to do `instead`."""
    if holds_texts(data):
        raise ValueError(f"--data {data} holds texts, and this recipe takes {takes}s only: {instead}")


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


def finish(task: Task[Batches], net: NestedNet, *more: Any, **options: Any) -> dict[str, Any]:
    """Measure the trained `net` and write the run's results; args as for `measuring.finish`.

    Where nothing else measures the network, images of some formats are explained, too.
    """
    drawn_as = task.train.images.drawing.get("format", "")
    end = measuring.finish if "measure" in options else ENDS.get(drawn_as, measuring.finish)
    results: dict[str, Any] = end(task, net, *more, **options)
    return results


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
