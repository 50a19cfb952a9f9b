"""A network that is made for one input size, on the weights of one that is made for another.

A ViT has an embedding of every patch's position, and its code checks the size of its input. What
depends on the size so is the network's own; it starts as the other's, interpolated.
"""

from math import isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.nets.nested.plan import Holder, is_norm, join, with_children

#: Tokens before those of the patches, at most: class and distillation tokens, registers.
PREFIX = 16
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


def resized(
    module: nn.Module, made: nn.Module, parts: dict[str, nn.Module], name: str = ""
) -> nn.Module:
    """`made`, which is `module` for another input size, on the weights of `module`.

    Modules that the size makes no difference to are those of `module`. Of the others, parameters of
    equal shape are shared; the rest is added to `parts`, in a holder under the module's dotted name.

    Args:
        made: is changed in place, and its own weights are dropped.

    Raises:
        ValueError: a parameter or a buffer that is saved has another shape at this size, and is no
            embedding of positions; a module is missing.
    """
    if is_norm(module):
        return module
    children: dict[str, nn.Module | None] = {}
    for n, child in module._modules.items():
        if child is None:
            children[n] = None
            continue
        twin = made._modules.get(n)
        if twin is None:
            raise ValueError(f"there is no module {join(name, n)!r} at every size")
        children[n] = resized(child, twin, parts, join(name, n))
    state = _state_of_size(made)
    if _shapes(module) == _shapes(made) and _same(_state_of_size(module), state):
        return with_children(module, children)
    holder = Holder()
    for n, parameter in module._parameters.items():
        there = made._parameters[n]
        if parameter is not None and there is not None and parameter.shape != there.shape:
            moved = moved_positions(parameter.detach(), tuple(there.shape), join(name, n))
            parameter = nn.Parameter(moved, requires_grad=parameter.requires_grad)
            holder.register_parameter(n, parameter)
        made._parameters[n] = parameter
    for n, buffer in module._buffers.items():
        if n not in state and buffer is not None:
            of_size = made._buffers[n]
            if of_size is None or of_size.shape != buffer.shape:
                raise _of_size(join(name, n), buffer, of_size)
            made._buffers[n] = buffer.clone()
    # the very same dict, so that `.to()`, which replaces buffers inside it, reaches both
    holder._buffers = made._buffers
    holder._non_persistent_buffers_set = made._non_persistent_buffers_set
    if holder._parameters or holder._buffers:
        parts[name] = holder
    made._modules = dict(children)
    made.training = module.training
    return made


def moved_positions(
    value: Float[Tensor, "..."], shape: tuple[int, ...], name: str
) -> Float[Tensor, "1 tokens channels"]:
    """An embedding (1, tokens, channels) of a square of patches for another square, of this shape.

    Tokens before those of the patches stay as they are. Raises ValueError for any other tensor.
    """
    from timm.layers import resample_abs_pos_embed  # timm takes a second to import

    if value.dim() == len(shape) == 3 and len(value) == 1:
        old, new = value.shape[1], shape[1]
        for prefix in range(min(PREFIX, old, new)):
            before, after = isqrt(old - prefix), isqrt(new - prefix)
            if before**2 + prefix == old and after**2 + prefix == new:
                sides = [after, after], [before, before]
                moved: Tensor = resample_abs_pos_embed(value, *sides, num_prefix_tokens=prefix)
                if moved.shape == shape:
                    return moved
    raise _of_size(name, value, torch.empty(shape, device="meta"))


def _of_size(name: str, value: Tensor, there: Tensor | None) -> ValueError:
    shape = None if there is None else tuple(there.shape)
    return ValueError(
        f"{name} depends on the size of the images, and is no embedding of positions that could be "
        f"interpolated, from {tuple(value.shape)} to {shape}"
    )


def _shapes(module: nn.Module) -> dict[str, torch.Size | None]:
    """Of what a module learns or counts itself, which has one shape at every size as a rule."""
    state = module._parameters | {
        n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set
    }
    return {n: None if value is None else value.shape for n, value in state.items()}


def _state_of_size(module: nn.Module) -> dict[str, Any]:
    """Plain attributes of a module, and its buffers that no file holds."""
    values = {n: v for n, v in module.__dict__.items() if n not in _OF_EVERY_MODULE and _is_plain(v)}
    return values | {n: module._buffers[n] for n in module._non_persistent_buffers_set}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    def equal(value: Any, other: Any) -> bool:
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            return torch.equal(value.cpu(), other.cpu())  # False for other shapes
        return bool(value == other)

    return first.keys() == second.keys() and all(equal(v, second[n]) for n, v in first.items())
