"""The plan of a path: the steps of a plain module, and the modules that a sub-net shares with it."""

import re
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from importlib import import_module
from itertools import chain
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import FrozenBatchNorm2d

from stepwell.nets.nested.steps import Value

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, FrozenBatchNorm2d)
_NORM_NAME = re.compile(r"Norm(?![a-z])")


class Plan(NamedTuple):
    """A plain module as a path; strings name modules inside it, in the order they run.

    stages: containers of the blocks, as for `read`, such as "layer1".
    blocks: for each stage, the modules that each block runs; a sub-net keeps the first blocks.
    gaps: the steps before, between and after the stages, so one gap more than stages. A step is the
        name of a module, or a module made of code of the forward.
    """

    stages: tuple[str, ...]
    blocks: tuple[tuple[tuple[str, ...], ...], ...]
    gaps: tuple[tuple[str | nn.Module, ...], ...]

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the modules that run after the last stage."""
        steps = ((step,) if isinstance(step, str) else leaves(step) for step in self.gaps[-1])
        return tuple(chain.from_iterable(steps))


class Code:
    """A function of a step and its input that can be pickled: Python `source` of a function `forward`.

    The dict `scope` has the values of the source's global names.
    """

    def __init__(self, source: str, scope: Mapping[str, Any]) -> None:
        self.source, self.scope = source, scope
        names = dict(scope)
        exec(compile(source, "<step between blocks>", "exec"), names)
        self._forward = names["forward"]

    def __call__(self, step: "Calls", x: Any) -> Any:
        """The result of the source for a tensor, or for a proxy while torch.fx traces."""
        return self._forward(step, x)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Code":
        return self  # nothing in it ever changes

    def __reduce__(self) -> tuple[Any, ...]:
        # Modules, such as torch, are the one thing in a scope that pickle does not know by its name.
        modules = {n: v.__name__ for n, v in self.scope.items() if isinstance(v, ModuleType)}
        others = {n: v for n, v in self.scope.items() if n not in modules}
        return _code, (self.source, others, modules)


def _code(source: str, scope: Mapping[str, Any], modules: Mapping[str, str]) -> Code:
    return Code(source, {**scope, **{n: import_module(name) for n, name in modules.items()}})


class Holder(nn.Module):
    """A module of the full net inside a step that needs only some of its children.

    Its parameters and buffers, if any, are in the full net's own dicts, so that `.to()` reaches both.
    """


class Calls(Holder):
    """A step of several calls on the full net's own modules, its children under their dotted names.

    Args:
        train, eval: the code of each mode, called with this step and its input.
    """

    def __init__(
        self, train: Callable[["Calls", Any], Any], eval: Callable[["Calls", Any], Any]
    ) -> None:
        super().__init__()
        self.in_train, self.in_eval = train, eval

    def forward(self, x: Value) -> Value:
        """The input of the next step, or the logits."""
        return self.in_train(self, x) if self.training else self.in_eval(self, x)


def leaves(step: nn.Module, name: str = "") -> dict[str, nn.Module]:
    """The modules that a step of `Calls` runs, by their dotted names in the full net."""
    modules: dict[str, nn.Module] = {}
    for n, child in step._modules.items():
        if isinstance(child, Holder):
            modules |= leaves(child, join(name, n))
        elif child is not None:
            modules[join(name, n)] = child
    return modules


def is_norm(module: nn.Module) -> bool:
    """Check whether a module holds statistics or affine parameters of one activation distribution.

    Norms that are no subclass of torch's (timm's RmsNorm) are recognised by their name ("Norm" where a
    word ends, so not NormalizedLinear) and by parameters of one value a channel.
    """
    if isinstance(module, _NORMS):
        return True
    affine = any(True for _ in module.parameters(recurse=False))
    named = _NORM_NAME.search(type(module).__name__) is not None
    # of children, too: a "PreNormBlock" with a scale of its own is no norm
    return affine and named and all(p.numel() == max(p.shape, default=1) for p in module.parameters())


def channels_last(module: nn.Module) -> bool:
    """Check whether the maps between the blocks of `module` are (batch, height, width, channels).

    Such modules have an attribute `output_fmt = "NHWC"`, as timm's do; torchvision's Swin is recognised
    without it. Features of an `Exit` are (batch, channels, height, width) in any case.
    """
    parts = (module, *module.children())  # in timm's SAM, the patch embedding has it
    return isinstance(module, SwinTransformer) or any(
        getattr(part, "output_fmt", None) == "NHWC" for part in parts
    )


def with_own_norms(module: nn.Module, norms: dict[str, nn.Module], name: str) -> nn.Module:
    """`module` with copies of its norms and everything else shared; itself if it has no norm.

    `norms` gains the copies under their dotted names.
    """
    if is_norm(module):
        norms[name] = deepcopy(module)
        return norms[name]
    children = {
        n: None if child is None else with_own_norms(child, norms, join(name, n))
        for n, child in module._modules.items()
    }
    return with_children(module, children)


def replant(
    module: nn.Module, replacements: Mapping[str, nn.Module], dropped: Collection[str], name: str = ""
) -> nn.Module:
    """`module` with the children in `replacements` (by dotted names) and without those in `dropped`.

    If numbered children are dropped, the others are renumbered, as in the plain network of that depth.
    """
    children: dict[str, nn.Module | None] = {}
    for n, child in module._modules.items():
        full = join(name, n)
        if full in replacements:
            children[n] = replacements[full]
        elif full not in dropped:
            children[n] = None if child is None else replant(child, replacements, dropped, full)
    if len(children) < len(module._modules) and all(n.isdecimal() for n in children):
        children = {str(i): child for i, child in enumerate(children.values())}
    return with_children(module, children)


def with_children(module: nn.Module, children: Mapping[str, nn.Module | None]) -> nn.Module:
    """A module like `module` with other children (itself if they are its own); the rest is shared.

    The dicts of parameters and buffers are the same objects, so that `.to()` reaches both modules.
    """
    before = module._modules
    if children.keys() == before.keys() and all(children[n] is before[n] for n in before):
        return module
    twin = module.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin._modules = dict(children)
    return twin


def join(name: str, child: str) -> str:
    """The dotted name of a child."""
    return f"{name}.{child}" if name else child
