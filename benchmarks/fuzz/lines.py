"""Command lines of nonsense: each ends well, or is refused by one line."""

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fuzz.process import stepwell
from benchmarks.fuzz.subjects import Subjects
from benchmarks.fuzz.tally import Tally

COMMANDS = (
    ("list",), ("train", "ekd"), ("train", "supervised"), ("train", "distill"), ("train", "drnet"),
    ("train", "netgraft"), ("train", "dkge"), ("eval",), ("cost",), ("calibrate",), ("predict",),
    ("export",), ("patch",), ("kg", "update"), ("kg", "query"), ("kg", "eval"), ("report",),
    ("verify",),
)  # fmt: skip
FLAG = re.compile(r"(?<=│ )--[a-z][a-z-]*")


def values(subjects: Subjects) -> list[str]:
    """Values to try for any flag: usual, wrong and hostile ones."""
    return [
        "", " ", "-1", "0", "1", "3", "1.5", "1e999", "nan", "inf", "-inf", "0x10", "1_000", "10" * 20,
        "digits", "none", "True", "é", "日本語", "\x1b[31m", "a" * 5000, "a/b", "../..", ".",
        "/dev/null", "/proc/self/mem", "*", "--", "-", "8=1,1,1", "8=1", "=", ",", "8", "14", "all",
        "1/2", "0/0", "3/2", "resnet18", "resnet14", "timm/resnet18", "{}", "[1]", "%s", "a:b", "@8",
        str(subjects.nested), str(subjects.resolution), str(subjects.graph), str(subjects.unfinished),
        str(subjects.images), str(subjects.images / "one.png"), str(subjects.changes),
        str(subjects.folder / "nothing"), f"{subjects.nested}@8",
        str(subjects.nested / "net.safetensors"),
    ]  # fmt: skip


def tries(subjects: Subjects, count: int, seed: int = 0) -> Iterator[Tally]:
    """Random flags and values for every command."""
    rng = random.Random(seed)
    pool = values(subjects)
    backup = subjects.folder / "kept"
    for name in ("nested", "resolution", "graph", "unfinished", "images"):
        shutil.copytree(subjects.folder / name, backup / name, dirs_exist_ok=True)
    for command in COMMANDS:
        tally = Tally("lines", " ".join(command))
        shown = stepwell(*command, "--help", folder=subjects.folder)
        flags = sorted({*FLAG.findall(shown.out), "--help", "--nonsense"})
        for _ in range(-(-count // len(COMMANDS))):
            arguments = [*command, *_some(rng, flags, pool)]
            if command[0] == "train":
                arguments += ["--out", str(subjects.folder / "out-of-try")]
            outcome = stepwell(*arguments, folder=subjects.folder, seconds=8)
            fault = outcome.fault
            if fault == "hang" and command[0] in ("train", "verify"):
                fault = None  # it trains
            tally.add(outcome, fault, " ".join(arguments)[:300])
            _put_back(subjects, backup)
        yield tally


def _some(rng: random.Random, flags: list[str], pool: list[str]) -> list[str]:
    parts = [rng.choice(pool) for _ in range(rng.randint(0, 2))]
    for flag in rng.sample(flags, min(len(flags), rng.randint(1, 4))):
        parts += [flag, *(rng.choice(pool) for _ in range(rng.choice((0, 1, 1, 1, 2))))]
    return parts


def _put_back(subjects: Subjects, backup: Path) -> None:
    shutil.rmtree(subjects.folder / "out-of-try", ignore_errors=True)
    for folder in backup.iterdir():
        shutil.rmtree(subjects.folder / folder.name, ignore_errors=True)
        shutil.copytree(folder, subjects.folder / folder.name)
