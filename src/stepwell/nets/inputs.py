"""Inputs of networks that only their costs depend on, by the kind of input in a network's card."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepwell.nets.card import Card
from stepwell.types import Images

#: A token id that pads in no usual vocabulary.
TOKEN = 2


class Input(NamedTuple):
    """A kind of input.

    noun, unit: words for one, and for its size.
    blank: makes a batch of inputs that mean nothing, of a size.
    sized: writes a size.
    aside: says how to have a validation part.
    """

    noun: str
    unit: str
    blank: Callable[[int, int], Tensor]
    sized: Callable[[int], str]
    aside: str


#: By the kind of input in a card.
INPUTS = {
    "image": Input(
        "image",
        "pixels",
        lambda batch, size: torch.zeros(batch, 3, size, size),
        "{0}×{0}".format,
        "name data with a val/ folder with --data",
    ),
    "text": Input(
        "text",
        "tokens",
        lambda batch, size: torch.full((batch, size), TOKEN),
        "{} tokens".format,
        "leave --data out, of a run trained with --valid or a --val-fraction",
    ),
}


def blank_inputs(net: nn.Module, card: Card, size: int | None = None, batch: int = 1) -> Tensor:
    """Give inputs that mean nothing, of `size` or the card's, on the network's device."""
    made = INPUTS[card.input].blank(batch, card.size if size is None else size)
    return made.to(next(net.parameters()).device)


def blank_image(net: nn.Module, size: int, batch: int = 1) -> Images:
    """Give black images of `size` pixels, on the network's device."""
    return blank_inputs(net, Card(size=size), size, batch)
