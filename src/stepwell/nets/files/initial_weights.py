"""Initial weights of a network from a file, or published by torchvision and timm."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import torchvision
from torch import Tensor

from stepwell.nets.build import build, builder_of, name_of
from stepwell.nets.card import Card
from stepwell.nets.decisions.deciding import from_plain
from stepwell.nets.families.timm_models import PREFIX
from stepwell.nets.files.header import card_of, read_file
from stepwell.nets.files.nested import BESIDE, assemble
from stepwell.nets.nested.net import NestedNet
from stepwell.types import not_finite

#: What to do about weights that do not fit.
MISFIT = ": give weights of this network, or name the network of these weights"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Start(NamedTuple):
    """The card of the initial weights, and the names of tensors that stayed fresh."""

    card: Card
    fresh: tuple[str, ...]


def initialise(net: NestedNet, path: str | Path, classes: tuple[str, ...] = ()) -> Start:
    """Start `net` from the weights of a run directory or a file.

    A Stepwell file fills the full net and, if both have private norms, those of every common sub-net.
    A network that is one depth (`NAME@DEPTH`) starts as that depth of the file, if it is ready there.
    Any other file (safetensors, or a `torch.save`d state dict) has torchvision's or timm's names and,
    presumably, the mean and std of the weights that timm publishes for this network, else ImageNet's.
    It fills the full net; each private norm starts as the full net's. A classifier of another size, or
    of other classes than `classes`, stays fresh. ValueError for a file that does not fit.
    """
    path = Path(path)
    header, tensors = read_file(path, plain_too=True)
    ours = dict(net.module.state_dict())
    card = _usual_card(net) if header is None else card_of(header)
    fresh = fill(net, tensors, _described(path, header), relabelled=differ(card.classes, classes))
    if header is None or "depths" not in header:  # plain weights, Stepwell's own among them
        return Start(card, fresh)
    tensors |= {k: ours[k] for k in fresh if "builder" not in header}
    heads = {exit: partial(deepcopy, head) for exit, head in net.exits.items()}
    theirs = assemble(header, tensors, path, lambda: deepcopy(net.module), heads)

    def known(depth: str) -> dict[str, Tensor]:
        return {k: v for k, v in theirs.subnet(depth).state_dict().items() if k not in fresh}

    same = [d for d, blocks in theirs.subnets.items() if blocks == _kept(net) and d not in theirs.exits]
    if same and theirs.status[same[0]] != "fresh":
        net.load_full(net.module.state_dict() | known(same[0]))
    if net.norm_sharing == theirs.norm_sharing == "private":
        for depth, blocks in net.subnets.items():
            if theirs.subnets.get(depth) == blocks:
                net.load_depth(depth, known(depth))
    return Start(card, fresh)


def _kept(net: NestedNet) -> tuple[int, ...] | None:
    """The blocks per stage that a network keeps of the one it is named after; None for all."""
    kept = None if net.builder is None else net.builder[1].get("kept")
    return None if kept is None else tuple(kept)


def _usual_card(net: NestedNet) -> Card:
    """The card for a file that holds weights alone: it has the mean and std of published weights."""
    name = net.builder[0] if net.builder is not None else ""
    if name.startswith(PREFIX):
        import timm

        if about := timm.get_pretrained_cfg(name.removeprefix(PREFIX)):
            return Card(mean=tuple(about.mean), std=tuple(about.std))
    return Card(mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _described(path: Path, header: Mapping[str, Any] | None) -> str:
    """A file in the words of an error message: its path, and the network that it says it holds."""
    if header is None or not isinstance(header.get("builder"), str):
        return str(path)
    kind = header.get("kind", "classifier")
    of = f" of kind {kind}" if kind != "classifier" else ""
    return f"{path} (a {name_of((header['builder'], header.get('arguments', {})))}{of})"


def load_plain(name: str, path: Path) -> tuple[NestedNet, Card | None]:
    """Build the network `name` with the weights, classes and stem of a plain file of weights.

    Gives the network in eval mode, and the card, if the file has one (as Stepwell's exports do).

    Raises:
        FileNotFoundError, ValueError: no such file or network; the file does not fit the network, fits
            it with either stem, or is one of Stepwell's own that needs no name.
    """
    header, tensors = read_file(path, plain_too=True)
    if header is not None and "depths" in header:
        raise ValueError(f"{path} says itself which network it holds: name it without {name}=")
    with torch.device("meta"):
        *_, last = build(name).module.state_dict()  # of the classifier
    arguments: dict[str, Any] = {"num_classes": len(tensors[last])} if last in tensors else {}
    card = None if header is None else card_of(header)
    builder = builder_of(name)
    if builder.size_argument is not None and card is not None and card.size:
        arguments[builder.size_argument] = card.size
    stems: list[dict[str, Any]] = [{"stem": "imagenet"}, {"stem": "small"}] if builder.stems else [{}]
    fitting = []
    for stem in stems:
        net = build(name, **arguments, **stem)
        try:
            fill(net, tensors, str(path), trained=True)
            fitting.append(net)
        except ValueError:
            if not fitting and stem is stems[-1]:
                raise
    net, *others = fitting
    if others:  # stems that differ in their stride alone
        raise ValueError(
            f"{path} fits {name} with either stem and does not say which: load it into "
            f"stepwell.build({name!r}, stem=...) with net.load_full, and stepwell.save that"
        )
    return net.eval(), card


def differ(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Check whether two classifiers that name their classes have different classes."""
    return bool(theirs and ours) and theirs != ours


def fill(
    net: NestedNet,
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    relabelled: bool = False,
    trained: bool = False,
) -> tuple[str, ...]:
    """Load the full net's `tensors`, except a classifier of another size; return the names left fresh.

    The classifier stays fresh, too, if it is `relabelled`: `tensors` has other classes. A network that
    is one depth takes the first blocks of the whole network's weights, unless it has to be `trained`.
    ValueError if they do not fit; the message begins with `source`.
    """
    ours = net.module.state_dict()
    here = f"this {name_of(net.builder)}"
    given = {k: v for k, v in tensors.items() if not k.startswith(("depths/", BESIDE))}
    stored = net.stored_names()
    given |= {k: given[stored[k]] for k in ours.keys() - given.keys() if stored[k] in given}  # tied
    given = from_plain(net.module, given)
    if not trained:
        given = _first_blocks(net, given)
    if differing := sorted(ours.keys() ^ given.keys()):
        wrapped = all(name.startswith("module.") for name in given)
        hint = "; all begin with 'module.': save model.module.state_dict()" if wrapped else ""
        raise ValueError(
            f"{source} does not fit {here}: {len(differing)} names differ, such as "
            f"{differing[0]!r}{hint or MISFIT}"
        )
    if wrong := not_finite(given):
        raise ValueError(f"{source}: {wrong} holds values that are not finite: name other weights")
    head = tuple(f"{name}." for name in net.plan.head)
    count = net.builder[1].get("num_classes") if net.builder is not None else None
    last = {k for k in ours if k.startswith(head) and ours[k].shape[:1] == (count,)}
    fresh = tuple(k for k in ours if ours[k].shape != given[k].shape or (relabelled and k in last))
    if unlike := [k for k in fresh if not k.startswith(head)]:
        raise ValueError(
            f"{source} does not fit {here}: {unlike[0]} is {tuple(given[unlike[0]].shape)} there "
            f"and {tuple(ours[unlike[0]].shape)} here{MISFIT}"
        )
    net.load_full(given | {k: _without_excess(ours[k]) for k in fresh})
    return fresh


def _first_blocks(net: NestedNet, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pick the weights of the first blocks, if `given` are weights of the whole network.

    Other weights, and those for a network that keeps all its blocks, are returned as they are.
    """
    kept = _kept(net)
    if net.builder is None or kept is None or given.keys() == net.module.state_dict().keys():
        return given
    name, arguments = net.builder
    with torch.device("meta"):
        whole = {k: v for k, v in arguments.items() if k not in ("kept", "adaptions", "multipliers")}
        other = build(name, {"kept": kept}, norms="shared", **whole)
    if given.keys() != other.module.state_dict().keys():
        return given
    return {ours: given[theirs] for ours, theirs in other.stored_names("kept").items()}


def _without_excess(weight: Tensor) -> Tensor:
    """Give a classifier's fresh weight the spread that `nn.Linear` draws, if it has over twice that.

    timm draws EfficientNets' by the number of outputs. On pretrained features, the logits of a few
    classes are then so large that the first epochs only make them smaller.
    """
    if weight.ndim < 2 or weight.numel() < 2:
        return weight
    usual = (3 * weight[0].numel()) ** -0.5  # of numbers drawn evenly from -1/√inputs to 1/√inputs
    spread = weight.std()
    return weight * (usual / spread) if spread > 2 * usual else weight


def start_pretrained(net: NestedNet, classes: tuple[str, ...] = ()) -> Start:
    """Fill `net` with the published weights of its library, which are downloaded once.

    A classifier of another size, or of other `classes`, stays fresh. Private norms start as the full
    net's. ValueError if no weights are published, they do not fit, or the download fails.
    """
    name, arguments = net.builder if net.builder is not None else ("this network", {})
    if arguments.get("adder"):
        raise ValueError("no weights of adder networks are published: give a file of weights instead")
    try:
        state, card = _timm(name) if name.startswith(PREFIX) else _torchvision(name)
    except OSError as error:
        raise ValueError(
            f"the weights of {name} could not be downloaded ({error}): give a file of weights instead"
        ) from error
    source = f"the published weights of {name}"
    return Start(card, fill(net, state, source, relabelled=differ(card.classes, classes)))


def is_published(name: str) -> bool:
    """Check whether torchvision or timm publish weights of a network."""
    if name.startswith(PREFIX):
        import timm

        return bool(timm.is_model_pretrained(name.removeprefix(PREFIX)))
    return name in torchvision.models.list_models()


def _torchvision(name: str) -> tuple[dict[str, Tensor], Card]:
    if name not in torchvision.models.list_models():
        raise ValueError(f"torchvision publishes no weights for {name}: give a file of weights instead")
    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    state = weights.get_state_dict(progress=False, check_hash=True)
    classes = tuple(weights.meta["categories"])
    return dict(state), Card(classes, mean=tuple(preset.mean), std=tuple(preset.std))


def _timm(name: str) -> tuple[dict[str, Tensor], Card]:
    import timm

    name = name.removeprefix(PREFIX)
    if not timm.is_model_pretrained(name):
        raise ValueError(f"timm publishes no weights for {name}: give a file of weights instead")
    with _no_retries_without_network():
        model: Any = timm.create_model(name, pretrained=True)
    about = model.pretrained_cfg
    return model.state_dict(), Card(mean=tuple(about["mean"]), std=tuple(about["std"]))


@contextmanager
def _no_retries_without_network() -> Iterator[None]:
    """Let the download library read its cache alone without network; it would retry for a minute."""
    from huggingface_hub import constants

    server, offline = urlsplit(constants.ENDPOINT), constants.HF_HUB_OFFLINE
    if not offline and not getproxies():
        try:
            socket.create_connection((server.hostname or "", server.port or 443), timeout=10).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
