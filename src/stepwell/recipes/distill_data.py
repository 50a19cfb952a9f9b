"""What a student is taught on, besides the training images as they are.

A teacher labels whatever the student sees: images changed more than usual, mixed with each other,
without labels of their own, or made.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from stepwell.data import Augment, Batches, Extra, ImageSet, Mix, Replace, load_unlabeled, seed_of
from stepwell.data.augment import Policy
from stepwell.data.mixing import Change
from stepwell.files import write_whole
from stepwell.methods import FlowMatching
from stepwell.nets.unet import UNet
from stepwell.ranges import check_numbers
from stepwell.training import Loop, Run, fit, optimizer_of
from stepwell.training.fit import device_of

#: Images a batch of the generator's training, at the most.
BATCH = 64
#: Decay of the moving average of the generator's weights, which draws its images.
AVERAGE = 0.995
#: Pixels of the images that are made at a time, which bounds the memory that this takes.
SAMPLED_PIXELS = 2**18


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


def with_generated(run: Run, train: Batches, data: DistillData, loop: Loop) -> Batches:
    """`train` with the images of a generator in it, if `data` asks for one; else as it is.

    The generator is a small U-Net, taught by flow matching on the labelled training images in a phase
    of its own. What it makes stands in RUN/synthetic.safetensors, so that a run that goes on has the
    same images.
    """
    if data.synthetic != "generator":
        return train
    images = train.images
    file = run.path / "synthetic.safetensors"
    objective = FlowMatching(UNet(widths=_widths(images.size)))
    batch = min(BATCH, train.batch_size)
    shown = images
    if len(images) > (room := data.generator_steps * batch):
        draw = torch.Generator().manual_seed(seed_of(train.seed, "shown to the generator"))
        shown = images.subset(torch.randperm(len(images), generator=draw)[:room])
    seen = Batches(
        shown,
        batch,
        mean=train.mean,
        std=train.std,
        augment=Augment(pad=0, flip=train.augment is not None and train.augment.flip),
        shuffle=True,
        seed=seed_of(train.seed, "generator"),
    )
    fit(
        objective,
        seen,
        optimizer_of("adamw", 2e-3, weight_decay=0.0),
        run,
        phase="generator",
        epochs=max(1, round(data.generator_steps / len(seen))),
        loop=dataclasses.replace(loop, average=AVERAGE),
    )
    if file.exists():
        pixels = _made_before(file)
    else:
        count = data.synthetic_count or len(images)
        drawn = objective.to(device_of(loop)).sample(
            count,
            images.size,
            seed=seed_of(train.seed, "synthetic"),
            batch_size=max(1, min(256, SAMPLED_PIXELS // images.size**2)),
        )
        mean, std = (torch.tensor(v)[:, None, None] for v in (train.mean, train.std))
        pixels = ((drawn * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        if run.writes:
            write_whole(file, to_bytes({"images": pixels}))
    made = ImageSet(pixels, torch.full((len(pixels),), -1), images.classes)
    return train.joined_by(Extra(made, data.synthetic_share))


def _made_before(file: Path) -> torch.Tensor:
    """The images in a file of `with_generated`, (n, 3, size, size).

    Raises:
        ValueError: it is damaged, or none of these.
    """
    try:
        return load_file(file)["images"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): remove it, and the generator's images are made again"
        ) from error


def _widths(size: int) -> tuple[int, ...]:
    """Levels of the generator, down to four pixels or by a factor of eight; thin on large maps."""
    levels = max(1, min(4, int(math.log2(size / 4)) + 1))
    return (16, 32, 64, 64) if levels == 4 else (32, 64, 64)[:levels]
