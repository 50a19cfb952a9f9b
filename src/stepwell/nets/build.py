"""Build a network by its name, or by the name of a timm model."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from operator import le
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from stepwell.nets.adders.converting import NoAdderFormError, to_adder
from stepwell.nets.families import cnc, convnext, densenet, mobilenet, msdnet, resnet, vgg, vit
from stepwell.nets.families.builder import Builder, Stem
from stepwell.nets.families.encoders import encoder_builder, is_encoder
from stepwell.nets.families.glance import glance_builder, is_glance
from stepwell.nets.families.recurrent import is_recurrent, recurrent_builder
from stepwell.nets.families.timm_models import PREFIX, check_depths, timm_builder
from stepwell.nets.grafting.merging import with_adaptions
from stepwell.nets.nested.depth_names import blocks_of, check_depth, check_text
from stepwell.nets.nested.net import NestedNet, NormSharing
from stepwell.nets.nested.reading import read
from stepwell.nets.nested.truncate import truncate
from stepwell.nets.nested.widths import check_widths, width_name
from stepwell.ranges import check_choice, check_numbers

#: Begins the name of a network whose convolutions add, such as "adder/resnet20".
ADDER = "adder/"


def _stem(
    make: Callable[..., nn.Module],
    family: Mapping[str, tuple[int, ...]],
    stages: tuple[str, ...] | Callable[[Sequence[int]], tuple[str, ...]],
    name: str,
) -> Builder:
    """A builder with a choice of stems; `make` takes the blocks per stage of `name` in its family."""
    blocks = family[name]
    stages = stages(blocks) if callable(stages) else stages
    return Builder(partial(make, blocks), stages, name, family, stems=True)


def _cifar(name: str, **arguments: Any) -> Builder:
    make = partial(resnet.cifar_resnet, resnet.CIFAR[name], **arguments)
    return Builder(make, resnet.CIFAR_STAGES, name, resnet.CIFAR, size=32)


_basic, _bottleneck = (partial(resnet.resnet, block) for block in (BasicBlock, Bottleneck))
BUILDERS: dict[str, Builder] = {
    **{f"resnet{n}": _stem(_basic, resnet.BASIC, resnet.STAGES, n) for n in resnet.BASIC},
    **{
        f"resnet{n}": _stem(_bottleneck, resnet.BOTTLENECK, resnet.STAGES, n) for n in resnet.BOTTLENECK
    },
    **{f"resnet{n}": _cifar(n) for n in ("8", "14", "20", "32", "44", "56", "110")},
    **{f"resnet{n}_ln": _cifar(n, norm="layer") for n in ("8", "14", "20", "56")},
    **{f"resnet{n}_slim": _cifar(n, widths=resnet.SLIM) for n in ("8", "14", "20")},
    **{f"resnet{n}_slimmer": _cifar(n, widths=resnet.SLIMMER) for n in ("14", "20")},
    **{f"resnet{n}_s4": _cifar(n, stride=4) for n in ("8", "14", "20", "32")},
    **{f"vgg{n}_bn": _stem(vgg.vgg_bn, vgg.FAMILY, vgg.stages, n) for n in vgg.FAMILY},
    "densenet201": _stem(densenet.DenseNet, densenet.FAMILY, densenet.STAGES, "201"),
    "mobilenet_v2": _stem(mobilenet.mobilenet_v2, mobilenet.FAMILY, mobilenet.stages, "17"),
    **{
        f"convnext_{size}": _stem(convnext.convnext, convnext.FAMILY, convnext.STAGES, size)
        for size in convnext.FAMILY
    },
    **{
        f"msdnet{n}": Builder(
            partial(msdnet.MSDNet, layers), msdnet.stages_of(n), n, {n: (1,) * len(layers)}, size=32
        )
        for n, layers in msdnet.LAYERS.items()
    },
    **{
        name: Builder(make, cnc.STAGES, "2", cnc.FAMILY, size=cnc.SIZE, size_argument="image_size")
        for name, make in cnc.NETWORKS.items()
    },
    "vit_b_16": Builder(
        vit.vit_b, vit.STAGES, "12", vit.FAMILY, stems=True, size_argument="image_size"
    ),
    "vit6": Builder(vit.vit6, vit.STAGES, "6", vit.SMALL, size=32, size_argument="image_size"),
}


def build(
    name: str,
    depths: Mapping[str, Sequence[int]] | Sequence[str] = (),
    *,
    norms: NormSharing = "private",
    stages: Sequence[str] | None = None,
    kept: Sequence[int] | None = None,
    adaptions: Mapping[str, Sequence[int]] | None = None,
    multipliers: Sequence[float] | None = None,
    adder: bool | Mapping[str, Any] = False,
    **arguments: Any,
) -> NestedNet:
    """A nested net with fresh weights.

    Args:
        name: a key of `BUILDERS`, such as "resnet34"; "timm/NAME" for a model of timm's; "adder/NAME"
            for one of these with `adder=True`; a text encoder and its layers, such as "bert/6"; a
            recurrent network of texts and its width, such as "skip-gru/128"; or a ResNet that glances
            at an image, and how often, such as "glance-resnet20/4". "NAME@DEPTH" is a depth of one of
            the first three as a network of its own, such as "vit6@3" or "resnet34@2,2,2,2" (`kept`).
        depths: the sub-nets: blocks per stage by name, `{"18": (2, 2, 2, 2)}`, or a list of names that
            the family knows, `["18"]`; a new name gives its blocks, `["half=2,2,2,2"]`.
        norms: "private" to each depth behind the fork, or "shared" (an ablation; see `NestedNet`).
        stages: replace the network's own stages, as for `nest`. A sub-net keeps the first blocks of
            each stage and every block outside: `["blocks[0:8]", "blocks[8:12]"]` with `["late=4,4"]`
            drops the blocks 4 to 7 and keeps the last four. The family's names do not apply.
        kept: blocks per stage of the full net itself, the first ones.
        adaptions: 1×1 convolutions that grafting could not merge, as for `with_adaptions`.
        multipliers: widths of a slimmable ResNet, as shares of its channels: `(0.25, 0.5, 1)` gives
            the depths "0.25", "0.5" and "1", the full net.
        adder: turn the convolutions into adder layers, with these arguments of `to_adder` if they are
            no plain True.
        arguments: for the builder, such as `num_classes=100` or `stem="small"`.

    Raises:
        ValueError: no such network, depth or argument; a value of another type; depths or `adder` with
            `multipliers`; a width that gives no whole number of channels, or of a network that cannot
            be narrowed; a network that has no adder form (see `to_adder`).

    >>> build("resnet32", ["20", "26"], num_classes=10).depths
    {'20': (3, 3, 3), '26': (4, 4, 4), '32': (5, 5, 5)}
    """
    name, cut = _split_depth(name)
    builder = builder_of(name)
    if cut is not None and kept is not None:
        raise ValueError(f"{name}@... says which blocks it keeps: leave kept={kept!r} out")
    kept = kept if cut is None else cut
    _check_types(stages=stages, kept=kept, adaptions=adaptions, multipliers=multipliers, adder=adder)
    if name.startswith(ADDER):
        name, adder = name.removeprefix(ADDER), True if adder is False else adder
    depths = named_depths(name, depths, stages)
    full = builder.full if kept is None else _depth_name(builder, kept)
    changes: dict[str, Any] = {}
    if stages is not None:
        changes["stages"] = list(stages)
    stages = builder.stages if stages is None else tuple(stages)
    try:
        check_numbers({"num_classes": arguments.get("num_classes")}, flags=False)
        if builder.stems:
            check_choice("stem", arguments.get("stem", "small"), Stem)
        paths = depths | ({} if kept is None else {full: kept})
        if name.startswith(PREFIX) and paths:
            check_depths(name.removeprefix(PREFIX), paths, stages, arguments)
        module = builder.make(**arguments)
        if adder is not False:
            module = to_adder(module, **({} if adder is True else adder))
            changes["adder"] = adder if adder is True else dict(adder)
    except NoAdderFormError as error:
        raise ValueError(f"{name} has no adder form: {error.reason}") from error
    except TypeError as error:
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise ValueError(f"{name} has no option {unknown[1]!r}") from error
        raise ValueError(f"{name}: {error}") from error
    if kept is not None:
        module, stages = truncate(module, stages, kept)
        changes["kept"] = list(kept)
    if adaptions:
        module = with_adaptions(module, adaptions)
        changes["adaptions"] = adaptions
    if adder is not False and multipliers is not None:
        raise ValueError(f"{name}: networks of several widths have no adder form")
    if multipliers is not None:
        if arguments.get("gates"):
            raise ValueError(f"{name}: a network of several widths has no gates: leave one of them out")
        if depths:
            raise ValueError(f"{name}: a network of several widths has one depth: leave depths out")
        shares = check_widths(multipliers, module)
        full, changes["multipliers"] = width_name(shares[-1]), list(shares)
    net = NestedNet(module, read(module, stages), depths, full, norms=norms)
    for share in () if multipliers is None else shares[:-1]:
        net.add_width(width_name(share), share)
    net.builder = (name, arguments | changes)
    if builder.size_argument is not None:
        side = arguments.get(builder.size_argument, builder.size)
        net.input_size = (3, side, side)
    return net


#: Types of `build`'s arguments, and their words.
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "depths": ((Iterable,), "a list of names, or blocks by name"),
    "stages": ((Sequence,), "a list of the stages' names"),
    "kept": ((Sequence,), "the blocks of each stage"),
    "adaptions": ((Mapping,), "lists by name"),
    "multipliers": ((Sequence,), "a list of shares, such as (0.5, 1)"),
    "adder": ((bool, Mapping), "True, or arguments of `to_adder` by name"),
}


def _check_types(**arguments: Any) -> None:
    """Raise ValueError for an argument of another type; a text is no list of its letters."""
    for name, value in arguments.items():
        types, words = _TYPES[name]
        if value is None and name != "adder":
            continue
        if isinstance(value, str) or not isinstance(value, types):
            raise ValueError(f"{name}={value!r}: must be {words}")


def named_depths(
    name: str, depths: Mapping[str, Sequence[int]] | Sequence[str], stages: Sequence[str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Blocks per stage of each depth; arguments as for `build`.

    ValueError for an unknown network or depth, one that is named twice, or a family's name with other
    stages.
    """
    builder = builder_of(name)
    if isinstance(depths, str):  # whose letters are no depths
        raise ValueError(f"depths are a list of names, or blocks by name: [{depths!r}], not {depths!r}")
    _check_types(depths=depths)
    depths = depths if isinstance(depths, Mapping) else [*depths]
    for depth in depths:
        check_text(depth)
    if stages is not None:  # their numbers of blocks are not known here
        builder = builder._replace(family={builder.full: (1,) * len(stages)}, stages=tuple(stages))
    return _depths_of(name, builder, depths)


def further_depths(net: NestedNet, depths: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Blocks per stage of depths that a network is to hold, too; they are typed as for `build`.

    A network of a module of your own (`nest`) has no names of a family: its depths give their blocks.

    ValueError as for `named_depths` and `check_depth`.
    """
    if net.builder is None:
        builder = Builder(nn.Identity, net.stages, net.full, {net.full: net.depths[net.full]})
        added = _depths_of("this network", builder, depths)
    else:
        name, arguments = net.builder
        added = named_depths(name, depths, arguments.get("stages"))
    present = net.depths
    for depth, blocks in added.items():
        check_depth(depth, blocks, present, net.stages, net.depths[net.full])
        present[depth] = blocks
    return added


def _depths_of(
    name: str, builder: Builder, depths: Mapping[str, Sequence[int]] | Sequence[str]
) -> dict[str, tuple[int, ...]]:
    if isinstance(depths, Mapping):
        most = builder.family[builder.full]
        return {depth: blocks_of(depth, blocks, most) for depth, blocks in depths.items()}
    pairs = [_parse_depth(name, builder, depth) for depth in depths]
    names = [depth for depth, _ in pairs]
    if twice := [depth for depth in names if names.count(depth) > 1]:
        raise ValueError(f"depth {twice[0]!r} is named twice: drop one of them")
    return dict(pairs)


def usual_depths(name: str, stages: Sequence[str] = ()) -> tuple[str, ...]:
    """The depths of a network's family that hold about 60 % and 80 % of its blocks.

    ValueError if the family names no other depth, or has other `stages`.

    >>> usual_depths("resnet32"), usual_depths("resnet34")
    (('20', '26'), ('18',))
    """
    family, full = builder_of(name).family, builder_of(name).full
    blocks = {d: sum(counts) for d, counts in family.items() if sum(counts) < sum(family[full])}
    if not blocks or stages:
        half = ",".join(str(-(-b // 2)) for b in family[full])
        form = "NAME=BLOCKS,..., the blocks of each stage" if stages else f"half={half}"
        only = f"{name} has no depths by name" + " for other --stages" * bool(stages)
        if set(family[full]) == {1} and not stages:
            raise ValueError(f"{name} has one block in each stage, so no sub-net: name a deeper --net")
        raise ValueError(f"{only}: say which sub-nets to train, such as --depths {form}")
    shares = (0.6 * sum(family[full]), 0.8 * sum(family[full]))
    nearest = (min(blocks, key=lambda depth: abs(blocks[depth] - share)) for share in shares)
    return tuple(dict.fromkeys(nearest))


def name_of(made: tuple[str, Mapping[str, Any]] | None) -> str:
    """The name that makes a network, such as "adder/resnet20@14"; "network" for a module of your own.

    Args:
        made: the network's `builder`.

    Raises:
        ValueError: no network has this name.

    >>> name_of(build("resnet20@14", adder=True).builder)
    'adder/resnet20@14'
    """
    if made is None:
        return "network"
    name, arguments = made
    depth = ""
    if (kept := arguments.get("kept")) is not None:
        family = builder_of(name).family.items()
        known = (depth for depth, blocks in family if blocks == tuple(kept))
        depth = "@" + next(known, ",".join(map(str, kept)))
    return ADDER * ("adder" in arguments) + name + depth


def is_network(name: str) -> bool:
    """Check whether a text is a network's name, of those that images take."""
    name = name.removeprefix(ADDER)
    return name in BUILDERS or name.startswith(PREFIX)


def refuse_adders(name: str, noun: str) -> None:
    """Raise ValueError for the name of an adder network where `noun` takes none."""
    if name.startswith(ADDER):
        raise ValueError(f"{name}: {noun} have no adder form: name {name.removeprefix(ADDER)}")


def builder_of(name: str) -> Builder:
    """The builder of a network by name; ValueError if there is none.

    That of NAME@DEPTH names the depths that fit into DEPTH. It still makes the whole network, which
    `build` cuts.
    """
    if not isinstance(name, str):
        raise ValueError(f"a network's name is a text, such as 'resnet34', not {name!r}")
    whole, kept = _split_depth(name)
    if kept is not None:
        builder = builder_of(whole)
        family = {depth: blocks for depth, blocks in builder.family.items() if _fits(blocks, kept)}
        full = _depth_name(builder, kept)
        return builder._replace(full=full, family=family | {full: kept})
    given, name = name, name.removeprefix(ADDER)
    if name.startswith(PREFIX):
        return timm_builder(name.removeprefix(PREFIX))
    if is_encoder(name):
        return encoder_builder(name)
    if is_recurrent(name):
        return recurrent_builder(name)
    if is_glance(name):
        return glance_builder(name, builder_of)
    if name not in BUILDERS and name and Path(name).is_dir():
        raise ValueError(f"no network {name!r}: a folder is a text encoder, and --data holds no texts")
    if name not in BUILDERS:
        near = get_close_matches(name, BUILDERS, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"no network {given!r}: {hint}`stepwell list` names all; timm's are {PREFIX}NAME"
        )
    return BUILDERS[name]


def _split_depth(name: str) -> tuple[str, tuple[int, ...] | None]:
    """Split NAME@DEPTH into NAME and the blocks per stage of DEPTH; they are None without "@DEPTH".

    ValueError if the network has no such depth.
    """
    whole, at, depth = name.partition("@") if isinstance(name, str) else ("", "", "")
    if not at or not is_network(whole):
        return name, None
    builder = builder_of(whole)
    most = builder.family[builder.full]
    blocks = re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", depth)
    kept = tuple(map(int, depth.split(","))) if blocks else ()
    kept = builder.family.get(depth, kept)
    if not _fits(kept, most):
        fitting = (d for d, few in builder.family.items() if _fits(few, most))
        there = [f"{whole}@{d}" for d in fitting if d != builder.full]
        if len(most) > 1 and max(most) > 1:
            there.append(f"{whole}@BLOCKS (of each stage, at most {','.join(map(str, most))})")
        there = there or [f"{whole}, which has no shallower depth"]
        raise ValueError(
            f"no network {name!r}; there {'is' if len(there) == 1 else 'are'} {', '.join(there)}"
        )
    return whole, kept


def _fits(blocks: Sequence[int], most: Sequence[int]) -> bool:
    """Check that a depth has as many stages as another, and no more blocks in any of them."""
    return len(blocks) == len(most) and all(map(le, blocks, most))


def _depth_name(builder: Builder, kept: Sequence[int]) -> str:
    """The family's name of a depth; else its blocks per stage, such as "2-3-4-2"."""
    known = (depth for depth, blocks in builder.family.items() if blocks == tuple(kept))
    return next(known, "-".join(map(str, kept)))


def _parse_depth(net: str, builder: Builder, depth: str) -> tuple[str, tuple[int, ...]]:
    """The name and blocks of a depth typed as a family's name or as NAME=BLOCKS,BLOCKS,..."""
    name, equals, blocks = depth.partition("=")
    full = ",".join(str(b) for b in builder.family[builder.full])
    if equals:
        try:
            return name, tuple(int(b) for b in blocks.split(","))
        except ValueError:
            raise ValueError(
                f"depth {depth!r}: write the blocks of each stage as whole numbers, {name}={full}"
            ) from None
    if depth not in builder.family:
        whole = builder.family[builder.full]
        known = [d for d, b in builder.family.items() if sum(b) < sum(whole)]
        if not known:
            raise ValueError(
                f"{net} has no depth {depth!r} by name with these stages: give the blocks of each, "
                f"such as {depth}={full}"
            )
        hint = "" if is_encoder(net) else f"; or give the blocks of each stage, such as {depth}={full}"
        raise ValueError(
            f"no depth {depth!r} in the family of {net}: it holds {', '.join(known)}{hint}"
        )
    return depth, builder.family[depth]
