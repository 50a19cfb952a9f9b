"""Build a network by its name, or by the name of a timm model."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torchvision.models.resnet import BasicBlock, Bottleneck

from stepwell.nets.families import convnext, densenet, mobilenet, resnet, vgg, vit
from stepwell.nets.families.builder import Builder
from stepwell.nets.families.timm_models import PREFIX, check_depths, timm_builder
from stepwell.nets.grafting.merging import with_adaptions
from stepwell.nets.nested.depth_names import blocks_of
from stepwell.nets.nested.net import NestedNet, NormSharing
from stepwell.nets.nested.reading import read
from stepwell.nets.nested.truncate import truncate
from stepwell.ranges import check_numbers


def _resnet(name: str, block: type, family: Mapping[str, tuple[int, ...]]) -> Builder:
    return Builder(
        partial(resnet.resnet, block, family[name]), resnet.STAGES, name, family, stems=True
    )


def _cifar(
    name: str,
    norm: Literal["batch", "layer"] = "batch",
    widths: tuple[int, int, int] = (16, 32, 64),
) -> Builder:
    make = partial(resnet.CifarResNet, resnet.CIFAR[name], norm=norm, widths=widths)
    return Builder(make, resnet.CIFAR_STAGES, name, resnet.CIFAR, size=32)


def _vgg(name: str) -> Builder:
    blocks = vgg.FAMILY[name]
    return Builder(partial(vgg.vgg_bn, blocks), vgg.stages(blocks), name, vgg.FAMILY, stems=True)


def _mobilenet(name: str) -> Builder:
    blocks = mobilenet.FAMILY[name]
    make = partial(mobilenet.mobilenet_v2, blocks)
    return Builder(make, mobilenet.stages(blocks), name, mobilenet.FAMILY, stems=True)


def _convnext(name: str) -> Builder:
    make = partial(convnext.convnext, convnext.FAMILY[name])
    return Builder(make, convnext.STAGES, name, convnext.FAMILY, stems=True)


BUILDERS: dict[str, Builder] = {
    "resnet18": _resnet("18", BasicBlock, resnet.BASIC),
    "resnet34": _resnet("34", BasicBlock, resnet.BASIC),
    "resnet26": _resnet("26", Bottleneck, resnet.BOTTLENECK),
    "resnet50": _resnet("50", Bottleneck, resnet.BOTTLENECK),
    "resnet101": _resnet("101", Bottleneck, resnet.BOTTLENECK),
    "resnet152": _resnet("152", Bottleneck, resnet.BOTTLENECK),
    "resnet8": _cifar("8"),
    "resnet14": _cifar("14"),
    "resnet20": _cifar("20"),
    "resnet32": _cifar("32"),
    "resnet44": _cifar("44"),
    "resnet56": _cifar("56"),
    "resnet110": _cifar("110"),
    "resnet8_ln": _cifar("8", "layer"),
    "resnet14_ln": _cifar("14", "layer"),
    "resnet20_ln": _cifar("20", "layer"),
    "resnet56_ln": _cifar("56", "layer"),
    "resnet8_slim": _cifar("8", widths=resnet.SLIM),
    "resnet14_slim": _cifar("14", widths=resnet.SLIM),
    "resnet20_slim": _cifar("20", widths=resnet.SLIM),
    "resnet14_slimmer": _cifar("14", widths=resnet.SLIMMER),
    "resnet20_slimmer": _cifar("20", widths=resnet.SLIMMER),
    "vgg13_bn": _vgg("13"),
    "vgg16_bn": _vgg("16"),
    "vgg19_bn": _vgg("19"),
    "densenet201": Builder(
        partial(densenet.DenseNet, densenet.FAMILY["201"]),
        densenet.STAGES,
        "201",
        densenet.FAMILY,
        stems=True,
    ),
    "mobilenet_v2": _mobilenet("17"),
    "convnext_tiny": _convnext("tiny"),
    "convnext_small": _convnext("small"),
    "vit_b_16": Builder(
        vit.vit_b, vit.STAGES, "12", vit.FAMILY, stems=True, size_argument="image_size"
    ),
}


def build(
    name: str,
    depths: Mapping[str, Sequence[int]] | Sequence[str] = (),
    *,
    norms: NormSharing = "private",
    stages: Sequence[str] | None = None,
    kept: Sequence[int] | None = None,
    adaptions: Mapping[str, Sequence[int]] | None = None,
    **arguments: Any,
) -> NestedNet:
    """A nested net with fresh weights.

    Args:
        name: a key of `BUILDERS`, such as "resnet34", or "timm/NAME" for a model of timm's.
        depths: the sub-nets: blocks per stage by name, `{"18": (2, 2, 2, 2)}`, or a list of names that
            the family knows, `["18"]`; a name of your own says its blocks, `["half=2,2,2,2"]`.
        norms: "private" to each depth behind the fork, or "shared" (an ablation; see `NestedNet`).
        stages: in place of the network's own stages, as for `nest`. A sub-net keeps the first blocks of
            each stage and every block outside. So `["blocks[0:8]", "blocks[8:12]"]` with
            `["late=4,4"]` drops the blocks 4 to 7 and keeps the last four. The family's names of
            depths do not apply.
        kept: number of first blocks of each stage that the full net itself has.
        adaptions: 1×1 convolutions behind some modules, which grafting leaves where no module can
            absorb them; by the module's name: channels, and whether these are the last axis (see
            `nets.grafting.merging`).
        arguments: for the builder, such as `num_classes=100` or `stem="small"`.

    Raises:
        ValueError: no such network, depth or argument.

    >>> build("resnet32", ["20", "26"], num_classes=10).depths
    {'20': (3, 3, 3), '26': (4, 4, 4), '32': (5, 5, 5)}
    """
    builder = builder_of(name)
    depths = named_depths(name, depths, stages)
    full, changes = builder.full, dict[str, Any]()
    if stages is not None:
        changes["stages"] = list(stages)
    stages = builder.stages if stages is None else tuple(stages)
    try:
        check_numbers({"num_classes": arguments.get("num_classes")}, flags=False)
        if name.startswith(PREFIX) and depths:
            check_depths(name.removeprefix(PREFIX), depths, stages, arguments)
        module = builder.make(**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    if kept is not None:
        module, stages = truncate(module, stages, kept)
        full = _depth_name(builder, kept)
        changes["kept"] = list(kept)
    if adaptions:
        module = with_adaptions(module, adaptions)
        changes["adaptions"] = adaptions
    net = NestedNet(module, read(module, stages), depths, full, norms=norms)
    net.builder = (name, arguments | changes)
    return net


def _depth_name(builder: Builder, blocks: Sequence[int]) -> str:
    """The family's name of a network of these blocks; without one, the blocks themselves."""
    known = (name for name, own in builder.family.items() if own == tuple(blocks))
    return next(known, "-".join(map(str, blocks)))


def named_depths(
    name: str,
    depths: Mapping[str, Sequence[int]] | Sequence[str],
    stages: Sequence[str] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Blocks per stage of each depth, which a person names as for `build`.

    Args:
        stages: in place of the network's own, as for `build`.

    Raises:
        ValueError: no such network; the family knows no such depth, or one is named twice; a depth by
            a family's name with stages other than the family's.
    """
    builder = builder_of(name)
    if stages is not None:  # whose blocks only the network itself tells
        builder = builder._replace(family={builder.full: (1,) * len(stages)}, stages=tuple(stages))
    if isinstance(depths, Mapping):
        most = builder.family[builder.full]
        return {depth: blocks_of(depth, blocks, most) for depth, blocks in depths.items()}
    pairs = [_parse_depth(name, builder, depth) for depth in depths]
    names = [depth for depth, _ in pairs]
    if twice := [depth for depth in names if names.count(depth) > 1]:
        raise ValueError(f"depth {twice[0]!r} is named twice: drop one of them")
    return dict(pairs)


def builder_of(name: str) -> Builder:
    """The builder of a network by name.

    Raises:
        ValueError: there is no such network.
    """
    if name.startswith(PREFIX):
        return timm_builder(name.removeprefix(PREFIX))
    if name not in BUILDERS:
        raise ValueError(f"no network {name!r}; there are {', '.join(BUILDERS)}, {PREFIX}NAME")
    return BUILDERS[name]


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
        raise ValueError(
            f"no depth {depth!r} in the family of {net}: it holds {', '.join(known) or 'no other'}; "
            f"or give the blocks of each stage yourself, such as {depth}={full}"
        )
    return depth, builder.family[depth]
