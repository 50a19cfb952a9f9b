"""Learn a student from a trained teacher and a few images without labels, block by block."""

import hashlib
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from stepwell.data import ImageSet, load_unlabeled, seed_of
from stepwell.data.decoding import Files
from stepwell.files import config_of
from stepwell.methods.netgraft import GraftLoss
from stepwell.nets import BUILDERS, NestedNet, build
from stepwell.nets.families.timm_models import PREFIX
from stepwell.nets.grafting.surgery import Grafting, Start, Statistics
from stepwell.recipes.graft_phases import Schedule, Stages, learn
from stepwell.tasks.classification import open_classifier
from stepwell.teachers import Frozen, OpenTeacher, open_teacher
from stepwell.training import Loop

Mean = tuple[float, float, float]


def netgraft(
    *,
    out: Path,
    teacher: str,
    student: str = "",
    keep: tuple[int, ...] = (),
    unlabeled: Path | None = None,
    shots: int = 10,
    data: str | None = None,
    stem: Literal["auto", "imagenet", "small"] = "auto",
    blocks: tuple[str, ...] = (),
    start: Start = "teacher",
    schedule: Schedule = "both",
    statistics: Statistics = "batch",
    loss: GraftLoss = "direction",
    graft_steps: int = 600,
    join_steps: int = 600,
    batch_size: int = 64,
    lr: float = 1e-2,
    adaption_lr: float = 1e-2,
    views: int = 64,
    trace: bool = True,
    teacher_mean: Mean | None = None,
    teacher_std: Mean | None = None,
    size: int | None = None,
    flip: bool | None = None,
    part: str | None = None,
    seed: int = 0,
    loop: Annotated[Loop, tyro.conf.OmitArgPrefixes] = Loop(),
) -> dict[str, Any]:
    """Learn a student from a trained teacher and a few images without labels (Shen et al. 2021).

    Blocks of the student are trained one by one in the teacher's place, then joined. Images come from
    --unlabeled, or else from the training part of the data, whose labels are not looked at.

    Examples:
        stepwell train netgraft --teacher runs/alone --student resnet8 --shots 10 --out runs/few
        stepwell train netgraft --teacher runs/alone --student resnet8 --unlabeled new/ --out runs/few
        stepwell train netgraft --teacher runs/alone --keep 1 2 1 --out runs/shrunk

    Args:
        out: the run directory; if it holds this run already, training goes on where it stopped.
        teacher: a run directory, or the file of its network (PATH@DEPTH for another depth than the
            deepest), NETWORK=FILE for plain weights under torchvision's or timm's names, or a network
            by name with its published weights (a download).
        student: the network to train (`stepwell list`).
        keep: in the place of a student: the teacher itself, of which each stage keeps its first blocks,
            so many.
        unlabeled: a folder of images, nested or not, whose subfolders mean nothing; or a name
            (`digits`, ...), of whose training part no label is looked at.
        shots: images a class: so many times the number of classes are drawn at random.
        data: what the student is measured on: its test part. By default that of the teacher's run.
        stem: first layers, where there is a choice; `auto` takes the small ones below 64 pixels.
        blocks: stages behind which both networks are cut: layer2, or layer2=stages.1.blocks where the
            teacher's has another name; by default wherever their resolutions agree.
        start: `teacher`: blocks that are like the teacher's are copied and stay, and layers of other
            blocks start with its weights where they have the same shapes; `fresh`: nothing is copied.
        schedule: `both` stages; or, in as many steps as both take together, the stage `graft` or `join`
            alone, or all blocks at once, `direct`.
        statistics: of the student's BatchNorm: those of each `batch`, or `frozen` ones of all images.
        loss: of the logits, against the teacher's: `direction`, whatever their length, or `mse`; or
            `features`, of each block's output, too.
        graft_steps: steps of each block alone, with both stages.
        join_steps: steps after each block that is joined, with both stages.
        lr: the highest learning rate (Adam).
        adaption_lr: of the 1×1 convolutions where widths differ.
        views: how often each image is there, changed at random: as often as a phase can show it and
            2 GiB hold it, at the most; what the teacher makes of each is computed once.
        trace: also measure the accuracy after every block, on the test part.
        teacher_mean: of pixels scaled to [0, 1], per channel, for a teacher that does not say how its
            images are normalised.
        teacher_std: as --teacher-mean.
        size: height and width of the images; by default those of the teacher.
        flip: mirror images; by default where the data allows it.
        part: draw from a part of the training images, I/N, in which every class has its share.
        seed: of weights, draw, order and augmentation.
    """
    arguments = dict(locals())
    if student and keep:
        raise ValueError(
            f"--student {student}, --keep {' '.join(map(str, keep))}: drop one, not both are trained"
        )
    if not student and not keep:
        raise ValueError(
            "say what to train: --student NAME, or --keep BLOCKS of each stage of the teacher"
        )
    by_name = not student or student in BUILDERS or student.startswith(PREFIX)
    if not by_name and Path(student.partition("@")[0]).exists():
        raise ValueError(
            f"--student {student} is a file or a folder: name a network (`stepwell list`); for a "
            "sub-net of the teacher, --keep BLOCKS in its place"
        )
    if part is not None and unlabeled is not None:
        raise ValueError(
            f"--part {part} is of the training images, and --unlabeled {unlabeled} takes their place: "
            "drop one"
        )
    taught_by = open_teacher((teacher,), mean=teacher_mean, std=teacher_std)
    source, depth = taught_by.nested
    arguments["data"] = data or _data_of(taught_by)
    arguments["size"] = size or taught_by.sources[0].size or None
    torch.manual_seed(seed)  # the student's, and not before: opening draws numbers, too
    network = _shrunk(source, depth, keep, stem) if keep else student

    def graftings(nested: NestedNet, ready: nn.Module | None, size: int, *_: object) -> Grafting:
        if not isinstance(ready, Frozen):
            raise ValueError(f"{teacher} gives no logits, which grafting compares")
        grafting = Grafting(
            nested, source, depth=depth, input_shape=(3, size, size), pairs=blocks, start=start,
            statistics=statistics,
        )  # fmt: skip
        if schedule == "join" and len(grafting.grafted) < 2:
            (only,) = (grafting.names[i] for i in grafting.grafted)
            raise ValueError(
                f"--schedule join: {only} alone is grafted, so nothing is to be joined"
            )
        return grafting

    with open_classifier(
        "netgraft", arguments | {"val_fraction": 0.0}, network, teacher=taught_by, check=graftings,
        choose=partial(_few, unlabeled=unlabeled, shots=shots, seed=seed),
    ) as (task, nested, _):  # fmt: skip
        if taught_by.normalisation is None:
            warnings.warn(
                f"images are normalised by mean and deviation of the {len(task.train.images)} that are "
                "drawn, which tell little of those that the teacher was trained on",
                stacklevel=2,
            )
        results = learn(
            task, graftings(nested, task.teacher, task.train.images.size), schedule=schedule,
            stages=Stages(graft_steps, join_steps), loss=loss, lr=lr, adaption_lr=adaption_lr,
            views=views, trace=trace, loop=loop,
        )  # fmt: skip
        _warn_of_chance(results, task.test.images.labels, lr)
        return results


def _warn_of_chance(results: Mapping[str, Any], labels: Tensor, lr: float) -> None:
    """Say so where the student answers no better than one that names the same class always."""
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
    """A network like the teacher, of which each stage keeps so many blocks; with fresh weights.

    Raises:
        ValueError: it has fewer blocks, or 1×1 convolutions that grafting left; `stem` asks for one.
    """
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
    """The data that a teacher's run was trained on."""
    source = teacher.sources[0]
    config = config_of(source.file, "put it right, or give --data") if source.file else {}
    if not config:
        raise ValueError(
            f"{source.name} is no run, so say what to measure the student on with --data"
        )
    return str(config["arguments"]["data"])


def _few(train: ImageSet, *, unlabeled: Path | None, shots: int, seed: int) -> ImageSet:
    """So many images a class, without labels, out of a folder or else of the training part.

    Which they are depends on the images alone, not on their order or labels.

    Raises:
        ValueError: there are too few.
    """
    wanted = shots * len(train.classes)
    pool = train if unlabeled is None else load_unlabeled(unlabeled, train.size, train.classes)
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
    return ImageSet(few.pixels, torch.full((wanted,), -1), train.classes)
