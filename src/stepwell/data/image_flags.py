"""The flags of a run that say how it reads its images."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import FlagConversionOff

from stepwell.flags import flag


@dataclass(frozen=True, kw_only=True)
class Images:
    """Size, mirroring and part of the images of a run.

    Attributes:
        size: height and width in pixels.
        flip: mirror training images.
        part: use part I of N of the training images.
    """

    TITLE: ClassVar = "image"
    size: Annotated[int | None, flag("PIXELS", "their own")] = None
    flip: Annotated[
        FlagConversionOff[bool | None], flag("{True,False}", "where the data allows it")
    ] = None
    part: Annotated[str | None, flag("I/N", "all images")] = None

    def check(self) -> None:
        """Refuse a part that does not exist; errors as for `part_of`."""
        if self.part is not None:
            part_of(self.part)


def part_of(text: str) -> tuple[int, int]:
    """Part and number of parts, of text such as "1/2", the first half; ValueError for anything else."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(
            f"--part {text}: write I/N for part I of N, from 1 on: 1/2 and 2/2 are the halves"
        )
    return int(number), int(count)
