"""Make a nested net of a module of the caller's own, and check every depth."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepwell.nets.nested.example import example_input, line_of, outputs_by_block
from stepwell.nets.nested.net import Inputs, NestedNet, NormSharing
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

    Every depth is checked on random input, in eval mode: the full path must equal the module bit by
    bit, each path its sub-net, and all depths run together each depth alone.

    Args:
        module: the full net, from one tensor to logits (batch, classes). Further arguments of its
            forward need a default of None (see `NestedNet.forward`, `given`). If maps between its
            blocks are (batch, height, width, channels), set `module.output_fmt = "NHWC"`. Tied
            parameters stay tied.
        stages: containers of blocks in the order they run, such as "layer1" or "stages.0.blocks";
            "features[2:4]" are some children of one, "features[0:6:3]" blocks of three children.
        depths: blocks per stage of each sub-net, by name; a sub-net keeps the first blocks of a stage.
        full: the name of the full net's own depth.
        norms: "private" to each depth behind the fork, or "shared" (an ablation; see `NestedNet`).
        input_size: shape of one input, such as (3, 224, 224), or (16,) for 16 token ids; found by trial
            if not given.
        given: constants for a batch of two inputs, such as a mask, to repeat the checks with. They show
            code that uses a constant outside of the steps that name it, which no path contains.

    Raises:
        ValueError: a stage does not exist; the module cannot be read; a depth drops blocks that change
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


def check_shapes(net: NestedNet, depths: Mapping[str, Sequence[int]], x: Inputs) -> None:
    """Raise ValueError for the first of `depths` that drops a block which changes the shape of `x`."""
    outputs = outputs_by_block(net.path(), net.plan, x)
    stages = [[_shape_of(value) for value in blocks] for blocks in outputs]
    for depth, blocks in depths.items():
        for stage, count, shapes in zip(net.plan.stages, blocks, stages, strict=False):
            if 1 <= count <= len(shapes) and shapes[count - 1] != shapes[-1]:
                least = shapes.index(shapes[-1]) + 1
                raise ValueError(
                    f"depth {depth!r} keeps {count} of {len(shapes)} blocks of {stage}, but block "
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
