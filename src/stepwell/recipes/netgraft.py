"""Learn a student from a trained teacher and a few images without labels, block by block."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from stepwell.data import ImageSet, load_unlabeled, seed_of
from stepwell.data.decoding import Files
from stepwell.data.image_flags import Augmentation, Images
from stepwell.files import config_of
from stepwell.flags import Flags, Hidden, Together, checked, flag
from stepwell.methods.netgraft import GraftLoss
from stepwell.nets import NestedNet, build, is_network
from stepwell.nets.grafting.surgery import Grafting, Start, Statistics
from stepwell.recipes import flags
from stepwell.recipes.graft_phases import Schedule, Stages, learn
from stepwell.tasks import classification
from stepwell.teachers import Frozen, OpenTeacher
from stepwell.training import Loop, check_resumes
from stepwell.training.optimisation import Optimisation

#: Images per class that are drawn from the training part by default.
SHOTS = 10


@dataclass(frozen=True, kw_only=True)
class NetgraftAblation(Together):
    """Options for studies.

    Attributes:
        start: `teacher`: blocks that are like the teacher's are copied and stay, and layers of other
            blocks start with its weights where the shapes agree; `fresh`: nothing is copied.
        statistics: of the student's BatchNorm: those of each `batch`, or `frozen` ones of all images.
        adaption_lr: learning rate of the 1×1 convolutions where widths differ.
        trace: also measure the accuracy after every block, on the test part.
    """

    start: Start = "teacher"
    statistics: Statistics = "batch"
    adaption_lr: float = 1e-2
    trace: bool = True


@dataclass(frozen=True, kw_only=True)
class FewImages(Images, Augmentation):
    """The few images that a student is grafted on; no label is read.

    Attributes:
        unlabeled: folder, or data set (digits), to draw images from instead of --data.
        shots: images per class; shots × classes images are drawn.
        views: largest number of augmented views per image.
    """

    TITLE: ClassVar = "image"
    size: Annotated[int | None, flag("PIXELS", "the teacher's")] = None
    unlabeled: Annotated[Path | None, flag("FOLDER")] = None
    shots: Annotated[int | None, flag("N", "10; all of --unlabeled")] = None
    views: int = 64

    def check(self) -> None:
        """Refuse a part that does not exist, or a part of images that are not used."""
        super().check()
        if self.part is not None and self.unlabeled is not None:
            raise ValueError(
                f"--part {self.part} is of the training images, and --unlabeled {self.unlabeled} takes "
                "their place: drop one"
            )


@dataclass(frozen=True, kw_only=True)
class GraftTraining:
    """Length and rate of the two stages of grafting.

    Attributes:
        schedule: both stages; or, in as many steps as both take together: graft (each block
            alone), join, or direct (all blocks at once).
        graft_steps: steps of each block alone.
        join_steps: steps after each joined block.
        batch_size: images in a step.
        loss: direction of the logits, mse of the logits, or features: the direction, and each
            block's output too.
        lr: highest learning rate (Adam).
        seed: seed of weights, draw, order and augmentation.
    """

    schedule: Annotated[Schedule, flag("SCHEDULE")] = "both"
    graft_steps: int = 600
    join_steps: int = 600
    loss: Annotated[GraftLoss, flag("LOSS")] = "direction"
    batch_size: int = 64
    lr: float = 1e-2
    seed: int = 0


def netgraft(
    *,
    out: flags.Out,
    teacher: Annotated[str, flag("TEACHER")],
    student: Annotated[str, flag("NETWORK")] = "",
    keep: Annotated[tuple[int, ...], flag("N ...")] = (),
    data: Annotated[str | None, flag("DATA", "that of the teacher's run")] = None,
    stem: flags.Stem = "auto",
    blocks: Annotated[tuple[str, ...], flag("STAGE ...", "all that agree")] = (),
    images: Flags[FewImages] = FewImages(),
    teacher_images: Flags[flags.TeacherImages] = flags.TeacherImages(),
    training: Flags[GraftTraining] = GraftTraining(),
    loop: Flags[Loop] = Loop(),
    ablation: Hidden[NetgraftAblation] = NetgraftAblation(),
) -> dict[str, Any]:
    """Learn a student from a trained teacher and a few images without labels (Shen et al. 2021).

    Blocks of the student are trained one by one in the teacher's place, then joined. Images come from
    --unlabeled, or else from the training part of the data, whose labels are not looked at.

    Examples:
        stepwell train netgraft --teacher runs/alone --student resnet8 --shots 10 --out runs/few
        stepwell train netgraft --teacher runs/alone --student resnet8 --unlabeled new/ --out runs/few
        stepwell train netgraft --teacher runs/alone --keep 1 2 1 --out runs/shrunk

    Args:
        teacher: trained network: run, file (@DEPTH picks a depth), NETWORK=FILE or name (a download).
        student: network to train (`stepwell list`), unless there is a --keep.
        keep: instead of a student: blocks to keep of each stage of the teacher.
        data: data set whose test part measures the student.
        blocks: stages to cut behind: layer2, or layer2=stages.1.blocks.
    """
    arguments = checked(locals())
    _check_student(student, keep)
    opened = teacher_images.open((teacher,))
    source, depth = opened.nested
    data = data or _data_of(opened)
    images = replace(
        images, size=images.size or opened.sources[0].size or None,
        shots=images.shots if images.unlabeled else images.shots or SHOTS,
    )  # fmt: skip
    arguments |= {"data": data, "size": images.size, "shots": images.shots, "val_fraction": 0.0}
    check_resumes("netgraft", arguments)
    torch.manual_seed(training.seed)  # the student's, and not before: opening draws numbers, too
    splits = classification.read_splits(data, out, images)
    network = _shrunk(source, depth, keep, stem) if keep else student
    nested, _ = classification.start_network(splits, network, stem=stem)
    inputs = classification.prepare(
        splits, images,
        Optimisation(batch_size=training.batch_size, val_fraction=0.0, seed=training.seed),
        teacher=opened, choose=partial(_few, images=images, seed=training.seed),
    )  # fmt: skip
    if not isinstance(inputs.teacher, Frozen):
        raise ValueError(f"{teacher} gives no logits, which grafting compares")
    size = inputs.train.images.size
    grafting = Grafting(
        nested, source, depth=depth, input_shape=(3, size, size), pairs=blocks,
        start=ablation.start, statistics=ablation.statistics,
    )  # fmt: skip
    if training.schedule == "join" and len(grafting.grafted) < 2:
        (only,) = (grafting.names[i] for i in grafting.grafted)
        raise ValueError(
            f"--schedule join: only {only} is grafted, and joining needs two grafted blocks"
        )
    with classification.open_task("netgraft", out, loop, arguments, inputs, nested) as task:
        if opened.normalisation is None:
            warnings.warn(
                "images are normalised by mean and deviation of the "
                f"{len(task.train.images)} drawn images, which say little about the teacher's own",
                stacklevel=2,
            )
        results = learn(
            task, grafting, schedule=training.schedule,
            stages=Stages(training.graft_steps, training.join_steps), loss=training.loss,
            lr=training.lr, adaption_lr=ablation.adaption_lr, views=images.views,
            trace=ablation.trace, loop=loop,
        )  # fmt: skip
        _warn_of_chance(results, task.test.images.labels, training.lr)
        return results


def _check_student(student: str, keep: Sequence[int]) -> None:
    """Refuse two students, none, or a file."""
    if student and keep:
        raise ValueError(
            f"--student {student}, --keep {' '.join(map(str, keep))}: drop one, not both are trained"
        )
    if not student and not keep:
        raise ValueError(
            "say what to train: --student NAME, or --keep BLOCKS of each stage of the teacher"
        )
    by_name = not student or is_network(student)
    if not by_name and Path(student.partition("@")[0]).exists():
        raise ValueError(
            f"--student {student} is a file or a folder: name a network (`stepwell list`); for a "
            "sub-net of the teacher, --keep BLOCKS in its place"
        )


def _warn_of_chance(results: Mapping[str, Any], labels: Tensor, lr: float) -> None:
    """Warn about a student that is no better than a constant answer."""
    (accuracy,) = (results["test"][f"{depth}/accuracy"] for depth in results["costs"])
    guess = float(labels.bincount().max()) / len(labels)
    if accuracy <= guess:
        warnings.warn(
            f"the student has learned nothing: {100 * accuracy:.2f} % of the test images are right, "
            f"and {100 * guess:.2f} % are of the most frequent class: under another --out, try a lower "
            f"--lr than {lr:g}, or more --graft-steps and --join-steps",
            stacklevel=3,
        )


def _shrunk(teacher: NestedNet, depth: str, keep: tuple[int, ...], stem: str) -> NestedNet:
    """A network like the teacher with the first `keep` blocks of each stage; weights are fresh."""
    most = teacher.depths[depth]
    if stem != "auto":
        raise ValueError(f"--stem {stem}: with --keep the student has the teacher's stem")
    if len(keep) != len(most) or not all(1 <= k <= m for k, m in zip(keep, most, strict=True)):
        raise ValueError(
            f"--keep {' '.join(map(str, keep))}: the teacher has {len(most)} stages of "
            f"{' '.join(map(str, most))} blocks, of which each keeps one or more"
        )
    assert teacher.builder is not None  # what can be named as a teacher was built by name
    name, arguments = teacher.builder
    if "adaptions" in arguments:
        raise ValueError(
            f"the teacher has 1×1 convolutions that grafting left in it ({name}), so it cannot be "
            "shrunk: name a --student"
        )
    return build(name, **arguments | {"kept": keep})


def _data_of(teacher: OpenTeacher) -> str:
    """The data that the teacher's run was trained on."""
    source = teacher.sources[0]
    config = config_of(source.file, "put it right, or give --data") if source.file else {}
    if not config:
        raise ValueError(f"{source.name} is no run, so say what to measure the student on with --data")
    return str(config["arguments"]["data"])


def _few(train: ImageSet, *, images: FewImages, seed: int) -> ImageSet:
    """Draw `images.shots` images per class; the draw depends on neither their order nor labels."""
    unlabeled, shots = images.unlabeled, images.shots
    pool = train
    if unlabeled is not None:
        pool = load_unlabeled(unlabeled, train.size, train.classes, form=train.form)
    wanted = len(pool) if shots is None else shots * len(train.classes)
    if len(pool) < wanted:
        where = f"{unlabeled} holds" if unlabeled else "the training part has"
        most = len(pool) // len(train.classes)
        raise ValueError(
            f"--shots {shots} of {len(train.classes)} classes are {wanted} images, and {where} "
            f"{len(pool)}: {f'use --shots {most} or less, or ' if most else ''}add images"
        )
    if isinstance(pool.pixels, Files):
        keys = [f"{path.name} {path.stat().st_size}".encode() for path in pool.pixels.paths]
    else:
        keys = [row.numpy().tobytes() for row in pool.pixels]
    salt = str(seed_of(seed, "few")).encode()
    digests = [hashlib.blake2b(salt + key, digest_size=16).digest() for key in keys]
    chosen = sorted(range(len(pool)), key=lambda i: digests[i])[:wanted]
    few = pool.subset(torch.tensor(chosen))
    return replace(few, labels=torch.full((wanted,), -1), classes=train.classes)
