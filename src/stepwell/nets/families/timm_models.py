"""Any timm model whose stages can be found, by the name `timm/NAME`."""

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from stepwell.nets.decisions.experts import with_experts
from stepwell.nets.families.builder import Builder
from stepwell.nets.nested.nest import check_shapes
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.plan import Plan
from stepwell.nets.nested.reading import find_stages, read

PREFIX = "timm/"
#: The usual containers of the blocks in timm's models, inner containers first.
STAGES = (r"(stages|layers)\.\d+\.blocks", r"(stages|blocks)\.\d+", r"blocks", r"layer\d", r"s\d")


@lru_cache
def timm_builder(name: str) -> Builder:
    """The builder of a timm model, named without prefix; ValueError for no such model, or no stages.

    The depths of a model of one stage (such as a ViT or DeiT) are named by their number of blocks. The
    full depth of other models is called "full".
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them"
        raise ValueError(f"timm has no model {name!r}; {hint}")
    with torch.device("meta"):
        module = timm.create_model(name)
    plan = _plan(name, module)
    blocks = tuple(len(stage) for stage in plan.blocks)
    full = "full" if len(blocks) > 1 else str(blocks[0])
    family = {full: blocks}
    if len(blocks) == 1:
        family = {str(n): (n,) for n in range(1, blocks[0])} | family
    card: Any = module.pretrained_cfg
    fixed = "img_size" if card.get("fixed_input_size") else None
    make, size = partial(_make, name), card["input_size"][-1]
    return Builder(make, plan.stages, full, family, size=size, size_argument=fixed)


def _plan(name: str, module: nn.Module) -> Plan:
    """The module read as a path around the first stages of `STAGES` that it has."""
    names = dict(module.named_modules())
    tried = [tuple(n for n in names if re.fullmatch(pattern, n)) for pattern in STAGES]
    reasons = []
    for stages in dict.fromkeys([*tried, find_stages(module)]):
        if stages:
            try:
                return read(module, stages)
            except ValueError as error:
                reasons.append(str(error))
    reason = next(iter(reasons), "its blocks are in none of timm's usual containers")
    raise ValueError(
        f"no stages could be found in timm's {name} ({reason}): "
        "make it with timm.create_model and name them to stepwell.nest(module, stages=...)"
    )


def check_depths(
    name: str, depths: Mapping[str, Sequence[int]], stages: Sequence[str], arguments: Mapping[str, Any]
) -> None:
    """Raise ValueError for the first depth that drops a block which changes the shape."""
    builder = timm_builder(name)
    size = arguments.get(builder.size_argument or "", builder.size)
    with torch.device("meta"):
        module = builder.make(**arguments).eval()
        net = NestedNet(module, read(module, stages), {}, builder.full)
        with torch.no_grad():
            check_shapes(net, depths, torch.empty(1, 3, size, size))


def _make(name: str, **arguments: Any) -> nn.Module:
    """A timm model; `arguments` may be those of `with_experts`, too."""
    import timm

    if arguments.get("pretrained"):
        raise ValueError("pretrained=True: use --init pretrained for published weights")
    mixture = {k: arguments.pop(k) for k in ("experts", "top_k", "router") if k in arguments}
    return with_experts(timm.create_model(name, **arguments), **mixture)
