"""The flags of a run that say how it reads its images."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import FlagConversionOff, FlagCreatePairsOff

from stepwell.data.augment import Policy
from stepwell.data.images import ImageSet
from stepwell.data.loader import Extra
from stepwell.data.mixing import Change, Mix
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


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training image.

    Attributes:
        augment: none; standard: crop, and mirror if the data allows it; or also rotate, vflip,
            jitter or combined (all).
    """

    augment: Annotated[Policy, flag("POLICY")] = "standard"

    def changes(self, classes: int) -> list[Change]:
        """The changes of whole batches with their labels."""
        return []

    def extra(self, train: ImageSet) -> list[Extra]:
        """The images without labels that join `train`."""
        return []


@dataclass(frozen=True)
class Changes(Augmentation):
    """Random changes of training images and of batches.

    Attributes:
        mix: blend the images of a batch: mixup or cutmix.
    """

    mix: Annotated[Literal["none", "mixup", "cutmix"], flag("MIX")] = "none"

    def changes(self, classes: int) -> list[Change]:
        """The changes of whole batches with their labels."""
        return [Mix(self.mix, classes)] if self.mix != "none" else []


@dataclass(frozen=True, kw_only=True)
class LabelledImages(Images):
    """Images that a run trains on with their labels.

    Attributes:
        balance: draw every class equally often; an epoch stays as long as it is.
    """

    balance: FlagCreatePairsOff[Annotated[bool, flag()]] = False


@dataclass(frozen=True, kw_only=True)
class TrainingImages(LabelledImages, Changes):
    """Images that a run trains on, and how they are changed."""

    TITLE: ClassVar = "image"


def part_of(text: str) -> tuple[int, int]:
    """Part and number of parts, of text such as "1/2", the first half; ValueError for anything else."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(
            f"--part {text}: write I/N for part I of N, from 1 on: 1/2 and 2/2 are the halves"
        )
    return int(number), int(count)
