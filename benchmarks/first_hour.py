"""The first hour of a new user: own pictures of every odd kind, every command of README and guide.

`python -m benchmarks.first_hour` runs the commands as they stand there; `--short` trains an epoch of a
small network. Each step has an expected outcome. The pictures are crops of the two photographs that
scikit-learn ships.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/guide.md")
COMMAND = re.compile(r"^    stepwell (.*?)(?: +#.*)?$", re.MULTILINE)
#: What `--short` writes in place of the pages' networks; the guide's own test does alike.
SHORTER = {
    "resnet34": "resnet14", "--depths small=1,1,1,1 18": "--depths small=1,1,1 18=2,1,1",
    "--depths 18 small=1,1,1,1": "--depths 18=2,1,1 small=1,1,1",
    "--depths 18 --size": "--depths 18=2,1,1 --size", "--depths 26=3,3,3,3": "--depths 26=2,2,1",
    "--depth 34 --beyond 18": "--depth 14 --beyond 18", "--size 64": "--size 16",
    "--budget-ms 30 ": "--budget-ms 10000 ",
}  # fmt: skip


class Step(NamedTuple):
    """A command and what it must do.

    code: its exit code.
    words: stand in what it prints, on either stream.
    """

    command: str
    code: int = 0
    words: tuple[str, ...] = ()


class Happened(NamedTuple):
    """The outcome of a step; `wrong` says what differs from the expected outcome, if anything."""

    step: Step
    seconds: float
    wrong: str


def write_pictures(folder: Path, count: int = 60) -> None:
    """Write `photos/` with two classes of crops in every odd form, and `holiday/` without classes.

    One class has a tenth of the other's pictures.
    """
    rng = np.random.default_rng(0)
    photos = dict(zip(("china town", "flower"), load_sample_images().images, strict=True))
    for (name, photo), number in zip(photos.items(), (count, max(6, count // 10)), strict=True):
        place = folder / "photos" / name
        place.mkdir(parents=True)
        for i in range(number):
            side = int(rng.integers(60, 300))
            top, left = (int(rng.integers(0, length - side)) for length in photo.shape[:2])
            picture = Image.fromarray(photo[top : top + side, left : left + side])
            _save_in_form(picture, place, i)
    (folder / "photos" / ".DS_Store").write_bytes(b"\0")
    (folder / "photos" / "flower" / "Thumbs.db").write_bytes(b"\0")
    (folder / "photos" / "notes.txt").write_text("from our trip")
    holiday = folder / "holiday"
    holiday.mkdir()
    for i in range(14):
        _save_in_form(Image.fromarray(photos["flower"][40 * i % 300 :, 100:400]), holiday, i)


def _save_in_form(picture: Image.Image, folder: Path, i: int) -> None:
    """Save a picture in the form number `i`."""
    wide = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    match i % 14:
        case 0:
            picture.save(folder / f"{i} grüße.JPG")
        case 1:
            picture.convert("L").save(folder / f"{i}.png")
        case 2:
            picture.convert("P").save(folder / f"{i}.gif")
        case 3:
            picture.convert("RGBA").save(folder / f"{i}.png")
        case 4:
            Image.fromarray(wide).save(folder / f"{i}.png")
        case 5:
            picture.convert("CMYK").save(folder / f"{i}.jpeg")
        case 6:
            picture.save(folder / f"{i}.jpg", exif=exif)
        case 7:
            picture.convert("LA").save(folder / f"{i}.png")
        case 8:
            picture.convert("1").save(folder / f"{i}.bmp")
        case 9:
            picture.save(folder / f"{i}.tif")
        case 10:
            picture.save(folder / f"{i}.webp")
        case 11:
            frames = [picture.rotate(90 * turns) for turns in range(3)]
            frames[0].save(folder / f"{i}.gif", save_all=True, append_images=frames[1:])
        case 12:
            picture.resize((40, 400)).save(folder / f"{i}.jpg")
        case _:
            picture.save(folder / f"{i}.jpg", progressive=True)


def steps(short: bool) -> list[Step]:
    """The commands of the pages, between what a newcomer gets wrong."""
    shown = []
    for page in PAGES:
        for command in COMMAND.findall((ROOT / page).read_text(encoding="utf-8")):
            command = re.sub(r"runs/photos", f"runs/{Path(page).stem.lower()}", command)
            if short:
                for old, new in SHORTER.items():
                    command = f"{command} ".replace(old, new).strip()
                if command.startswith("train"):
                    command += " --epochs 1 --batch-size 16"
            shown.append(Step(command))
    run = "runs/readme"
    wrong = [
        Step("", 0, ("stepwell train ekd",)),
        Step("trian ekd", 2, ("no command 'trian'", "train")),
        Step("train ekd --data fotos/ --out runs/x", 2, ("fotos",)),
        Step("train ekd --data photos/notes.txt --out runs/x", 2, ("notes.txt",)),
        Step("train ekd --data photos/ --out runs/x --epochs 0", 2, ("--epochs 0: must be 1 or more",)),
        Step("train ekd --data photos/ --out runs/x --epoch 3", 2, ("--epochs",)),
        Step("train ekd --data photos/ --out photos", 2, ("photos",)),
        Step(f"predict {run} holiday --depth 99", 2, ("no depth '99'",)),
        Step(f"predict {run} nowhere.jpg", 2, ("nowhere.jpg",)),
        Step(f"predict {run} holiday --budget-ms 0.000001", 2, ("no depth has at most",)),
        Step("predict photos holiday", 2, ("photos is no run directory",)),
        Step(f"report {run} {run}", 2, ("--out",)),
    ]
    return [*wrong[:7], *shown, *wrong[7:]]


def in_process_of_its_own(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run `stepwell ARGUMENTS` in `folder`: its exit code, and what it printed on both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "stepwell", *arguments], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"STEPWELL_QUIET": "1", "COLUMNS": "120"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def take(step: Step, code: int, output: str) -> str:
    """Compare an outcome with the expected one; the difference in words, or nothing."""
    if "Traceback" in output:
        return f"a traceback: {output.strip().splitlines()[-1]}"
    if code != step.code:
        return f"exit code {code}: {output.strip()[-300:]}"
    missing = [word for word in step.words if word not in " ".join(output.split())]
    return f"does not say {missing[0]!r}: {output.strip()[-300:]}" if missing else ""


def run(
    folder: Path,
    short: bool,
    call: Callable[[list[str], Path], tuple[int, str]] = in_process_of_its_own,
) -> list[Happened]:
    """Write the pictures and take all steps; a line for each as it ends."""
    write_pictures(folder, 28 if short else 400)
    happened = []
    for step in steps(short):
        begin = time.monotonic()
        wrong = take(step, *call(shlex.split(step.command), folder))
        happened.append(Happened(step, time.monotonic() - begin, wrong))
        seconds = happened[-1].seconds
        sys.stderr.write(f"{'WRONG' if wrong else 'ok':5} {seconds:7.1f} s  stepwell {step.command}\n")
        if wrong:
            sys.stderr.write(f"      {wrong}\n")
    return happened


def main() -> None:
    """Run it from the command line; the exit code is 1 if any step went wrong."""
    parser = argparse.ArgumentParser(description="The first hour of a new user.")
    parser.add_argument("--short", action="store_true", help="an epoch of a small network")
    parser.add_argument("--folder", type=Path, required=True, help="an empty or new folder to work in")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if any(arguments.folder.iterdir()):
        parser.error(f"{arguments.folder} is not empty")
    happened = run(arguments.folder, arguments.short)
    wrong = [h for h in happened if h.wrong]
    total = sum(h.seconds for h in happened)
    json.dump({"steps": len(happened), "wrong": len(wrong), "seconds": round(total)}, sys.stdout)
    sys.stdout.write("\n")
    raise SystemExit(int(bool(wrong)))


if __name__ == "__main__":
    main()
