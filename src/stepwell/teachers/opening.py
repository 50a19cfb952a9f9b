"""Open a teacher by its name, and prepare it for some data."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from stepwell.nets import Card, NestedNet, build, is_network
from stepwell.nets.families.timm_models import PREFIX
from stepwell.nets.files.container import digest, network_file
from stepwell.nets.files.header import holds_weights_alone
from stepwell.nets.files.initial_weights import load_plain, start_pretrained
from stepwell.nets.files.nested import fingerprint, load
from stepwell.nets.files.onnx import OnnxNet, onnx_fingerprint
from stepwell.teachers.adapters import Ensemble, Normalisation, OfProbabilities, Renormalised, Resized
from stepwell.teachers.teacher import Frozen, Teacher, as_exit
from stepwell.types import probabilities_in

#: The forms of a teacher's name, for errors.
KINDS = (
    "a run directory, a file (.safetensors, .onnx), NETWORK=FILE for plain weights, or a network with "
    f"published weights (resnet18, {PREFIX}NAME)"
)


class Source(NamedTuple):
    """One opened teacher.

    name: as given by the user.
    teacher: normalised images to an exit.
    fingerprint: a hash of all that its outputs depend on: weights, depth, a given normalisation.
    classes: names in the order of its logits; empty if unknown.
    size: height and width of its training images; 0 if unknown.
    normalisation: of its images; None if unknown.
    net: the network whose `depth`, or full net, teaches; None for an ONNX file.
    module: the plain module of that depth; None for an ONNX file.
    file: its Stepwell file, if it has one.
    depth: the depth in `file` that teaches.
    depths: all depths, if the name does not choose one; the full net then teaches.
    weights: a hash of its weights only, the same for every depth.
    drawing: how its images are drawn, if they are no photographs.
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
    drawing: Mapping[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.name}@{self.depth}" if self.depths else self.name


class OpenTeacher:
    """One or more teachers (an ensemble), opened but not yet prepared for any data.

    ValueError if there is none, or two name different classes.
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
                    "members of an ensemble need the same classes in the same order"
                )

    @property
    def normalisation(self) -> Normalisation | None:
        """The normalisation of the first source that has one; images are converted for the others."""
        return next((s.normalisation for s in self.sources if s.normalisation), None)

    @property
    def fingerprint(self) -> str:
        """The fingerprints of all members in order."""
        return "+".join(source.fingerprint for source in self.sources)

    @property
    def module(self) -> nn.Module:
        """The teacher as a plain module, for its weights; ValueError for several, or an ONNX file."""
        return self._with_weights()[1]

    @property
    def nested(self) -> tuple[NestedNet, str]:
        """The teacher as a network with stages, and the depth that teaches; errors as for `module`."""
        net, _ = self._with_weights()
        return net, self.sources[0].depth or net.full

    def _with_weights(self) -> tuple[NestedNet, nn.Module]:
        names = ", ".join(source.name for source in self.sources)
        if len(self.sources) > 1:
            raise ValueError(f"an ensemble ({names}) has no weights of its own: name one teacher")
        net, module = self.sources[0].net, self.sources[0].module
        if net is None or module is None:
            raise ValueError(f"{names} has no weights to share: name a file of weights")
        return net, module

    def for_data(
        self,
        classes: tuple[str, ...] | None,
        images: Shaped[Tensor, "batch ..."],
        normalisation: Normalisation,
        *,
        resize: bool = False,
    ) -> nn.Module:
        """The teacher for images of this data, tested on a few of them.

        Possible mistakes raise warnings: a teacher that does not name its classes, images of another
        size than its training images, and probabilities in place of logits (their logarithm is taken).
        A single teacher gives features, named by its `stages`, if it has any.

        Args:
            classes: the data's classes; None if only features are compared.
            images: a few images, normalised; or texts as token ids.
            normalisation: of these and all later images.
            resize: scale images to each teacher's training size, if known.

        Raises:
            ValueError: a teacher has other classes, in number, names or order; it does not run on
                images of this size; its output is not (batch, classes) finite numbers.
        """
        ready = [_ready(source, classes, images, normalisation, resize) for source in self.sources]
        return ready[0] if len(ready) == 1 else Ensemble(ready)


def open_teacher(
    names: str | Sequence[str],
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> OpenTeacher:
    """Open a teacher by its name, or an ensemble by several names.

    Args:
        names: each is a run directory or a file of Stepwell (`PATH@DEPTH` for a sub-net), an ONNX file,
            `NETWORK=FILE` for plain weights under torchvision's or timm's names, or `timm/NAME` or the
            name of a torchvision network, with its published weights (a download).
        mean, std: the normalisation (per channel, of pixels scaled to [0, 1]) for teachers that record
            none, such as most ONNX files.

    Raises:
        ValueError: a name is none of these, or given twice; a file is damaged; a depth was never
            trained; `mean` without `std`, not three positive numbers, or needless because every teacher
            records its own; members of an ensemble have different classes.
        FileNotFoundError: there is no such file.
        ImportError: an ONNX file needs the extra `onnx`.
    """
    names = [names] if isinstance(names, str) else names
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"teacher {twice[0]} is named twice: name each member of an ensemble once")
    sources = [_open(name) for name in names]
    if mean is not None or std is not None:
        if mean is None or std is None or not len(mean) == len(std) == 3 or min(std) <= 0:
            raise ValueError(
                f"--teacher-mean {mean} --teacher-std {std}: give both, three numbers each (one per "
                "channel, of pixels scaled to [0, 1]), with std above 0"
            )
        given = (mean, std)
        if all(source.normalisation for source in sources):
            raise ValueError(
                f"{' and '.join(names)} records its own normalisation: drop --teacher-mean and "
                "--teacher-std"
            )
        mark = digest({"mean": given[0], "std": given[1]}, {})[:16]
        for i, source in enumerate(sources):
            if not source.normalisation:
                marked = f"{source.fingerprint}/{mark}"
                sources[i] = source._replace(normalisation=given, fingerprint=marked)
    return OpenTeacher(sources)


def _open(name: str) -> Source:
    network, equals, file = name.partition("=")
    whole, at, _ = network.partition("@")
    if is_network(whole) and not Path(name).exists():
        if equals and not file:
            raise ValueError(f"teacher {name}: name a file of weights behind the =")
        if equals:
            net, plain_card = load_plain(network, Path(file))
            return _source(name, net, f"{network}={fingerprint(Path(file))}", plain_card)
        if at and not Path(whole).exists():
            raise ValueError(f"teacher {name}: no weights of a depth alone are published: name {KINDS}")
        if not at:
            net = build(name)
            card = start_pretrained(net).card
            mark = digest({"network": name}, dict(net.module.state_dict()))[:16]
            return _source(name, net, mark, card)._replace(normalisation=(card.mean, card.std))
    path, depth = path_and_depth(name, KINDS)
    if path.suffix == ".onnx":
        if depth is not None:
            raise ValueError(f"{name}: an ONNX file has one depth; drop @{depth}")
        onnx = OnnxNet(path)
        return _source(str(path), onnx, onnx_fingerprint(path), onnx.card)
    return _stepwell(name, path, depth)


def path_and_depth(name: str, kinds: str) -> tuple[Path, str | None]:
    """The path of a teacher, and its depth in PATH@DEPTH; FileNotFoundError, which names `kinds`."""
    path, depth = Path(name), None
    if not path.exists() and "@" in name:
        before, _, depth = name.rpartition("@")
        path = Path(before)
    if not name or not path.exists():
        raise FileNotFoundError(f"no teacher {name!r}: name {kinds}")
    if depth == "":
        raise ValueError(f"teacher {name}: name a depth behind the @, or leave the @ out")
    return path, depth


def _stepwell(name: str, path: Path, depth: str | None) -> Source:
    file = network_file(path)
    if path.is_file() and holds_weights_alone(path):
        raise ValueError(
            f"teacher {path} holds weights only: add the network's name, NETWORK=FILE, such as "
            f"resnet18={path}"
        )
    try:
        net = load(file)
    except ValueError as error:
        if path.is_dir() or path.suffix == ".safetensors":
            raise
        raise ValueError(f"teacher {path} is not a network's file: name {KINDS}") from error
    depths = () if depth else tuple(net.depths)
    depth = depth or net.full
    net.require_ready(depth)
    source = _source(name, net, fingerprint(file), net.card, depth)
    source = source._replace(file=file, depth=depth, depths=depths)
    if depth == net.full:
        return source
    module = net.subnet(depth)
    # the file's fingerprint is the same before and after a depth is calibrated
    content = digest({}, dict(module.state_dict()))[:16]
    return source._replace(module=module, fingerprint=f"{source.weights}@{depth}:{content}")


def _source(
    name: str, net: NestedNet | OnnxNet, mark: str, card: Card | None, depth: str | None = None
) -> Source:
    """A source with the content of its card, unless the card still has its defaults."""
    source = Source(name, Frozen(net, copy=False, depth=depth), mark, weights=mark)
    if isinstance(net, NestedNet):
        source = source._replace(net=net, module=net.module)
    if card is None:
        return source
    normalisation = (card.mean, card.std)
    known = normalisation if card.classes or normalisation != (Card().mean, Card().std) else None
    return source._replace(
        classes=card.classes, size=card.size, normalisation=known, drawing=card.drawing
    )


def _ready(
    source: Source,
    classes: tuple[str, ...] | None,
    images: Tensor,
    normalisation: Normalisation,
    resize: bool,
) -> nn.Module:
    """Check a source's teacher, and adapt it to this data."""
    name, teacher = source.name, source.teacher
    size = images.shape[-1]
    if classes is not None and source.classes and source.classes != classes:
        raise ValueError(
            f"{_differ(name, source.classes, 'the data', classes)}; both need the same classes in the "
            f"same order{_head_first(source)}"
        )
    if source.normalisation is None:
        warnings.warn(
            f"{name} does not record how its images are normalised: it gets the student's images; set "
            "--teacher-mean and --teacher-std",
            stacklevel=4,
        )
    elif source.normalisation != normalisation:
        teacher = Renormalised(teacher, normalisation, source.normalisation)
    if source.size not in (0, size) and resize:
        teacher = Resized(teacher, source.size)
        scaled = f"images are scaled from {size} to {source.size} pixels for {name}"
        warnings.warn(scaled, stacklevel=4)
    elif source.size not in (0, size):
        warnings.warn(
            f"{name} was trained on images of {source.size} pixels and gets {size} here: "
            f"set --size {source.size} for both networks",
            stacklevel=4,
        )
    try:
        with torch.no_grad():
            output = as_exit(teacher(images)).logits
    except Exception as error:  # onnxruntime has its own kinds
        reason = re.sub(r"\s+", " ", str(error))[:200]
        if not images.is_floating_point():
            raise ValueError(
                f"teacher {name} does not run on texts of {size} tokens ({reason}): name another"
            ) from error
        raise ValueError(
            f"teacher {name} does not run on images of {size} pixels ({reason}): set --size to its "
            "training size"
        ) from error
    if classes is not None and (output.dim() != 2 or output.shape[1] != len(classes)):
        raise ValueError(
            f"teacher {name} has {output.shape[-1]} classes (its output is {tuple(output.shape)}), "
            f"the data has {len(classes)}: both need the same classes in the same order"
            f"{_head_first(source)}"
        )
    if not output.isfinite().all():
        raise ValueError(
            f"teacher {name} gives outputs that are not finite on images of the data: check its "
            "weights and normalisation"
        )
    if classes is None:
        assert isinstance(teacher, nn.Module)
        return teacher
    if not source.classes:
        warnings.warn(
            f"{name} does not name its classes: assuming the data's order for its {len(classes)} "
            f"({_some(classes)})",
            stacklevel=4,
        )
    if problem := probabilities_in(output, name):
        warnings.warn(f"{problem}: their logarithm is taken", stacklevel=4)
        teacher = OfProbabilities(teacher)
    assert isinstance(teacher, nn.Module)
    return teacher


def _head_first(source: Source) -> str:
    """The way to a teacher of these classes from plain or published weights; else nothing."""
    network, _, file = source.name.partition("=")
    if not is_network(network):
        return ""
    init = file or "pretrained"
    return (
        f". Train a head first: `stepwell train supervised --net {network} --init {init} ...`, and let "
        "that run teach; or `stepwell train distill --kl 0 --hint 1` teaches its features alone"
    )


def _differ(a: str, a_classes: tuple[str, ...], b: str, b_classes: tuple[str, ...]) -> str:
    if sorted(a_classes) == sorted(b_classes):
        at = next(i for i, (x, y) in enumerate(zip(a_classes, b_classes, strict=True)) if x != y)
        return (
            f"{a} and {b} have the same classes in another order (number {at} is {a_classes[at]!r} "
            f"and {b_classes[at]!r})"
        )
    only = [
        f"only the {which} has {_some([c for c in mine if c not in others])}"
        for which, mine, others in (("first", a_classes, b_classes), ("second", b_classes, a_classes))
        if set(mine) - set(others)
    ]
    numbers = f"{a} has {len(a_classes)} classes, {b} has {len(b_classes)}"
    return f"{numbers}, and they differ: {', '.join(only)}"


def _some(classes: Sequence[str]) -> str:
    return ", ".join(map(repr, classes[:3])) + ", ..." * (len(classes) > 3)
