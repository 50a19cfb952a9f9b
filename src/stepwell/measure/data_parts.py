"""The images of a run, for its training and for measuring its network."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from stepwell.data import Augment, Batches, ImageSet, Splits, load_images
from stepwell.data.distill_data import DistillData
from stepwell.data.formats import differing, format_of
from stepwell.data.image_flags import Augmentation, Images, LabelledImages, part_of
from stepwell.files import read_json
from stepwell.flags import recorded
from stepwell.nets import NestedNet
from stepwell.nets.files.nested import load
from stepwell.teachers import OpenTeacher
from stepwell.teachers.adapters import Normalisation

#: Validation images that are enough to tell a share of decisions to about 0.03.
ENOUGH = 256


class Parts(NamedTuple):
    """The parts of a data set, sized and normalised for a network, in order.

    known: the network was certainly trained on this data.
    flip: a mirror image keeps its class.
    name, fingerprint: of the data.
    """

    train: Batches
    validation: Batches | None
    test: Batches
    known: bool = False
    flip: bool = True
    name: str = ""
    fingerprint: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """The record of the data in an evaluation; "own": the network was trained on it."""
        return {"name": self.name, "fingerprint": self.fingerprint, "own": self.known}


@dataclass(frozen=True, kw_only=True)
class RunImages(LabelledImages):
    """The images of a finished run, as its config.json records them.

    Attributes:
        data: a folder or a name; fingerprint: of its content.
    """

    data: str = ""
    fingerprint: str | None = None
    batch_size: int = 128
    val_fraction: float = 0.0
    seed: int = 0
    distill_data: DistillData = DistillData()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "RunImages":
        """Read them from the content of config.json; defaults where it says nothing."""
        arguments, data = config.get("arguments", {}), config.get("data", {})
        distill = {name: arguments[name] for name in ("augment", "mix") if name in arguments}
        distill |= arguments.get("distill_data", {})
        folder = {"unlabeled": Path(distill["unlabeled"])} if distill.get("unlabeled") else {}
        fields = {
            "fingerprint": data.get("fingerprint"),
            "size": arguments.get("size") or data.get("size"),
            "distill_data": recorded(DistillData, distill | folder),
        }
        return recorded(cls, arguments | fields)

    def changes(self, images: ImageSet, may_flip: bool) -> dict[str, Any]:
        """Give `augment` and `changes` of `Batches`; `may_flip`: a mirror image keeps its class."""
        return _changes(self.distill_data, self.flip, images, may_flip)


def in_random_order(train: Batches) -> Batches:
    """The images of a part without augmentation, in random order: folders are in that of classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training has told of a last batch of one image
        return Batches(
            train.images, train.batch_size, mean=train.mean, std=train.std, shuffle=True,
            seed=train.seed,
        )  # fmt: skip


def images_for_rates(train: Batches, validation: Batches | None) -> Batches:
    """Images, in random order, that set how often decisions of a network fall one way.

    They need no labels, so these are training images where there are few validation images (`ENOUGH`).
    """
    if validation is None or len(validation.images) < ENOUGH:
        return in_random_order(train)
    return in_random_order(validation)


def parts_for(
    net: NestedNet, data: str, fingerprint: str | None = None, val_fraction: float = 0.0,
    part: str | None = None, *, same: bool = False,
) -> Parts:  # fmt: skip
    """Read the parts of `data`, sized and normalised for `net`, with its training's validation part.

    On other or unknown data, only a validation part of the data's own is used. A part split off the
    training part could hold images that `net` was trained on.

    Args:
        fingerprint: of the data that `net` was trained on, if known.
        val_fraction: share of the training part held out in the training, if the data has no validation
            part; 0: none.
        part: of the training part that `net` was trained on, such as "1/2"; None: all of it.
        same: `data` must be the data that `net` was trained on.

    Raises:
        ValueError: the data has other classes than the network; or the data has changed, so its test
            part may hold training images.
    """
    card = net.card
    if not card.classes:
        raise ValueError("this network names no classes, so nothing can be measured: set net.card")
    splits = load_images(data, card.size, drawing=card.drawing)
    saw, noun = (format_of(drawing).NOUN for drawing in (card.drawing, splits.test.drawing))
    if saw != noun:
        raise ValueError(
            f"{data} holds {noun}s, and the network was trained on {saw}s: measure it on such data"
        )
    digest = data_fingerprint(splits)
    known = fingerprint == digest
    if same and not known:
        raise ValueError(
            f"{data} has changed since the network was trained on it, so its test part may hold "
            f"{noun}s of the training: name data to measure on with --data"
        )
    classes = splits.test.classes
    if classes != card.classes:
        differing = sorted(set(classes) ^ set(card.classes)) or ["their order"]
        raise ValueError(
            f"{data} has {len(classes)} classes, the network {len(card.classes)}, and they "
            f"differ, such as in {differing[0]!r}: measure on data with the network's classes"
        )
    train, validation = _set_aside(splits, val_fraction if known else 0.0, part if known else None)
    test = Batches(splits.test, 256, mean=card.mean, std=card.std)
    aside = test.with_images(validation) if validation else None
    return Parts(test.with_images(train), aside, test, known, splits.flip, splits.name, digest)


def parts_of(net: NestedNet, path: Path, config: Mapping[str, Any], data: str | None = None) -> Parts:
    """Read the parts of `data`, or of a run's own data, sized and normalised for its network.

    Args:
        path: of the run or the file, for messages.
        config: the run's config.json; empty for a file outside of a run.
        data: a folder or a name; None: the run's own.

    Raises:
        ValueError: as for `parts_for`; or neither `config` nor `data` is given.
    """
    if not config:
        if data is None:
            raise ValueError(f"{path} is not in a run directory, so say what to measure on with --data")
        return parts_for(net, data)
    run = RunImages.of(config)
    named = run.data if data is None else data
    same = data is None or Path(data).resolve() == Path(run.data).resolve()
    return parts_for(net, named, run.fingerprint, run.val_fraction, run.part, same=same)


def fitted(
    teacher: OpenTeacher, batches: Batches, *, resize: bool = False, logits: bool = True
) -> nn.Module:
    """Adapt a teacher to the images of `batches` by `OpenTeacher.for_data`, and try it on a few.

    `logits`: its logits are compared, so it must have the classes of the images. ValueError for a
    teacher whose pictures of networks are drawn otherwise.
    """
    for source in teacher.sources:
        saw, noun = (format_of(d).NOUN for d in (source.drawing, batches.images.drawing))
        if saw != noun and (source.drawing or source.file is not None):  # an ONNX file may not say
            raise ValueError(
                f"the teacher {source.name} saw {saw}s, and these are {noun}s: measure it on what it "
                "saw"
            )
        if not source.drawing:
            continue
        if name := differing(source.drawing, batches.images.drawing):
            value = source.drawing.get(name.replace("-", "_"))
            raise ValueError(
                f"the teacher {source.name} saw pictures with --{name} {value}, and these are drawn "
                "otherwise: give the same flags"
            )
    few = batches.images.subset(torch.arange(min(16, len(batches.images))))
    (images, _), *_ = batches.with_images(few)
    normalisation = (batches.mean, batches.std)
    classes = batches.images.classes if logits else None
    return teacher.for_data(classes, images, normalisation, resize=resize)


def batches_for(
    splits: Splits, images: Images, *, batch_size: int, val_fraction: float, seed: int,
    normalisation: Normalisation | None = None,
    choose: Callable[[ImageSet], ImageSet] | None = None, changes: Augmentation = Augmentation(),
) -> tuple[Batches, Batches | None]:  # fmt: skip
    """The shuffled, augmented training part, and the validation part: the data's own, or split off.

    Args:
        normalisation: mean and deviation of the pixels; by default those of the training part.
        choose: maps the training part to the images that replace it.
        changes: of the images, and images without labels that join them.
    """
    train, validation = _set_aside(splits, val_fraction, images.part)
    if choose is not None:
        train = choose(train)
    mean, std = normalisation or train.statistics()
    batches = Batches(
        train, batch_size, mean=mean, std=std,
        **_changes(changes, images.flip, train, splits.flip), shuffle=True, seed=seed,
        extra=changes.extra(train), balance=isinstance(images, LabelledImages) and images.balance,
    )  # fmt: skip
    return batches, batches.with_images(validation) if validation else None


def _changes(
    changes: Augmentation, flip: bool | None, images: ImageSet, may_flip: bool
) -> dict[str, Any]:
    mirrored = may_flip if flip is None else flip
    return {
        "augment": Augment.of(changes.augment, images.size, mirrored),
        "changes": changes.changes(len(images.classes)),
    }


def batches_of(run: Path) -> tuple[Batches, Batches]:
    """Read the training batches of a finished run, and its test images, as its network saw them.

    Images of a generator are not stored, so they are left out. ValueError if the data has changed.
    """
    images = RunImages.of(read_json(run / "config.json", "name a finished run"))
    card = load(run / "net.safetensors").card
    splits = load_images(images.data, images.size, drawing=card.drawing)
    if images.fingerprint != data_fingerprint(splits):
        raise ValueError(f"{images.data} has changed since {run} was trained on it")
    train, _ = batches_for(
        splits, images, batch_size=images.batch_size, val_fraction=images.val_fraction,
        seed=images.seed, normalisation=(card.mean, card.std), changes=images.distill_data,
    )  # fmt: skip
    return train, train.with_images(splits.test)


def _set_aside(
    splits: Splits, val_fraction: float, part: str | None
) -> tuple[ImageSet, ImageSet | None]:
    """Give the training part, or one `part` of it, and the validation part: own, or split off."""
    train = splits.train if part is None else splits.train.part(*part_of(part))
    if splits.validation is None and val_fraction:
        try:
            return train.split(val_fraction)
        except ValueError as error:
            raise ValueError(
                f"{splits.name} has no validation part: in its training part, {error}; add "
                f"{train.NOUN} or a val/ folder, or set --val-fraction 0"
            ) from error
    return train, splits.validation


def data_fingerprint(splits: Splits) -> str:
    """Identify the training and the test part by their content."""
    return f"{splits.train.fingerprint}/{splits.test.fingerprint}"
