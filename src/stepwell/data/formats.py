"""Formats of files that images come from: photographs, clips, and pictures of complex networks.

A format reads files as RGB bytes of one size. A network's card records the format of its images, so
that later images are read in the same way.
"""

import importlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from stepwell.data import preprocess
from stepwell.data.decoding import (
    SUFFIXES,
    Files,
    check_files,
    decoded,
    files_below,
    image_files,
    is_small,
    own_size,
    pixels_of,
)
from stepwell.data.preprocess import squared

#: Module and class of a format by its name in a card.
FORMATS = {
    "network": ("stepwell.data.pictures.format", "NetworkPictures"),
    "clip": ("stepwell.data.clips", "Clips"),
}


@runtime_checkable
class Graph(Protocol):
    """A graph of networkx or igraph."""

    def is_directed(self) -> bool:
        """Say whether edges have a direction."""


#: What a format may read: an image, or a graph.
Source = preprocess.Source | Graph


@runtime_checkable
class Drawing(Protocol):
    """The flags of a run that say how files become images.

    record: the settings, as a card records them. changed: the first flag with another value than its
    default that is only for some files; empty if there is none.
    """

    @property
    def record(self) -> Mapping[str, Any]:
        """The settings."""

    @property
    def changed(self) -> str:
        """The flag."""


class Format:
    """Image files: the usual format.

    record: what a card records; without it, images are photographs.
    suffixes: of files in this format.
    """

    record: Mapping[str, Any] = {}
    suffixes: Collection[str] = SUFFIXES
    NOUN: ClassVar = "image"

    def files(self, folder: Path) -> list[Path]:
        """Every file of the format below `folder`, sorted by path, without hidden files and folders."""
        return image_files(folder, self.suffixes)

    def others(self, folder: Path) -> list[Path]:
        """Every other file below `folder`, sorted as in `files`."""
        return [path for path in files_below(folder) if path.suffix.lower() not in self.suffixes]

    def check(self, paths: Sequence[Path]) -> None:
        """Open files before a training; ValueError names the bad ones."""
        check_files(paths)

    def own_size(self, paths: Sequence[Path], usual: int) -> int:
        """The side of the images where the caller names none."""
        return own_size(paths, usual)

    def load(
        self, paths: Sequence[Path], size: int
    ) -> tuple[UInt8[Tensor, "n 3 size size"] | Files, dict[str, NDArray[Any]]]:
        """The images, and further facts about each by name; ValueError names unreadable files."""
        return pixels_of(paths, size), {}

    def squared(self, source: Source, size: int) -> NDArray[np.uint8]:
        """RGB bytes (size, size, 3) of one image; ValueError names an unreadable one, or a graph."""
        if isinstance(source, Graph):
            raise ValueError("a graph is no image: give it to a network that `train cnc` has trained")
        return squared(source, size)

    def noted(self, source: Source, size: int) -> tuple[NDArray[np.uint8], str]:
        """As `squared`, with a note about what makes the file doubtful; empty without a doubt."""
        return self.squared(source, size), ""

    def decoded(self, content: bytes, size: int, name: str = "") -> NDArray[np.uint8]:
        """RGB bytes (size, size, 3) of the content of a file called `name`.

        ValueError if it is no image.
        """
        return decoded(content, lambda image: squared(image, size))

    def quick(self, content: bytes, size: int) -> bool:
        """Say whether `decoded` takes about a millisecond at most."""
        return is_small(content, size)

    def notes(self, images: Any, folder: Path, *, training: bool = True) -> tuple[str, ...]:
        """Lines about a part of a data set that a person should read before the training."""
        return ()

    def programs(self) -> dict[str, bytes]:
        """Files by name that prepare images without Stepwell, for an export."""
        return {"preprocess.py": Path(preprocess.__file__).read_bytes()}


PHOTOGRAPHS = Format()


def format_of(record: Mapping[str, Any]) -> Format:
    """The format that a card records; ValueError if this version does not know it."""
    if not record:
        return PHOTOGRAPHS
    if record.get("format") not in FORMATS:
        raise ValueError(f"no format of images {record.get('format')!r} in this version: upgrade")
    module, name = FORMATS[record["format"]]
    form: Format = getattr(importlib.import_module(module), name)(record)
    return form


def at(about: Mapping[str, NDArray[Any]], indices: Tensor) -> dict[str, NDArray[Any]]:
    """The facts about the images at `indices`."""
    rows = torch.as_tensor(indices).numpy()
    return {name: values[rows] for name, values in about.items()}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first setting in which two records of a format draw another image; empty if none does."""
    names = (n for n in one if n != "max_edges" and one[n] != other.get(n))
    return next(names, "").replace("_", "-")
