"""The files of labelled texts: the flags that name them, and their parts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from tyro.conf import FlagCreatePairsOff

from stepwell.data.text import LABEL
from stepwell.data.tokens import TokenSet
from stepwell.flags import flag

#: The training part of a folder of texts, and usual names of its test part.
TRAIN, TESTS = "train.tsv", ("dev.tsv", "test.tsv")
#: Share of the training texts that are set aside where there is no test part.
ASIDE = 0.2


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """Files and columns of texts.

    Attributes:
        test: texts to test on.
        valid: texts to choose the epoch by, in place of --val-fraction.
        text: one or two columns of texts.
        label: column of labels.
        regression: predict the numbers in the column of labels.
        max_tokens: longest text; a longer one is cut.
    """

    TITLE: ClassVar = "text"
    test: Annotated[Path | None, flag("FILE", "dev.tsv beside, or a fifth")] = None
    valid: Annotated[Path | None, flag("FILE")] = None
    text: Annotated[tuple[str, ...], flag("COLUMN ...", "usual names")] = ()
    label: Annotated[str, flag("COLUMN")] = LABEL
    regression: FlagCreatePairsOff[Annotated[bool, flag()]] = False
    max_tokens: Annotated[int | None, flag("N", "128")] = None


class TextParts(NamedTuple):
    """The parts of labelled texts; `aside`: the test part is some of the training texts."""

    train: TokenSet
    test: TokenSet
    validation: TokenSet | None
    aside: bool


def holds_texts(data: str) -> bool:
    """Check whether `data` names a tab-separated file, or a folder of them without folders in it."""
    path = Path(data)
    if path.suffix == ".tsv" or (path / TRAIN).is_file():
        return True
    return any(path.glob("*.tsv")) and not any(p.is_dir() for p in path.glob("[!.]*"))


def training_file(data: Path) -> Path:
    """The file of the training part; ValueError, which says what is needed, if it is not there."""
    file = data / TRAIN if data.is_dir() else data
    if not file.is_file():
        where = f"{data} has no {TRAIN}" if data.is_dir() else f"no file or folder {data}"
        raise ValueError(
            f"{where}: name a tab-separated file of texts with a header, or a folder with {TRAIN} and, "
            f"to test on, {' or '.join(TESTS)}"
        )
    return file


def test_file(data: Path) -> Path | None:
    """The file of the test part in a folder; None if there is none."""
    return next((file for name in TESTS if (file := data / name).is_file()), None)


def read_parts(data: Path, files: TextFiles, read: Callable[[Path], TokenSet]) -> TextParts:
    """Read the parts of `data`, a file or a folder, by `read`; ValueError for too few texts."""
    train = read(training_file(data))
    test = files.test or test_file(data)
    validation = None if files.valid is None else read(files.valid)
    if test is not None:
        return TextParts(train, read(test), validation, False)
    own, aside = train.split(ASIDE)
    if not len(aside) or len(own.labels.unique()) < 2:
        raise ValueError(
            f"{training_file(data)} has {len(train)} texts, too few to set some aside to test on: add "
            "texts, or name others with --test"
        )
    return TextParts(own, aside, validation, True)
