"""Make a nested net of a module of the caller's own, and check every depth."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepwell.nets.nested.example import example_input, line_of, outputs_by_block
from stepwell.nets.nested.net import NestedNet, NormSharing
from stepwell.nets.nested.reading import read
from stepwell.nets.nested.steps import Value
from stepwell.train_mode import in_eval_mode


def nest(
    module: nn.Module,
    stages: Sequence[str],
    depths: Mapping[str, Sequence[int]],
    *,
    full: str = "full",
    norms: NormSharing = "private",
    input_size: Sequence[int] | None = None,
    given: Mapping[str, Any] | None = None,
) -> NestedNet:
    """Make a nested net around `module`; the two share their weights.

    Every depth runs on random input, in eval mode: the full path must equal the module bit by bit,
    each sub-net the path it was cut from, and all depths together each one alone.

    Args:
        module: the full net; one tensor in, logits (batch, classes) out. Further arguments of its
            forward need a default of None (see `NestedNet.forward`, `given`). Where maps between its
            blocks are (batch, height, width, channels), set `module.output_fmt = "NHWC"`. Tied
            parameters stay tied; a file holds them once.
        stages: containers of blocks in the order they run, such as "layer1" or "stages.0.blocks";
            "features[2:4]" takes some children of one, "features[0:6:3]" three of them a block.
        depths: blocks per stage of each sub-net, by name; a sub-net keeps the first ones of a stage.
        full: the name of the full net's own depth.
        norms: "private" to each depth behind the fork, or "shared" (an ablation; see `NestedNet`).
        input_size: shape of one input, such as (3, 224, 224), or (16,) for 16 token ids; tried out
            where it is not given.
        given: constants for a batch of two inputs, such as a mask, for the same checks with them. Give
            some if the module's forward takes constants: code that uses one outside of the steps that
            name it is not part of any path.

    Raises:
        ValueError: a stage is not there; the module cannot be read; a depth drops blocks that change
            the shape; a path does not equal its network; or a block overwrites its input, which the
            other depths run on, without an attribute `inplace`.
    """
    net = NestedNet(module, read(module, stages), depths, full, norms=norms)
    with in_eval_mode(net), torch.no_grad():
        net.input_size = input_size
        x = example_input(module, input_size)
        _check(net, x, {})
        if given:
            _check(net, x, given)
    return net


def _check(net: NestedNet, x: Tensor, given: Mapping[str, Any]) -> None:
    kind = type(net.module).__name__
    if not torch.equal(net(x, given=given), net.module(x, **given)):
        reason = (
            f"it uses {', '.join(given)} outside of the steps that name them"
            if given
            else "its forward is not a function of its input alone (random or stateful in eval mode?)"
        )
        raise ValueError(f"{kind} read as a path gives other logits than itself: {reason}")
    check_shapes(net, net.subnets, x)
    for depth in net.subnets:
        expected = net(x, depth, given=given)
        try:
            plain = net.subnet(depth)(x, **given)
        except Exception as error:  # whatever the module's own code raises
            raise ValueError(
                f"{kind} without the blocks that depth {depth!r} drops does not run "
                f"({line_of(error)}): its forward names blocks one by one"
            ) from error
        if not torch.equal(plain, expected):
            raise ValueError(
                f"{kind} without the blocks that depth {depth!r} drops differs from the path of "
                f"{depth!r}: its forward does more than run the blocks in order"
            )
    for depth, exit in net.forward_all(x, given=given).items():
        if not torch.equal(exit.logits, net(x, depth, given=given)):
            raise ValueError(
                f"depth {depth!r} of {kind} gives other logits when all depths run together: a step "
                "overwrites what the others run on, or keeps a state"
            )


def check_shapes(net: NestedNet, depths: Mapping[str, Sequence[int]], x: Tensor) -> None:
    """Raise ValueError for the first depth that drops a block which changes the shape.

    Args:
        depths: blocks per stage by name; `net` need not have them.
        x: a batch for the full net.
    """
    outputs = outputs_by_block(net.path(), net.plan, x)
    stages = [[_shape_of(value) for value in blocks] for blocks in outputs]
    for depth, blocks in depths.items():
        for stage, kept, shapes in zip(net.plan.stages, blocks, stages, strict=False):
            if 1 <= kept <= len(shapes) and shapes[kept - 1] != shapes[-1]:
                least = shapes.index(shapes[-1]) + 1
                raise ValueError(
                    f"depth {depth!r} keeps {kept} of {len(shapes)} blocks of {stage}, but block "
                    f"{least} changes the shape from {shapes[least - 2]} to {shapes[least - 1]}: keep "
                    f"at least {least}, or let another stage begin with that block"
                )


def _shape_of(value: Value) -> tuple[Any, ...]:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    for item in value:
        if not isinstance(item, Tensor):
            raise ValueError(
                f"a block hands on a {type(item).__name__} among its tensors: a path hands on tensors"
            )
    return tuple(tuple(tensor.shape) for tensor in value)
