"""Images of equal content, under whatever names."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from stepwell.measures import some


@runtime_checkable
class ImageFiles(Protocol):
    """Images on disk; `contents` has the `content_of` each file."""

    @property
    def files(self) -> Sequence[Path]: ...

    @property
    def contents(self) -> Sequence[bytes]: ...


def check_apart(parts: Mapping[str, ImageFiles | None]) -> None:
    """Raise ValueError if an image of one part, by name, is in another one, under whatever name."""
    known: dict[bytes, tuple[str, Path]] = {}
    for part, images in parts.items():
        by_content = {} if images is None else dict(zip(images.contents, images.files, strict=True))
        for content, file in by_content.items():
            if content in known:
                other, twin = known[content]
                raise ValueError(
                    f"{part} image {file} is {other} image {twin} (equal content): remove one of them"
                )
        known |= {content: (part, file) for content, file in by_content.items()}


def copies_in(where: Path, images: ImageFiles) -> list[str]:
    """A line about images that are there twice under different names; none without any."""
    first: dict[bytes, str] = {}
    copies = []
    for content, file in zip(images.contents, images.files, strict=True):
        if content in first:
            copies.append(f"{file.name} of {first[content]}")
        first.setdefault(content, file.name)
    if not copies:
        return []
    return [f"{where}: copies of other images, which count twice: {len(copies)}, {some(copies)}"]


def content_of(file: Path) -> bytes:
    """A hash of a file's content, equal for copies under any name."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, partial(hashlib.blake2b, digest_size=16)).digest()
