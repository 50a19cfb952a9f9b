"""Networks: the nested net, the families it is made of, and its file."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from stepwell.nets.nested import Card, NestedNet, NormSharing, Plan
from stepwell.nets.resnet import BASIC, BOTTLENECK, CIFAR, CIFAR_PLAN, PLAN, CifarResNet, resnet

__all__ = [
    "BUILDERS",
    "TORCHVISION",
    "Builder",
    "Card",
    "NestedNet",
    "Plan",
    "build",
    "named_depths",
]


class Builder(NamedTuple):
    """A network by name: how to make it, how it reads as a path, and its family's usual depths."""

    make: Callable[..., nn.Module]
    plan: Plan
    full: str
    family: Mapping[str, tuple[int, ...]]


def _torchvision(name: str, block: type, family: Mapping[str, tuple[int, ...]]) -> Builder:
    return Builder(partial(resnet, block, family[name]), PLAN, name, family)


def _cifar(name: str) -> Builder:
    return Builder(partial(CifarResNet, CIFAR[name]), CIFAR_PLAN, name, CIFAR)


BUILDERS: dict[str, Builder] = {
    "resnet18": _torchvision("18", BasicBlock, BASIC),
    "resnet34": _torchvision("34", BasicBlock, BASIC),
    "resnet26": _torchvision("26", Bottleneck, BOTTLENECK),
    "resnet50": _torchvision("50", Bottleneck, BOTTLENECK),
    "resnet101": _torchvision("101", Bottleneck, BOTTLENECK),
    "resnet152": _torchvision("152", Bottleneck, BOTTLENECK),
    "resnet8": _cifar("8"),
    "resnet14": _cifar("14"),
    "resnet20": _cifar("20"),
    "resnet32": _cifar("32"),
    "resnet44": _cifar("44"),
    "resnet56": _cifar("56"),
    "resnet110": _cifar("110"),
}


#: The networks that are torchvision's own, and have its stem or a small one.
TORCHVISION = tuple(name for name, builder in BUILDERS.items() if builder.plan is PLAN)


def build(
    name: str,
    depths: Mapping[str, Sequence[int]] | Sequence[str] = (),
    *,
    norms: NormSharing = "private",
    **arguments: Any,
) -> NestedNet:
    """A nested net with fresh weights.

    Args:
        name: a key of `BUILDERS`, such as "resnet34".
        depths: the sub-nets: blocks per stage by name, `{"18": (2, 2, 2, 2)}`, or a list of names that
            the family knows, `["18"]`; a name of your own says its blocks, `["half=2,2,2,2"]`.
        norms: "private" to each depth behind the fork, or "shared" (an ablation; see `NestedNet`).
        arguments: for the builder, such as `num_classes=100` or `stem="small"`.

    Raises:
        ValueError: no such network, depth or argument.

    >>> build("resnet32", ["20", "26"], num_classes=10).depths
    {'20': (3, 3, 3), '26': (4, 4, 4), '32': (5, 5, 5)}
    """
    builder = _builder(name)
    depths = named_depths(name, depths)
    try:
        module = builder.make(**arguments)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    net = NestedNet(module, builder.plan, depths, builder.full, norms=norms)
    net.builder = (name, arguments)
    return net


def named_depths(
    name: str, depths: Mapping[str, Sequence[int]] | Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Blocks per stage of each depth, which a person names as for `build`.

    Raises:
        ValueError: no such network; the family knows no such depth, or one is named twice.
    """
    builder = _builder(name)
    if isinstance(depths, Mapping):
        return {depth: tuple(blocks) for depth, blocks in depths.items()}
    pairs = [_parse_depth(name, builder, depth) for depth in depths]
    names = [depth for depth, _ in pairs]
    if twice := [depth for depth in names if names.count(depth) > 1]:
        raise ValueError(f"depth {twice[0]!r} is named twice: drop one of them")
    return dict(pairs)


def _builder(name: str) -> Builder:
    if name not in BUILDERS:
        raise ValueError(f"no network {name!r}; there are {', '.join(BUILDERS)}")
    return BUILDERS[name]


def _parse_depth(net: str, builder: Builder, depth: str) -> tuple[str, tuple[int, ...]]:
    """A depth as a person types it: a name that the family knows, or NAME=BLOCKS,BLOCKS,..."""
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
