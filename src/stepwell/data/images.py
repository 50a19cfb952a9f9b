"""Labelled images as RGB bytes of one size; `data.folders` reads them."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from stepwell.data.decoding import Files
from stepwell.data.formats import PHOTOGRAPHS, Format, at
from stepwell.data.groups import set_aside


@dataclass(frozen=True)
class ImageSet:
    """Labelled RGB images of one size; pixels are bytes (n, 3, size, size), or `Files`.

    Labels index `classes`, -1: no label. ValueError for a label out of range, or another number of
    labels.

    form: the format of the files. about: facts about each image, by name: "group": images of one group
        are not split; "content": a hash of the file, in place of the pixels.
    """

    input: ClassVar[Literal["image"]] = "image"
    pixels: Tensor | Files
    labels: Tensor
    classes: tuple[str, ...]
    form: Format = PHOTOGRAPHS
    about: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise ValueError(f"{len(self.pixels)} images but {len(self.labels)} labels")
        if not len(self.labels):
            raise ValueError("a set of no images")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < -1 or high >= len(self.classes):
            raise ValueError(
                f"labels run from {low} to {high}, out of range for {len(self.classes)} classes "
                f"(0 to {len(self.classes) - 1})"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.pixels.size if isinstance(self.pixels, Files) else self.pixels.shape[-1]

    @property
    def NOUN(self) -> str:
        """The examples in a word."""
        return f"{self.form.NOUN}s"

    @property
    def drawing(self) -> Mapping[str, Any]:
        """The settings of pictures of networks, as a card records them; empty for photographs."""
        return self.form.record

    def subset(self, indices: Int64[Tensor, " n"]) -> "ImageSet":
        """The images at `indices`."""
        if isinstance(self.pixels, Files):
            pixels: Files | Tensor = Files([self.pixels.paths[i] for i in indices.tolist()], self.size)
        else:
            pixels = self.pixels[indices]
        return replace(self, pixels=pixels, labels=self.labels[indices], about=at(self.about, indices))

    def split(self, fraction: float) -> tuple["ImageSet", "ImageSet"]:
        """Two parts, the second with about `fraction` of every class (at least one image of each).

        The draw is the same at every call: it depends on the data, not on a run's seed. Groups of
        images stay whole. ValueError if `fraction` is not between 0 and 1, or a class has only one
        image or group.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"a part to set aside is a share between 0 and 1, not {fraction}")
        if "group" in self.about:
            chosen = torch.from_numpy(
                set_aside(self.about["group"], self.labels.numpy(), self.classes, fraction)
            )
            return self.subset((~chosen).nonzero().flatten()), self.subset(chosen.nonzero().flatten())
        aside = torch.zeros(len(self), dtype=torch.bool)
        for name, members in self._shuffled_classes():
            if len(members) == 1:
                raise ValueError(
                    f"class {name!r} has one {self.form.NOUN} only, so none can be set aside"
                )
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            aside[members[: max(0, count)]] = True
        return self.subset((~aside).nonzero().flatten()), self.subset(aside.nonzero().flatten())

    def part(self, number: int, count: int) -> "ImageSet":
        """Part `number` (from 1) of a partition into `count` parts, each class distributed evenly.

        The draw is the same at every call. ValueError if there is no such part, or a class has too few
        images.
        """
        if not 1 <= number <= count:
            raise ValueError(f"no part {number} of {count}: parts are numbered from 1 to {count}")
        dealt = []
        for name, members in self._shuffled_classes():
            if 0 < len(members) < count:
                raise ValueError(
                    f"class {name!r} has {len(members)} {self.NOUN} only: it cannot be in each of "
                    f"{count} parts"
                )
            dealt.append(members)
        # A class continues where the last one stopped, which makes the parts equally large.
        return self.subset(torch.cat(dealt)[number - 1 :: count].sort().values)

    def _shuffled_classes(self) -> Iterator[tuple[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for index, name in enumerate(self.classes):
            members = (self.labels == index).nonzero().flatten()
            yield name, members[torch.randperm(len(members), generator=generator)]

    def shown(self, indices: Int64[Tensor, " n"]) -> dict[str, Any]:
        """The images at `indices` as arrays for a report."""
        return {"images": self.pixels[indices].permute(0, 2, 3, 1).numpy()}

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, pixels scaled to [0, 1], of up to 5,000 images."""
        chosen = torch.linspace(0, len(self) - 1, min(len(self), 5000)).long()
        count, sums, squares = 0, torch.zeros(()).long(), torch.zeros(()).long()
        for few in chosen.split(64):  # all at once would take 16 times the memory of the bytes
            x = self.pixels[few].int()
            count += x[:, 0].numel()
            sums = sums + x.sum((0, 2, 3))
            squares = squares + x.square().sum((0, 2, 3))
        mean = sums.double() / max(1, count)
        variance = (squares.double() - mean * sums) / max(1, count - 1)
        std = (variance.clamp_min(0).sqrt() / 255).clamp_min(1e-3)
        return tuple((mean / 255).tolist()), tuple(std.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the set's content: the bytes in memory, or the names and sizes of the files."""
        digest = hashlib.sha256(repr((self.classes, self.size)).encode())
        digest.update(self.labels.numpy().tobytes())
        if "content" in self.about:
            digest.update(repr((dict(self.form.record), self.about["content"].tolist())).encode())
        elif isinstance(self.pixels, Files):
            for path in self.pixels.paths:
                digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}".encode())
        else:
            digest.update(self.pixels.numpy().tobytes())
        return digest.hexdigest()[:16]


class Splits(NamedTuple):
    """The parts of a data set. `flip`: true if a mirrored image keeps its class."""

    name: str
    train: ImageSet
    test: ImageSet
    flip: bool = True
    notes: tuple[str, ...] = ()
    validation: ImageSet | None = None
