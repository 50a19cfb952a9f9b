"""What a user can name as a teacher, opened, and made ready for some data."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepwell.nets import BUILDERS, Card, NestedNet, build
from stepwell.nets.families.timm_models import PREFIX
from stepwell.nets.files.container import digest
from stepwell.nets.files.nested import fingerprint, holds_weights_alone, load, load_plain
from stepwell.nets.files.onnx import OnnxNet, onnx_fingerprint
from stepwell.nets.files.pretrained import start_pretrained
from stepwell.teachers.adapters import (
    Ensemble,
    Normalisation,
    OfProbabilities,
    Renormalised,
    Resized,
)
from stepwell.teachers.teacher import Frozen, Teacher, as_exit
from stepwell.types import probabilities_in

#: What can be named as a teacher, in an error.
KINDS = (
    "a run directory, a file (.safetensors, .onnx), NETWORK=FILE for plain weights, or a network with "
    f"published weights (resnet18, {PREFIX}NAME)"
)


class Source(NamedTuple):
    """One teacher as it was opened.

    name: as the user named it.
    teacher: normalised images to an exit.
    fingerprint: of all that its answers depend on: weights, depth, and a normalisation given for it.
    classes: names in the order of its logits; empty where it does not say.
    size: height and width of the images it was trained on; 0 where it does not say.
    normalisation: of its images; none where it does not say.
    net: the network whose `depth`, or full net, teaches; none of an ONNX file.
    module: the plain module behind `teacher`; none of an ONNX file, which has no weights to share.
    file: if it is one of Stepwell's; depth: which of its depths teaches.
    depths: all of them, where the name leaves the choice; the full one is chosen then.
    weights: a hash of its weights alone, whichever depth teaches.
    """

    name: str
    teacher: Teacher
    fingerprint: str
    classes: tuple[str, ...] = ()
    size: int = 0
    normalisation: Normalisation | None = None
    net: NestedNet | None = None
    module: nn.Module | None = None
    file: Path | None = None
    depth: str = ""
    depths: tuple[str, ...] = ()
    weights: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.depth}" if self.depths else self.name


class OpenTeacher:
    """One teacher, or several that teach as an ensemble, opened and not yet fitted to any data.

    Args:
        sources: at least one.

    Raises:
        ValueError: there is none; two that name their classes do not agree on them.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("name a teacher, or several for an ensemble")
        self.sources = tuple(sources)
        known = [s for s in sources if s.classes]
        for other in known[1:]:
            if other.classes != known[0].classes:
                raise ValueError(
                    f"{_differ(known[0].name, known[0].classes, other.name, other.classes)}; the "
                    "members of an ensemble need the same, in order"
                )

    @property
    def normalisation(self) -> Normalisation | None:
        """Of the first that says it; the others' images are converted."""
        return next((s.normalisation for s in self.sources if s.normalisation), None)

    @property
    def fingerprint(self) -> str:
        """Of all members, in order."""
        return "+".join(source.fingerprint for source in self.sources)

    @property
    def module(self) -> nn.Module:
        """The one teacher as a plain module, for what needs its weights.

        Raises:
            ValueError: there are several, or it is an ONNX file.
        """
        return self._with_weights()[1]

    @property
    def nested(self) -> tuple[NestedNet, str]:
        """The one teacher as a network with stages, and which of its depths teaches.

        Raises:
            ValueError: as for `module`.
        """
        net, _ = self._with_weights()
        return net, self.sources[0].depth or net.full

    def _with_weights(self) -> tuple[NestedNet, nn.Module]:
        names = ", ".join(source.name for source in self.sources)
        if len(self.sources) > 1:
            raise ValueError(f"an ensemble ({names}) has no weights of its own: name one teacher")
        net, module = self.sources[0].net, self.sources[0].module
        if net is None or module is None:
            raise ValueError(f"{names} gives no weights: name a file of weights")
        return net, module

    def for_data(
        self,
        classes: tuple[str, ...],
        images: Tensor,
        normalisation: Normalisation,
        *,
        resize: bool = False,
    ) -> nn.Module:
        """The teacher for images of this data, tried out on some of them.

        What is merely likely is warned of: classes in an order that a teacher does not say, images of
        another size than it was trained on, and probabilities where logits should be, of which the
        logarithm is taken.

        Args:
            classes: the data's.
            images: a few, normalised.
            normalisation: theirs, and of all that will come.
            resize: scale images to the size that each teacher was trained on, where it says one; by
                default all get them as they are.

        Returns:
            Images to an `Exit` without gradients; with features, named by its `stages`, if there is one
            teacher that has them.

        Raises:
            ValueError: a teacher knows other classes, in number, names or order; it does not run on
                images of this size, or gives something else than (batch, classes) finite numbers.
        """
        ready = [_ready(source, classes, images, normalisation, resize) for source in self.sources]
        return ready[0] if len(ready) == 1 else Ensemble(ready)


def open_teacher(
    names: str | Sequence[str],
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> OpenTeacher:
    """Open what a user names as teacher.

    Args:
        names: one, or several for an ensemble: a run directory or a file of Stepwell's (`PATH@DEPTH`
            for another depth than the deepest), an ONNX file, `NETWORK=FILE` for plain weights under
            torchvision's or timm's names, or `timm/NAME` or a network of torchvision's by name, with
            the weights that are published for it (a download).
        mean, std: per channel, of pixels scaled to [0, 1]: how to normalise images for those that do
            not say it, such as most ONNX files.

    Raises:
        ValueError: a name that is none of these, or given twice; a file that is damaged; a depth that
            nobody trained; `mean` without `std`, not of three positive numbers, or where every teacher
            says its own; members of an ensemble whose classes differ.
        FileNotFoundError: there is no such file.
        ImportError: an ONNX file, and the extra `onnx` is not installed.
    """
    names = [names] if isinstance(names, str) else names
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"teacher {twice[0]} is named twice: name each member of an ensemble once")
    sources = [_open(name) for name in names]
    if mean is not None or std is not None:
        given = _normalisation(mean, std)
        if all(source.normalisation for source in sources):
            raise ValueError(
                f"{' and '.join(names)} says how its images are normalised: drop --teacher-mean and "
                "--teacher-std"
            )
        mark = digest({"mean": given[0], "std": given[1]}, {})[:16]
        sources = [
            source
            if source.normalisation
            else source._replace(normalisation=given, fingerprint=f"{source.fingerprint}/{mark}")
            for source in sources
        ]
    return OpenTeacher(sources)


def _open(name: str) -> Source:
    by_name = name in BUILDERS or (name.startswith(PREFIX) and "=" not in name)
    if by_name and not Path(name).exists():
        return _published(name)
    path, depth = Path(name), None
    network, _, file = name.partition("=")
    if not path.exists() and (network in BUILDERS or network.startswith(PREFIX)):
        return _plain(name, network, Path(file))
    if not path.exists() and "@" in name:
        before, _, depth = name.rpartition("@")
        path = Path(before)
    if not name or not path.exists():
        raise FileNotFoundError(f"no teacher {name!r}: name {KINDS}")
    if path.suffix == ".onnx":
        if depth is not None:
            raise ValueError(f"{name}: an ONNX file has one depth; name it without @{depth}")
        return _onnx(path)
    return _stepwell(name, path, depth)


def _stepwell(name: str, path: Path, depth: str | None) -> Source:
    file = path / "net.safetensors" if path.is_dir() else path
    if not file.exists() and (path / "config.json").exists():
        raise ValueError(
            f"teacher {path} holds no net.safetensors: it is no finished run. Start its `stepwell "
            "train` command again to finish it"
        )
    if not file.exists():
        raise ValueError(f"teacher {path} is a folder without a run in it: name {KINDS}")
    if path.is_file() and holds_weights_alone(path):
        raise ValueError(
            f"teacher {path} holds weights only: say which network they are of, NETWORK=FILE, such as "
            f"resnet18={path}"
        )
    try:
        net = load(file)
    except ValueError as error:
        if path.is_dir() or path.suffix == ".safetensors":
            raise
        raise ValueError(f"teacher {path} is no file of a network: name {KINDS}") from error
    depths = () if depth else tuple(net.depths)
    depth = depth or net.full
    net.require_ready(depth)
    weights = mark = fingerprint(file)
    module: nn.Module = net.module
    if depth != net.full:
        module = net.subnet(depth)
        # that of the file is the same before and after a depth is calibrated
        own = digest({}, dict(module.state_dict()))[:16]
        mark = f"{weights}@{depth}:{own}"
    source = _source(name, Frozen(net, copy=False, depth=depth), mark, net.card)
    return source._replace(
        weights=weights, net=net, module=module, file=file, depth=depth, depths=depths
    )


def _onnx(path: Path) -> Source:
    net = OnnxNet(path)
    return _source(str(path), Frozen(net, copy=False), onnx_fingerprint(path), net.card)


def _plain(name: str, network: str, path: Path) -> Source:
    net, card = load_plain(network, path)
    source = _source(name, Frozen(net, copy=False), f"{network}={fingerprint(path)}", card)
    return source._replace(net=net, module=net.module)


def _published(name: str) -> Source:
    net = build(name)
    card = start_pretrained(net).card
    mark = digest({"network": name}, dict(net.module.state_dict()))[:16]
    source = _source(name, Frozen(net, copy=False), mark, card)
    return source._replace(net=net, module=net.module, normalisation=(card.mean, card.std))


def _source(name: str, teacher: Teacher, mark: str, card: Card | None) -> Source:
    """A source with what its card says, if it has one that somebody filled in."""
    source = Source(name, teacher, mark, weights=mark)
    if card is None:
        return source
    own = (card.mean, card.std)
    # what a card begins with is nobody's word
    said = card.classes or own != (Card().mean, Card().std)
    return source._replace(
        classes=card.classes, size=card.size, normalisation=own if said else None
    )


def _normalisation(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Normalisation:
    if mean is None or std is None or not len(mean) == len(std) == 3 or min(std) <= 0:
        raise ValueError(
            f"--teacher-mean {mean} --teacher-std {std}: give both, a number for each of three "
            "channels, of pixels scaled to [0, 1]; no std is 0"
        )
    return mean, std


def _ready(
    source: Source,
    classes: tuple[str, ...],
    images: Tensor,
    normalisation: Normalisation,
    resize: bool,
) -> nn.Module:
    """A source's teacher for this data, checked."""
    name, teacher = source.name, source.teacher
    size = images.shape[-1]
    if source.classes and source.classes != classes:
        raise ValueError(
            f"{_differ(name, source.classes, 'the data', classes)}; they must be the same, in order"
        )
    if source.normalisation is None:
        warnings.warn(
            f"{name} does not say how its images are normalised: it gets them as the student does; "
            "--teacher-mean and --teacher-std say it",
            stacklevel=4,
        )
    elif source.normalisation != normalisation:
        teacher = Renormalised(teacher, normalisation, source.normalisation)
    if source.size not in (0, size) and resize:
        teacher = Resized(teacher, source.size)
        warnings.warn(
            f"images are scaled from {size} to {source.size} pixels for {name}", stacklevel=4
        )
    elif source.size not in (0, size):
        warnings.warn(
            f"{name} was trained on images of {source.size} pixels and gets {size} here: "
            f"--size {source.size} gives both networks its own",
            stacklevel=4,
        )
    try:
        with torch.no_grad():
            output = as_exit(teacher(images)).logits
    except Exception as error:  # onnxruntime has its own kinds
        reason = re.sub(r"\s+", " ", str(error))
        raise ValueError(
            f"teacher {name} does not run on images of {size} pixels ({reason[:200]}): use the --size "
            "that it was trained on"
        ) from error
    if output.dim() != 2 or output.shape[1] != len(classes):
        raise ValueError(
            f"teacher {name} knows {output.shape[-1]} classes (its output is {tuple(output.shape)}), "
            f"the data has {len(classes)}: they must be the same, in order"
        )
    if not output.isfinite().all():
        raise ValueError(f"teacher {name} gives outputs that are not finite on images of the data")
    if not source.classes:
        warnings.warn(
            f"{name} does not name its classes: that its {len(classes)} stand in the data's order "
            f"({_some(classes)}) is taken on trust",
            stacklevel=4,
        )
    if problem := probabilities_in(output, name):
        warnings.warn(f"{problem}: their logarithm is taken", stacklevel=4)
        teacher = OfProbabilities(teacher)
    assert isinstance(teacher, nn.Module)
    return teacher


def _differ(a: str, a_classes: tuple[str, ...], b: str, b_classes: tuple[str, ...]) -> str:
    """In what two lists of classes differ."""
    if sorted(a_classes) == sorted(b_classes):
        at = next(i for i, (x, y) in enumerate(zip(a_classes, b_classes, strict=True)) if x != y)
        return (
            f"{a} and {b} have the same classes in another order (number {at} is {a_classes[at]!r} "
            f"and {b_classes[at]!r})"
        )
    only = [
        f"only {which} has {_some([c for c in mine if c not in others])}"
        for which, mine, others in (
            ("the first", a_classes, b_classes),
            ("the second", b_classes, a_classes),
        )
        if set(mine) - set(others)
    ]
    return (
        f"{a} knows {len(a_classes)} classes, {b} has {len(b_classes)}, and they differ: "
        f"{', '.join(only)}"
    )


def _some(classes: Sequence[str]) -> str:
    return ", ".join(map(repr, classes[:3])) + ", ..." * (len(classes) > 3)
