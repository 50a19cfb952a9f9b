"""Learn a student from a trained teacher and a few images without labels, block by block."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from torch import nn

from stepwell.data import Batches, ImageSet, load_unlabeled, seed_of
from stepwell.data.images import Files
from stepwell.evaluation import evaluate
from stepwell.files import config_of
from stepwell.methods import Frozen, Graft, Grafting, OpenTeacher, open_teacher
from stepwell.methods.netgraft import GraftLoss, Start, Statistics
from stepwell.nets import BUILDERS, NestedNet, build
from stepwell.nets.cuts import Adaption
from stepwell.nets.timm_models import PREFIX
from stepwell.recipes.classification import Task, finish, open_classifier
from stepwell.training import Loop, fit
from stepwell.training.optim import Optim, cosine

Mean = tuple[float, float, float]
Schedule = Literal["both", "graft", "join", "direct"]


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
    lr: float = 3e-3,
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
        schedule: `both` stages; `graft` or `join` alone; `direct`: all blocks at once, in as many steps
            as both stages take.
        statistics: of the student's BatchNorm: those of each `batch`, or `frozen` ones of all images.
        loss: of the logits, against the teacher's: `direction`, whatever their length, or `mse`; or
            `features`, of each block's output, too.
        graft_steps: steps of each block alone.
        join_steps: steps after each block that is joined.
        lr: the highest learning rate (Adam).
        adaption_lr: of the 1×1 convolutions where widths differ.
        views: how often each image is there, changed at random, at the most; what the teacher makes of
            each is computed once.
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
    if bool(student) == bool(keep):
        raise ValueError(
            "say what to train: --student NAME, or --keep BLOCKS of each stage of the teacher"
        )
    by_name = not student or student in BUILDERS or student.startswith(PREFIX)
    if not by_name and Path(student.partition("@")[0]).exists():
        raise ValueError(
            f"--student {student} is a file or a folder: name a network (`stepwell list`); for a "
            "sub-net of the teacher, --keep BLOCKS in its place"
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
        grafting = graftings(nested, task.teacher, task.train.images.size)
        shown = views_of(task.train, min(views, _most_views(arguments, len(task.train.images))))
        found = {"images": len(task.train.images), "views": len(shown.images)}
        measure = _Measure(grafting, task)
        if trace:
            measure.teacher()
        for phase in _phases(grafting, schedule, graft_steps, join_steps):
            objective = Graft(
                grafting, phase.first, phase.last, images=shown.with_images(shown.images),
                settle=phase.settle, loss=loss,
            )  # fmt: skip
            fit(
                objective,
                shown,
                _adam(lr, adaption_lr),
                task.run,
                phase=phase.name,
                epochs=max(1, round(phase.steps / len(shown))),
                loop=loop,
            )
            if trace:
                measure.after(phase)
        merged, left = grafting.merged(shown.with_images(task.train.images))
        return finish(task, merged, found={"netgraft": found | measure.found | {"adaptions": left}})


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


class _Phase(NamedTuple):
    """Blocks `first` to `last` train for so many steps; those in `settle` for the first time."""

    name: str
    first: int
    last: int
    steps: int
    settle: tuple[int, ...] = ()


def _phases(
    grafting: Grafting, schedule: Schedule, graft_steps: int, join_steps: int
) -> Iterator[_Phase]:
    """The phases of a schedule, in order."""
    grafted = grafting.grafted
    first, *others = grafted
    if schedule == "direct":
        steps = steps_of(grafting, graft_steps, join_steps)
        yield _Phase("direct", first, grafted[-1], steps, grafted)
    if schedule in ("both", "graft"):
        for i in grafted:
            yield _Phase(f"graft-{i + 1}", i, i, graft_steps, (i,))
    if schedule in ("both", "join"):
        for before, i in zip(grafted, others, strict=False):
            new = (i,) if before != first else (first, i)
            yield _Phase(f"join-{i + 1}", first, i, join_steps, () if schedule == "both" else new)


def steps_of(grafting: Grafting, graft_steps: int, join_steps: int) -> int:
    """Steps that both stages of grafting take together: each block alone, then one after the other."""
    blocks = len(grafting.grafted)
    return blocks * graft_steps + (blocks - 1) * join_steps


class _Measure:
    """Accuracy on the test part after each phase, which decides nothing."""

    def __init__(self, grafting: Grafting, task: Task) -> None:
        self.grafting, self.task = grafting, task
        names = grafting.names
        self.found: dict[str, Any] = {
            "copied": [n for n, same in zip(names, grafting.copied, strict=True) if same],
            "pairs": [f"{a}={b}" for a, b in grafting.pairs],
            "grafted": {},
            "joined": {},
        }

    def teacher(self) -> None:
        """Of the teacher alone."""
        self.found["teacher"] = self._accuracy(0, -1)

    def after(self, phase: _Phase) -> None:
        """Of the teacher with the blocks in it that `phase` trained; at last of the student alone."""
        grafted = self.grafting.grafted
        kind = "grafted" if phase.name.startswith("graft") else "joined"
        name = self.grafting.names[phase.last]
        self.found[kind][name] = self._accuracy(phase.first, phase.last)
        if kind == "grafted" and phase.last == grafted[-1]:
            self.found["untuned"] = self._accuracy(grafted[0], grafted[-1])

    def _accuracy(self, first: int, last: int) -> float:
        return evaluate(self.grafting.mixed(first, last), self.task.test)["accuracy"]


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


def _most_views(arguments: dict[str, Any], images: int) -> int:
    """As many as the longest phase of both stages shows at all, and one at least.

    As many for the schedule `direct`, whose one phase is longer: all schedules see the same views.
    """
    steps = max(arguments["graft_steps"], arguments["join_steps"])
    return max(1, steps * int(arguments["batch_size"]) // images)


def views_of(train: Batches, count: int) -> Batches:
    """The few images, each `count` times: once as it is, then changed as in any training.

    Where training changes none, each once.
    """
    images = train.images
    pixels = images.pixels[torch.arange(len(images))]
    made = [pixels]
    if train.augment is not None:
        for view in range(1, count):
            generator = torch.Generator().manual_seed(seed_of(train.seed, "view", view))
            made.append(train.augment(pixels, generator))
    every = ImageSet(torch.cat(made), images.labels.repeat(len(made)), images.classes)
    return Batches(
        every, train.batch_size, mean=train.mean, std=train.std, shuffle=True, seed=train.seed
    )


def _adam(lr: float, adaption_lr: float) -> Optim:
    """Adam without decay, the adaptions at a rate of their own."""

    def make(objective: nn.Module) -> torch.optim.Optimizer:
        of_adaptions = {id(m.weight) for m in objective.modules() if isinstance(m, Adaption)}
        trained = [p for p in objective.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if id(p) not in of_adaptions], "lr": lr},
            {"params": [p for p in trained if id(p) in of_adaptions], "lr": adaption_lr},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]])

    return Optim(make, partial(cosine, warmup=0.05))
