"""Nests depths in a module of the caller's own, and checks that they are what they should be."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from stepwell.nets.nested.net import NestedNet, NormSharing
from stepwell.nets.nested.reading import read
from stepwell.train_mode import in_eval_mode

#: Heights and widths tried, in this order, for images of unknown size.
SIZES = (32, 64, 224, 256, 384)


def nest(
    module: nn.Module,
    stages: Sequence[str],
    depths: Mapping[str, Sequence[int]],
    *,
    full: str = "full",
    norms: NormSharing = "private",
    input_size: Sequence[int] | None = None,
) -> NestedNet:
    """A nested net around `module`, whose weights it shares.

    Every depth runs on random input, in eval mode: the full path must equal the module bit by bit,
    each sub-net the path it was cut from, and all depths together each one alone.

    Args:
        module: the full net; one tensor in, logits (batch, classes) out. Where maps between its blocks
            are (batch, height, width, channels), `module.output_fmt = "NHWC"` says so to attention.
        stages: containers of blocks in the order they run, such as "layer1" or "stages.0.blocks";
            "features[2:4]" takes some children of one, "features[0:6:3]" three of them a block.
        depths: blocks per stage of each sub-net, by name; a sub-net keeps the first ones of a stage.
        full: the name of the full net's own depth.
        norms: "private" to each depth behind the fork, or "shared" (an ablation; see `NestedNet`).
        input_size: shape of one input, such as (3, 224, 224); tried out where it is not given.

    Raises:
        ValueError: a stage is not there; the module cannot be read, or has weights under two
            names; a depth drops blocks that change the shape; a path does not equal its network; or
            a block overwrites its input, which the other depths run on, without saying so by
            `inplace`.
    """
    _check_tied(module)
    net = NestedNet(module, read(module, stages), depths, full, norms=norms)
    with in_eval_mode(net), torch.no_grad():
        _check(net, _input_for(net, input_size))
    return net


def _check_tied(module: nn.Module) -> None:
    """Refuse weights under two names, which no file could hold once."""
    names: dict[int, str] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if first := names.get(id(value)):
            raise ValueError(
                f"{type(module).__name__} ties weights: {first!r} and {name!r} are one tensor, and a "
                "file holds each under one name: register it once"
            )
        names[id(value)] = name


def _check(net: NestedNet, x: Tensor) -> None:
    kind = type(net.module).__name__
    if not torch.equal(net(x), net.module(x)):
        raise ValueError(
            f"{kind} read as a path gives other logits than itself: its forward is not a function of "
            "its input alone (random or stateful in eval mode?)"
        )
    check_shapes(net, net.subnets, x)
    for depth in net.subnets:
        expected = net(x, depth)
        try:
            plain = net.subnet(depth)(x)
        except Exception as error:  # whatever the module's own code raises
            raise ValueError(
                f"{kind} without the blocks that depth {depth!r} drops does not run "
                f"({_line(error)}): its forward names blocks one by one"
            ) from error
        if not torch.equal(plain, expected):
            raise ValueError(
                f"{kind} without the blocks that depth {depth!r} drops differs from the path of "
                f"{depth!r}: its forward does more than run the blocks in order"
            )
    for depth, exit in net.forward_all(x).items():
        if not torch.equal(exit.logits, net(x, depth)):
            raise ValueError(
                f"depth {depth!r} of {kind} gives other logits when all depths run together: a step "
                "overwrites what the others run on, or keeps a state"
            )


def check_shapes(net: NestedNet, depths: Mapping[str, Sequence[int]], x: Tensor) -> None:
    """Refuse depths that drop blocks behind which the shape is another than before them.

    Args:
        depths: blocks per stage by name; whether `net` has them does not matter.
        x: a batch for the full net.

    Raises:
        ValueError: for the first such depth; the message says how many blocks to keep.
    """
    stages = list(_shapes(net, x))
    for depth, blocks in depths.items():
        for stage, kept, shapes in zip(net.plan.stages, blocks, stages, strict=False):
            if 1 <= kept <= len(shapes) and shapes[kept - 1] != shapes[-1]:
                least = shapes.index(shapes[-1]) + 1
                raise ValueError(
                    f"depth {depth!r} keeps {kept} of {len(shapes)} blocks of {stage}, but block "
                    f"{least} changes the shape from {shapes[least - 2]} to {shapes[least - 1]}: keep "
                    f"at least {least}, or let another stage begin with that block"
                )


def _shapes(net: NestedNet, x: Tensor) -> Iterator[list[tuple[int, ...]]]:
    """For each stage, the shape behind each block of the full net."""
    at = 0
    path = net.path()
    for steps, blocks in zip(net.plan.gaps, net.plan.blocks, strict=False):
        for step in path[at : at + len(steps)]:
            x = step(x)
        at += len(steps)
        shapes = []
        for block in blocks:
            for step in path[at : at + len(block)]:
                x = step(x)
            at += len(block)
            shapes.append(tuple(x.shape))
        yield shapes


def _input_for(net: NestedNet, size: Sequence[int] | None) -> Tensor:
    """Two random examples of a shape that the module takes."""
    kind, sizes = (
        type(net.module).__name__,
        [size] if size is not None else list(_sizes(net.module)),
    )
    problem = "its first layer is no Conv2d or Linear"
    for shape in sizes:
        x = _random(net, (2, *shape))
        try:
            net.module(x)
        except Exception as error:  # whatever the module's own code raises
            problem = _line(error)
        else:
            return x
    if size is not None:
        raise ValueError(f"{kind} does not run on input of shape {(2, *size)}: {problem}")
    raise ValueError(
        f"the shape of {kind}'s input could not be found ({problem}): give that of one example, "
        "such as input_size=(3, 224, 224)"
    )


def _sizes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    if isinstance(first, nn.Conv2d):
        yield from ((first.in_channels, size, size) for size in SIZES)
    elif first is not None:
        yield (first.in_features,)


def _random(net: NestedNet, shape: Sequence[int]) -> Tensor:
    """Normal random values that leave torch's own generator alone."""
    like = next(net.parameters())
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x.to(like.device, like.dtype)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
