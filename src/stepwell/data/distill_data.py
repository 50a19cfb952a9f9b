"""What a student is taught on, besides the training images as they are.

A teacher labels whatever the student sees: images changed more than usual, mixed with each other,
without labels of their own, or made.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stepwell.data.augment import Policy
from stepwell.data.images import ImageSet, load_unlabeled
from stepwell.data.loader import Extra
from stepwell.data.mixing import Change, Mix, Replace
from stepwell.ranges import check_numbers


@dataclass(frozen=True)
class DistillData:
    """What a student is taught on; the teacher labels exactly what the student sees.

    Attributes:
        augment: changes of each image: `standard` (crop, and mirror where the data allows it); on top
            of it `rotate` (20 degrees), `vflip`, `jitter` (of colours) or `combined` (all); or `none`.
        mix: `mixup` or `cutmix`: blend the images of a batch with each other.
        unlabeled: a folder of more images without labels, of this kind or any other, nested or not; or
            a name (`digits`, ...), of whose training part no label is looked at.
        unlabeled_share: of every batch; by default what the numbers of images make of it.
        synthetic: images without labels: `noise`, or `composites` of training images, in the place of
            some of every batch and drawn anew each time; or more images by a `generator` that is
            trained first.
        synthetic_share: of every batch.
        synthetic_count: how many images the generator makes; as many as training images by default.
        generator_steps: of the generator's training, which sees all images alike: whole passes, as near
            to this number as they come, or one pass over as many images as the steps have room for.
    """

    augment: Policy = "standard"
    mix: Literal["none", "mixup", "cutmix"] = "none"
    unlabeled: Path | None = None
    unlabeled_share: float | None = None
    synthetic: Literal["none", "noise", "composites", "generator"] = "none"
    synthetic_share: float = 0.2
    synthetic_count: int | None = None
    generator_steps: int = 1500

    def check(self) -> None:
        """Refuse values that make no sense, before any time is spent.

        Raises:
            ValueError: a share or a number is out of range, or has nothing that it is of.
        """
        check_numbers({"distill_data": self})
        if self.unlabeled_share is not None and self.unlabeled is None:
            raise ValueError(
                f"--unlabeled-share {self.unlabeled_share}: name a folder, --unlabeled"
            )
        for name in ("synthetic_count", "generator_steps"):
            value = getattr(self, name)
            if self.synthetic != "generator" and value != getattr(type(self), name):
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {value}: of --synthetic generator only")
        if self.synthetic == "none" and self.synthetic_share != type(self).synthetic_share:
            raise ValueError(f"--synthetic-share {self.synthetic_share}: of what? Add --synthetic")

    def changes(self, classes: int) -> list[Change]:
        """How batches change with their labels."""
        changes: list[Change] = []
        if self.synthetic in ("noise", "composites"):
            changes.append(Replace(self.synthetic, self.synthetic_share))
        if self.mix != "none":
            changes.append(Mix(self.mix, classes))
        return changes

    def extra(self, train: ImageSet) -> list[Extra]:
        """The images without labels that join `train`.

        Raises:
            ValueError: as for `load_unlabeled`.
        """
        if self.unlabeled is None:
            return []
        images = load_unlabeled(self.unlabeled, train.size, train.classes)
        return [Extra(images, self.unlabeled_share)]
