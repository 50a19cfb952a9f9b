"""The images for distillation, beyond the plain training images.

A teacher can label any image: strongly augmented, mixed, unlabeled or synthetic.
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
    """The images that a student learns from; the teacher labels each as the student sees it.

    Attributes:
        augment: changes of each image: `standard` (crop, and mirror if the data allows it); with it
            `rotate` (20 degrees), `vflip`, `jitter` (of colours) or `combined` (all); or `none`.
        mix: `mixup` or `cutmix`: blend the images of a batch with each other.
        unlabeled: a folder of further images without labels, of any kind, nested or not; or a data
            set's name (`digits`, ...), for its training part without labels.
        unlabeled_share: of every batch; by default in proportion to the numbers of images.
        synthetic: images without labels: `noise` or `composites` of training images replace part of
            every batch; a `generator`, trained first, makes additional images.
        synthetic_share: of every batch.
        synthetic_count: number of images from the generator; by default that of training images.
        generator_steps: steps of the generator's training, rounded to whole passes; below one pass,
            fewer images are used.
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
        """Refuse invalid values before any time is spent.

        Raises:
            ValueError: a share or a number is out of range, or lacks the option that it belongs to.
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
        """The changes of whole batches with their labels."""
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
