"""Glance and focus: a small view of the whole image, then crops where the network wants to look.

Wang et al. 2020 (arXiv 2010.05300). Glance t gives features, and a recurrent cell joins them with those
of the glances before. A policy reads the maps of glance t and chooses the place of glance t + 1.

A clip whose frames stand in rows is an image, too, and its crops are frames. The first glance sees all
frames, small, and the later ones look at some: a global memory of light features and a policy of the
next frame, as in AdaFrame (Wu et al. 2019, arXiv 1811.12432).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.types import Images

#: Places (batch, 2) of crops from 0 to 1, from the top and the left: 1 is as far as a crop can be. Of
#: frames (batch, 1), from the first to the last.
Places = Float[Tensor, "batch axes"]
#: Who chooses the places: the policy, chance, or nobody: crops are in the middle, frames spread evenly.
Where = Literal["policy", "random", "fixed"]
#: Image, last maps, state of the policy, and what all glances so far have seen.
Seen = tuple[Tensor, Tensor, Tensor, Tensor]
#: The part of each image at its place, of a side in pixels.
Part = Callable[[Images, Places, int], Tensor]
#: The golden ratio, without its whole part.
GOLDEN = (5**0.5 - 1) / 2
#: Channels of the map, and numbers of the state, of a policy.
POLICY_CHANNELS, POLICY_WIDTH = 32, 128


def crops(images: Images, places: Places, side: int) -> Float[Tensor, "batch _ {side} {side}"]:
    """A square of each image, `side` pixels wide, whose top left corner is at its place."""
    height, width = images.shape[2:]
    if side > min(height, width):
        raise ValueError(f"crops of {side} pixels are larger than images of {height} × {width}")
    room = torch.tensor([height - side, width - side], device=images.device)
    return _cut(images, (places.clamp(0, 1) * room).floor().long(), side)


def frames(clips: Images, places: Places, side: int) -> Float[Tensor, "batch _ {side} {side}"]:
    """The frame at each clip's place; frames are squares of `side` pixels that stand in rows."""
    if side > min(clips.shape[2:]):
        raise ValueError(f"frames of {side} pixels are larger than clips of {clips.shape[2]} rows")
    across = clips.shape[3] // side
    count = across * (clips.shape[2] // side)
    index = (places[:, 0].clamp(0, 1) * count).floor().long().clamp(max=count - 1)
    return _cut(clips, torch.stack([index // across, index % across], 1) * side, side)


def _cut(
    images: Images, corners: Int64[Tensor, "batch 2"], side: int
) -> Float[Tensor, "batch _ {side} {side}"]:
    """A square of each image, from its top left corner (row, column), by one gather."""
    along = torch.arange(side, device=images.device)
    rows, columns = corners[:, :1] + along, corners[:, 1:] + along
    batch = torch.arange(images.shape[0], device=images.device)
    pixels = images.permute(0, 2, 3, 1)  # channels last, as the loader lays images out: no copy
    cut = pixels[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2)


class Policy(nn.Module):
    """Chooses the next place, from the maps of the last glance and its own state.

    No gradient reaches the maps.

    Args:
        channels, side: of the maps.
        axes: numbers of a place.
    """

    def __init__(self, channels: int, side: int, axes: int = 2) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, POLICY_CHANNELS, 1)
        self.cell = nn.GRUCell(POLICY_CHANNELS * side**2, POLICY_WIDTH)
        self.place = nn.Linear(POLICY_WIDTH, axes)
        self.axes = axes

    def forward(self, maps: Tensor, state: Tensor) -> tuple[Places, Tensor]:
        """The mean place, and the next state."""
        state = self.cell(self.reduce(maps.detach()).relu().flatten(1), state)
        return self.place(state).sigmoid(), state


class _Glance(nn.Module):
    """The end of a glance: a cell that joins its features with the earlier ones, and a head of its own.

    extras: "own" are logits from this glance alone, for training.
    """

    def __init__(self, encoder: nn.Module, own: nn.Module, cell: nn.Module) -> None:
        super().__init__()
        self.encoder, self.own, self.cell = encoder, own, cell

    def joined(
        self, view: Tensor, image: Tensor, state: Tensor, seen: Tensor, extras: Sequence[str],
        more: dict[str, Tensor],
    ) -> Any:  # fmt: skip
        """Give the value for the next glance, and the extras if any were requested."""
        maps = self.encoder(view)
        features = maps.mean((2, 3))
        value = image, maps, state, self.cell(features, seen)
        if not extras:
            return value
        return value, {"own": self.own(features), **more}


class FirstGlance(_Glance):
    """The whole image, scaled down to `side` pixels.

    Args:
        encoder: images to maps.
        own: features to logits.
        cell: joins features with what earlier glances have seen.
    """

    def __init__(self, side: int, encoder: nn.Module, own: nn.Module, cell: nn.GRUCell) -> None:
        super().__init__(encoder, own, cell)
        self.side, self.width = side, cell.hidden_size

    def forward(self, images: Images, extras: Sequence[str] = ()) -> Any:
        """Images to `Seen`, and the extras if any are asked for."""
        size = images.shape[2]
        if size % self.side:
            raise ValueError(f"glances of {self.side} pixels do not divide images of {size}")
        view = F.avg_pool2d(images, size // self.side)
        state, seen = (images.new_zeros(images.shape[0], n) for n in (POLICY_WIDTH, self.width))
        return self.joined(view, images, state, seen, extras, {})


class NextGlance(_Glance):
    """A part of `side` pixels, where the policy looks.

    extras: "mean" is the policy's place, and "place" the one looked at; of `places`, both are these.

    Args:
        index: of this glance among those that the policy places.
        part: `crops` or `frames`.
        policy: all glances have the same; so have they encoder, own and cell.
    """

    def __init__(
        self, index: int, side: int, part: Part, encoder: nn.Module, own: nn.Module, cell: nn.Module,
        policy: Policy,
    ) -> None:  # fmt: skip
        super().__init__(encoder, own, cell)
        self.index, self.side, self.part, self.policy = index, side, part, policy

    def forward(
        self, value: Seen, places: Tensor | None = None, shift: Tensor | None = None,
        extras: Sequence[str] = (),
    ) -> Any:  # fmt: skip
        """`Seen` to `Seen`, and the extras if any are asked for.

        Args:
            places: (batch, glances, axes); looked at in place of the policy's, which does not run.
            shift: (batch, glances, axes); added to the policy's places. Of a place outside [0, 1], the
                nearest one inside is looked at, and "place" is the one outside.
        """
        image, maps, state, seen = value
        if places is None:
            mean, state = self.policy(maps, state)
            place = mean if shift is None else mean.detach() + shift[:, self.index]
        else:
            mean = place = places[:, self.index]
        view = self.part(image, place, self.side)
        return self.joined(view, image, state, seen, extras, {"mean": mean, "place": place})


class Conclusion(nn.Module):
    """Logits from what all glances have seen."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, value: Seen) -> Float[Tensor, "batch classes"]:
        """`Seen` to logits."""
        return self.fc(value[-1])


def policy_of(module: nn.Module) -> Policy:
    """The policy of a network that glances; ValueError for another network, or one of one glance."""
    for inner in module.modules():
        if isinstance(inner, Policy):
            return inner
    raise ValueError('this network places no glances: build "glance-resnet20/4" or the like')


def side_of(module: nn.Module) -> int:
    """Pixels of a glance of a network that glances."""
    return next(inner.side for inner in module.modules() if isinstance(inner, FirstGlance))


def glance_count(module: nn.Module) -> int:
    """The number of glances that the policy of a network places."""
    return sum(isinstance(inner, NextGlance) for inner in module.modules())


def places_at(
    module: nn.Module, where: Where, images: Images, draw: torch.Generator | None = None
) -> dict[str, Tensor]:
    """The constants of a batch that place its glances; none where the policy does.

    Args:
        draw: draws random places; by default torch's global generator.
    """
    if where == "policy":
        return {}
    count, axes = glance_count(module), policy_of(module).axes
    if where == "random":
        return {"places": torch.rand(len(images), count, axes, generator=draw).to(images)}
    # of frames, by the golden ratio: spread over the clip, however many are looked at
    steps = (0.5 + GOLDEN * torch.arange(count)) % 1 if axes == 1 else torch.full((count,), 0.5)
    return {"places": steps[:, None].expand(len(images), count, axes).to(images)}
