"""Training data of distillation, besides the training images as they are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from stepwell.data.folders import load_unlabeled
from stepwell.data.image_flags import Changes
from stepwell.data.images import ImageSet
from stepwell.data.loader import Extra
from stepwell.data.mixing import Change, Replace
from stepwell.flags import Together, flag
from stepwell.ranges import check_numbers


@dataclass(frozen=True)
class DistillData(Changes, Together):
    """Images that a student is taught on; the teacher labels exactly what the student sees.

    Attributes:
        unlabeled: more images without labels: a folder, or a data set (digits).
        unlabeled_share: share of unlabeled images in every batch.
        synthetic: noise or composites of training images, which replace some of every batch;
            or a generator that is trained first and makes more images.
        synthetic_share: share of synthetic images in every batch.
        synthetic_count: images that the generator makes.
        generator_steps: length of the generator's training, rounded to whole epochs.
    """

    TITLE: ClassVar = "training image"
    unlabeled: Annotated[Path | None, flag("FOLDER")] = None
    unlabeled_share: Annotated[float | None, flag("X", "by number of images")] = None
    synthetic: Annotated[Literal["none", "noise", "composites", "generator"], flag("KIND")] = "none"
    synthetic_share: Annotated[float, flag("X")] = 0.2
    synthetic_count: Annotated[int | None, flag("N", "as many as training images")] = None
    generator_steps: int = 1500

    def check(self) -> None:
        """Raise ValueError for a number out of range, or one without the option that it belongs to."""
        check_numbers({"distill_data": self})
        if self.unlabeled_share is not None and self.unlabeled is None:
            raise ValueError(f"--unlabeled-share {self.unlabeled_share}: name a folder, --unlabeled")
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
        return changes + super().changes(classes)

    def extra(self, train: ImageSet) -> list[Extra]:
        """The images without labels that join `train`; errors as for `load_unlabeled`."""
        if self.unlabeled is None:
            return []
        images = load_unlabeled(self.unlabeled, train.size, train.classes, form=train.form)
        return [Extra(images, self.unlabeled_share)]
