"""Parts of a network that decide by example: where they are, and their start from plain weights."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from stepwell.nets.decisions.executor import BreakEven

Block = TypeVar("Block", bound=nn.Module)


class Deciding(nn.Module):
    """A part that decides by example; the base of gated blocks, experts and conditional kernels.

    break_even: where its compacted form is the faster one on this device; empty if nobody measured it.
    in_graphs: by the format of an export, what its graph computes in vain because it cannot decide.
    """

    break_even: BreakEven = MappingProxyType({})
    in_graphs: ClassVar[Mapping[str, str]]

    def from_plain(self, plain: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of this part from those of a network without decisions, by their names in the part.

        Args:
            plain: the tensors there; those of a part like this one stay as they are.
            state: this part's own, for what the plain network does not have.
        """
        raise NotImplementedError


def deciding_parts(module: nn.Module) -> Iterator[tuple[str, Deciding]]:
    """The parts of a network that decide, by name and in order."""
    for name, inner in module.named_modules():
        if isinstance(inner, Deciding):
            yield name, inner


def use_break_even(module: nn.Module, table: Mapping[str, Mapping[str, float]]) -> None:
    """Set the break-even shares of all parts that decide, by their name and the batch size."""
    for name, part in deciding_parts(module):
        part.break_even = {int(size): share for size, share in table.get(name, {}).items()}


def from_plain(module: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors `given` for a network, where parts that decide begin with those of plain parts."""
    tensors = dict(given)
    for name, part in deciding_parts(module):
        start = f"{name}."
        plain = {k.removeprefix(start): tensors.pop(k) for k in [*tensors] if k.startswith(start)}
        converted = part.from_plain(plain, part.state_dict())
        tensors |= {start + k: value for k, value in converted.items()}
    return tensors


def like_block(kind: type[Block], block: nn.Module, changed: Mapping[str, nn.Module]) -> Block:
    """A block of class `kind` with the children of `block` under their names, except `changed` ones."""
    made = kind()
    for name, child in block.named_children():
        made.add_module(name, changed.get(name, child))
    return made.train(block.training)


@torch.no_grad()
def drawn_anew(tensor: Tensor) -> Tensor:
    """Random values with the standard deviation of a tensor, around its mean."""
    return torch.randn_like(tensor) * tensor.std(correction=0) + tensor.mean()
