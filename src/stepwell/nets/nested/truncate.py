"""Truncate a plain network: each stage keeps its first blocks."""

from collections.abc import Sequence

from torch import nn

from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.reading import SLICE, read


def truncate(
    module: nn.Module, stages: Sequence[str], counts: Sequence[int]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Make a network of the first `counts` blocks of each stage of `module`; return it and its stages.

    With all blocks it is `module`; a stage needs one or more (else ValueError).
    """
    plan = read(module, stages)
    sizes = tuple(len(blocks) for blocks in plan.blocks)
    if tuple(counts) == sizes:
        return module, tuple(stages)
    net = NestedNet(module, plan, {"kept": counts})
    dropped: dict[str, int] = {}  # children of a container, before the stage
    names = []
    for stage, blocks, count in zip(stages, sizes, counts, strict=True):
        sliced = SLICE.fullmatch(stage)
        if sliced is None:
            names.append(stage)
            continue
        name, size = sliced["name"], int(sliced["step"] or 1)
        start = int(sliced["start"]) - dropped.get(name, 0)
        step = f":{size}" if sliced["step"] else ""
        names.append(f"{name}[{start}:{start + size * count}{step}]")
        dropped[name] = dropped.get(name, 0) + size * (blocks - count)
    return net.subnet("kept"), tuple(names)
