"""Flags that several recipes share, each documented once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from stepwell.flags import flag
from stepwell.nets.files.container import network_file
from stepwell.teachers import OpenTeacher, open_teacher

Out = Annotated[Path, flag("FOLDER", help="run directory; an unfinished run goes on where it stopped.")]
Data = Annotated[str, flag("DATA", help="class folders in a folder, or a name (`stepwell list`).")]
_LABELLED = "class folders, train.tsv, or a name (`stepwell list`)."
Labelled = Annotated[str, flag("DATA", help=_LABELLED)]
Net = Annotated[str, flag("NETWORK", help="network to train (`stepwell list`).")]
_NETWORK = "network (`stepwell list`), or text encoder (folder)."
NetOrEncoder = Annotated[str, flag("NETWORK", help=_NETWORK)]
_SUB_NETS = "sub-nets: names of the family (20), or NAME=BLOCKS,..."
SubNets = Annotated[tuple[str, ...], flag("DEPTH ...", help=_SUB_NETS)]
Depths = Annotated[tuple[str, ...] | None, flag("DEPTH ...", "two", help=_SUB_NETS)]
Calibrated = Annotated[
    tuple[str, ...], flag("DEPTH ...", help="sub-nets added after training, with new norm statistics.")
]
Stages = Annotated[
    tuple[str, ...],
    flag("STAGE ...", "the network's own", help='stages of blocks, such as "blocks[0:8]".'),
]
Stem = Annotated[
    Literal["auto", "imagenet", "small"],
    flag("STEM", help="first layers: imagenet, small, or auto (by size)."),
]
#: In this order everywhere: `typing` caches the first union of these members, and a command line
#: whose union begins with Path reads "pretrained" as a file.
Init = Annotated[
    Literal["pretrained"] | Path | None,
    flag("RUN|FILE", "random", help="weights: run, file, or pretrained (a download)."),
]
TeacherNames = Annotated[
    tuple[str, ...],
    flag(
        "TEACHER ...",
        help="run or file (@DEPTH picks a depth), ONNX file, NETWORK=FILE (plain weights) or timm/NAME "
        "(a download); several teach by their mean.",
    ),
]
Mean = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class TeacherImages:
    """Normalisation of the images of a teacher that does not say it itself.

    Attributes:
        teacher_mean: mean of the teacher's images, in [0, 1].
        teacher_std: standard deviation of the teacher's images.
    """

    TITLE: ClassVar = "teacher image"
    teacher_mean: Annotated[Mean | None, flag("R G B", "its own")] = None
    teacher_std: Annotated[Mean | None, flag("R G B", "its own")] = None

    def open(self, names: Sequence[str]) -> OpenTeacher:
        """The teachers of these names, opened; errors as for `open_teacher`."""
        return open_teacher(names, mean=self.teacher_mean, std=self.teacher_std)


@dataclass(frozen=True, kw_only=True)
class Teachers(TeacherImages):
    """Teachers of all depths, and the normalisation of their images."""

    TITLE: ClassVar = "teacher"
    teacher: TeacherNames = ()


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Weights of the losses by which a teacher teaches.

    Attributes:
        temperature: temperature of the soft targets.
        ce: weight of the labels; with zero no label is read.
        kl: weight of the teacher's soft targets.
        attention: weight of attention transfer on the stages' features.
    """

    TITLE: ClassVar = "loss"
    temperature: float = 3.0
    ce: float | None = 1.0
    kl: float | None = 1.0
    attention: float = 0.0


def file_of(init: Literal["pretrained"] | Path | None) -> Literal["pretrained"] | Path | None:
    """The file that --init names: of a run directory, the network in it."""
    return network_file(init) if isinstance(init, Path) and init.is_dir() else init


def require_resnet(net: str, why: str) -> None:
    """Raise ValueError for the name of a network that is no ResNet of ours; `why` it must be one."""
    if not net.startswith("resnet"):
        raise ValueError(f"--net {net}: {why}: name a ResNet, such as resnet20")
