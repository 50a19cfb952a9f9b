"""Files damaged at random: each is refused by one line, or read as if it were whole."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.fuzz.process import Outcome, stepwell
from benchmarks.fuzz.subjects import Subjects, tensors_digest
from benchmarks.fuzz.tally import Tally

Damage = Callable[[random.Random, bytes], bytes]


def flip_a_bit(rng: random.Random, data: bytes) -> bytes:
    """One bit of one byte."""
    index = rng.randrange(len(data))
    return data[:index] + bytes([data[index] ^ 1 << rng.randrange(8)]) + data[index + 1 :]


def zero(rng: random.Random, data: bytes) -> bytes:
    """Up to 64 bytes of zeros, as a lost block leaves them."""
    start = rng.randrange(len(data))
    return data[:start] + bytes(min(64, len(data) - start)) + data[start + 64 :]


def truncate(rng: random.Random, data: bytes) -> bytes:
    """The beginning alone."""
    return data[: rng.randrange(len(data))]


def noise(rng: random.Random, data: bytes) -> bytes:
    """Up to 16 random bytes in place of others."""
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(min(16, len(data) - start)) + data[start + 16 :]


def append(rng: random.Random, data: bytes) -> bytes:
    """Bytes behind the end."""
    return data + rng.randbytes(rng.randint(1, 64))


def repeat(rng: random.Random, data: bytes) -> bytes:
    """A piece twice."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:]


DAMAGES: tuple[Damage, ...] = (flip_a_bit, zero, truncate, noise, append, repeat)


class Reader(NamedTuple):
    """A command that reads a file.

    file: within a copy of `run`.
    checked: whether another answer than that of the sound file is a silent change. Text that a person
        may edit, and pictures, have no checksum.
    answer: of a command that ended well; its output by default.
    """

    run: Path
    file: str
    command: Callable[[Path], tuple[str | Path, ...]]
    checked: bool = True
    answer: Callable[[Outcome, Path], str] = lambda outcome, _: outcome.out


def readers(subjects: Subjects) -> dict[str, Reader]:
    """Every file that a run, an export, a graph or a data set has, with a command that reads it."""
    picture = subjects.images / "one.png"

    def predict(run: Path) -> tuple[str | Path, ...]:
        return "predict", run, picture, "--json"

    def report(run: Path) -> tuple[str | Path, ...]:
        return "report", run, "--out", run.parent / "page.html"

    def query(run: Path) -> tuple[str | Path, ...]:
        return "kg", "query", run, "--head", "e1", "--relation", "r0", "--json"

    def go_on(run: Path) -> tuple[str | Path, ...]:
        return "train", *subjects.train["unfinished"], "--out", run

    def trained(_: Outcome, run: Path) -> str:
        return tensors_digest(run)

    made = {
        "net.safetensors": Reader(subjects.nested, "net.safetensors", predict),
        "net.safetensors, resolutions": Reader(subjects.resolution, "net.safetensors", predict),
        "net.safetensors, graph": Reader(subjects.graph, "net.safetensors", query),
        "last.ckpt": Reader(subjects.unfinished, "phases/nest/last.ckpt", go_on, True, trained),
        "config.json": Reader(subjects.nested, "config.json", report, False),
        "results.json": Reader(subjects.nested, "results.json", report, False),
        "metrics.jsonl": Reader(subjects.nested, "metrics.jsonl", report, False),
        "predictions.npz": Reader(subjects.nested, "predictions.npz", report, False),
        "triples": Reader(
            subjects.changes.parent, "new.tsv",
            lambda run: ("kg", "update", _graph_beside(subjects, run), "--add", run / "new.tsv"),
            False,
        ),
    }  # fmt: skip
    for image in sorted(subjects.images.iterdir()):
        name = image.name
        made[f"image, {image.suffix[1:]}"] = Reader(
            subjects.images,
            name,
            lambda run, name=name: ("predict", subjects.nested, run / name),
            False,
        )
    for depth in ("8.onnx", "net"):
        file = _exported(subjects, depth)
        made[f"exported {file.suffix[1:]}"] = Reader(
            file.parent, file.name,
            lambda run: (
                "train", "distill", *subjects.train["unfinished"][1:9], "--student", "resnet8",
                "--teacher", run / "8.onnx", "--out", run.parent / "student",
            ), False,
        )  # fmt: skip
    return made


def _exported(subjects: Subjects, name: str) -> Path:
    (file,) = (f for f in (subjects.nested / "export").iterdir() if f.name.startswith(name))
    return file


def _graph_beside(subjects: Subjects, run: Path) -> Path:
    graph = run.parent / "graph"
    shutil.rmtree(graph, ignore_errors=True)
    shutil.copytree(subjects.graph, graph)
    return graph


def tries(subjects: Subjects, count: int, seed: int = 0) -> Iterator[Tally]:
    """Damage every file about as often as any other; a tally for each, as it grows."""
    rng = random.Random(seed)
    all_readers = readers(subjects)
    repeats = -(-count // len(all_readers))
    for name, reader in all_readers.items():
        tally = Tally("damaged", name)
        folder = subjects.folder / "try"
        _lay_out(reader, folder)
        sound = stepwell(*reader.command(folder / "run"), folder=subjects.folder)
        if sound.code != 0:
            raise RuntimeError(f"{name}: the sound file is refused: {sound.err}")
        expected = reader.answer(sound, folder / "run")
        data = (reader.run / reader.file).read_bytes()
        for i in range(repeats):
            damage = DAMAGES[i % len(DAMAGES)]
            _lay_out(reader, folder)
            (folder / "run" / reader.file).write_bytes(damage(rng, data))
            outcome = stepwell(*reader.command(folder / "run"), folder=subjects.folder)
            changed = outcome.code == 0 and reader.answer(outcome, folder / "run") != expected
            fault = outcome.fault or ("silent change" if changed and reader.checked else None)
            tally.add(outcome, fault, f"{damage.__name__}, try {i}")
        yield tally


def _lay_out(reader: Reader, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "run").mkdir(parents=True)
    if reader.file == "new.tsv":
        shutil.copy(reader.run / reader.file, folder / "run")
    else:
        shutil.copytree(reader.run, folder / "run", dirs_exist_ok=True)
