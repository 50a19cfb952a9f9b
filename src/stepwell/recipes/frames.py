"""Train a network that sees all frames of a clip small, then looks at frames of its choice."""

from dataclasses import replace
from typing import Any

import torch

from stepwell.data.clips import Frames
from stepwell.data.image_flags import Augmentation, Images
from stepwell.flags import Flags, Hidden, checked
from stepwell.nets.families.glance import FRAMES
from stepwell.recipes import flags
from stepwell.tasks import classification
from stepwell.tasks.looking import Looking, LookingAblation, learn_to_look, start_glances
from stepwell.training import Loop, check_resumes
from stepwell.training.optimisation import Smoothed


def frames(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "resnet20",
    init: flags.Init = None,
    clips: Flags[Frames] = Frames(),
    looking: Flags[Looking] = Looking(),
    images: Flags[Images] = Images(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[LookingAblation] = LookingAblation(),
) -> dict[str, Any]:
    """Train a network that looks at the frames of a clip that tell most, until it is sure (AdaFrame).

    A clip is a file of several frames (GIF, WebP, APNG, TIFF). The first glance sees all frames, scaled
    down; each later one sees one frame. Every number of glances is a depth, so `eval --cascade`,
    budgets, `export` and `serve` work as for depths.

    Examples:
        stepwell train frames --data clips/ --out runs/frames
        stepwell train frames --data clips/ --out runs/frames --frames 9 --glances 3 --size 144
    """
    init = flags.file_of(init)
    training = classification.settled(training)
    clips.check()
    if images.flip:
        raise ValueError("--flip: a mirrored clip would have its frames in another order; leave it out")
    images = replace(images, flip=False)
    arguments = checked(locals())
    check_resumes("frames", arguments)
    flags.require_resnet(net, "a ResNet looks at each frame")
    torch.manual_seed(training.seed)
    name = f"{FRAMES}{net}/{looking.glances}"
    splits = classification.read_splits(data, out, images, name, pictures=clips)
    if not splits.train.drawing:
        raise ValueError(f"--data {data} holds no clips: give class folders of GIF or WebP files")
    nested, start = start_glances(splits, name, looking.fewer, net, init, frames=clips.frames)
    inputs = classification.prepare(
        splits, images, training, start=start, init=init, changes=Augmentation("none")
    )
    return learn_to_look(
        "frames", out, loop, arguments, inputs, nested, looking, training, ablation.where
    )
