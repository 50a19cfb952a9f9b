"""Small trained runs of every kind, which the tries damage."""

import csv
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from benchmarks.fuzz.process import stepwell

#: What a short training of a network on images says.
SHORT = ("--data", "digits", "--part", "1/8", "--epochs", "2", "--batch-size", "64", "--device", "cpu")
NESTED = ("--net", "resnet14", "--depths", "8")


class Subjects(NamedTuple):
    """Folders: a run of each kind, an unfinished one, images, and changes of a graph.

    train: the arguments of each run, by the run's name.
    """

    folder: Path
    nested: Path
    resolution: Path
    graph: Path
    unfinished: Path
    images: Path
    changes: Path
    train: dict[str, tuple[str, ...]]


def make(folder: Path) -> Subjects:
    """Train the runs; a few seconds each."""
    images, triples, changes = folder / "images", folder / "base.tsv", folder / "new.tsv"
    _write_images(images)
    _write_triples(triples, changes)
    train = {
        "nested": ("ekd", *SHORT, *NESTED),
        "resolution": ("drnet", *SHORT, "--net", "resnet8", "--sizes", "8", "4"),
        "graph": (
            "dkge", "--triples", str(triples), "--dim", "8", "--warm-epochs", "3", "--epochs", "2",
        ),
        "unfinished": (
            "ekd", *SHORT, *NESTED, "--schedule", "plain", "--checkpoint-minutes", "0",
        ),
    }  # fmt: skip
    for name, arguments in train.items():
        outcome = stepwell("train", *arguments, "--out", folder / name, folder=folder, seconds=300)
        if outcome.code != 0:
            raise RuntimeError(f"could not train {name}: {outcome.err}")
    shutil.copytree(folder / "unfinished", folder / "finished")
    _stop_midway(folder, train["unfinished"])
    export = stepwell("export", folder / "nested", "--depth", "all", folder=folder)
    if export.code != 0:
        raise RuntimeError(f"could not export: {export.err}")
    return Subjects(
        folder, folder / "nested", folder / "resolution", folder / "graph", folder / "unfinished",
        images, changes, train,
    )  # fmt: skip


def _stop_midway(folder: Path, arguments: tuple[str, ...]) -> None:
    """Make `unfinished` a run that was killed between its first checkpoint and its end."""
    out = folder / "unfinished"
    for _ in range(10):
        shutil.rmtree(out, ignore_errors=True)
        stepwell(
            "train", *arguments, "--out", out, folder=folder,
            kill_when=lambda _: bool([*out.glob("phases/*/last.ckpt")]),
        )  # fmt: skip
        if not (out / "results.json").exists():
            return
    raise RuntimeError("no kill left an unfinished run")


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    pixels = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
    for name in ("one.png", "two.jpg", "three.gif", "four.tif", "five.webp", "six.bmp"):
        Image.fromarray(pixels).save(folder / name)


def _write_triples(base: Path, changes: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {
        (f"e{a}", f"r{b}", f"e{c}")
        for a, b, c in rng.integers(0, (40, 4, 40), (300, 3)).tolist()
        if a != c
    }
    with base.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(sorted(rows))
    changes.write_text("e1\tr0\tnew\nnew\tr1\te2\n")


def tensors_digest(run: Path) -> str:
    """A hash of the tensors of a run's result, whatever its header measured."""
    import hashlib

    digest = hashlib.sha256()
    (file,) = (f for f in (run / "net.safetensors", run / "graph.safetensors") if f.exists())
    for name, value in sorted(load_file(file).items()):
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()
