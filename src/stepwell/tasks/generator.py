"""Unlabeled images from a generator that is trained first."""

import dataclasses
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from stepwell.data import Augment, Batches, Extra, ImageSet, seed_of
from stepwell.data.distill_data import DistillData
from stepwell.files import damaged, write_whole
from stepwell.methods import FlowMatching
from stepwell.nets.families.unet import UNet
from stepwell.training import Loop, Run, fit, optimizer_of
from stepwell.training.loop import device_of

#: Largest batch of the generator's training.
BATCH = 64
#: Decay of the moving average of the generator's weights, which draws its images.
AVERAGE = 0.995
#: Pixels generated at a time, which bounds the memory.
SAMPLED_PIXELS = 2**18


def with_generated(run: Run, train: Batches, data: DistillData, loop: Loop) -> Batches:
    """Add the images of a generator to `train`, if `data` asks for a generator.

    The generator is a small U-Net, taught by flow matching on the labelled training images in a phase
    of its own. Its images are written to RUN/synthetic.safetensors; a resumed run reads them there.
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
        shown, batch, mean=train.mean, std=train.std,
        augment=Augment(pad=0, flip=train.augment is not None and train.augment.flip), shuffle=True,
        seed=seed_of(train.seed, "generator"),
    )  # fmt: skip
    fit(
        objective, seen, optimizer_of("adamw", 2e-3, weight_decay=0.0), run, phase="generator",
        epochs=max(1, round(data.generator_steps / len(seen))),
        loop=dataclasses.replace(loop, average=AVERAGE),
    )  # fmt: skip
    if file.exists():
        pixels = _made_before(file)
    else:
        count = data.synthetic_count or len(images)
        drawn = objective.to(device_of(loop)).sample(
            count, images.size, seed=seed_of(train.seed, "synthetic"),
            batch_size=max(1, min(256, SAMPLED_PIXELS // images.size**2)),
        )  # fmt: skip
        mean, std = (torch.tensor(v)[:, None, None] for v in (train.mean, train.std))
        pixels = ((drawn * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        if run.writes:
            write_whole(file, to_bytes({"images": pixels}))
    made = ImageSet(pixels, torch.full((len(pixels),), -1), images.classes)
    return train.joined_by(Extra(made, data.synthetic_share))


def _made_before(file: Path) -> torch.Tensor:
    """The images in a file of `with_generated`, (n, 3, size, size)."""
    try:
        return load_file(file)["images"]
    except (SafetensorError, KeyError) as error:
        raise damaged(file, error, "remove it, and the generator's images are made again") from error


def _widths(size: int) -> tuple[int, ...]:
    """Channels of the generator's levels, down to four pixels or a factor of eight."""
    levels = max(1, min(4, int(math.log2(size / 4)) + 1))
    return (16, 32, 64, 64) if levels == 4 else (32, 64, 64)[:levels]
