"""Trainings and updates killed at random moments: each ends as if nothing had happened."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fuzz.process import Outcome, stepwell
from benchmarks.fuzz.subjects import SHORT, Subjects, tensors_digest
from benchmarks.fuzz.tally import Tally


def trainings(subjects: Subjects) -> dict[str, tuple[str, ...]]:
    """The arguments of each training to kill, by its recipe."""
    often = ("--checkpoint-minutes", "0")
    return {
        "ekd": (*subjects.train["nested"], *often),
        "supervised": ("supervised", *SHORT, "--net", "resnet8", *often),
        "distill": (
            "distill", *SHORT, "--student", "resnet8", "--teacher", str(subjects.nested), *often,
        ),
        "drnet": (*subjects.train["resolution"], *often),
        "netgraft": (
            "netgraft", "--teacher", f"{subjects.nested}@14", "--student", "resnet8", "--shots", "3",
            "--data", "digits", "--device", "cpu", "--graft-steps", "20", "--join-steps", "20", *often,
        ),
        "dkge": (*subjects.train["graph"], *often),
    }  # fmt: skip


def tries(subjects: Subjects, count: int, seed: int = 0) -> Iterator[Tally]:
    """Kill each training once or more, then let it end; kill updates of a graph alike."""
    rng = random.Random(seed)
    kinds = trainings(subjects)
    repeats = -(-count // (len(kinds) + 1))
    for name, arguments in kinds.items():
        yield _kill(subjects, rng, f"train {name}", ("train", *arguments, "--out"), None, repeats)
    update = ("kg", "update", "--add", str(subjects.changes), "--epochs", "30")
    yield _kill(subjects, rng, "kg update", update, subjects.graph, repeats)


def _kill(
    subjects: Subjects, rng: random.Random, name: str, command: tuple[str, ...], begin: Path | None,
    count: int,
) -> Tally:  # fmt: skip
    """Kill a command `count` times in all; it works in a folder named last, a copy of `begin`."""
    tally = Tally("kills", name)
    run = subjects.folder / "try" / "run"

    def fresh() -> None:
        shutil.rmtree(run.parent, ignore_errors=True)
        run.parent.mkdir()
        if begin is not None:
            shutil.copytree(begin, run)

    fresh()
    undisturbed = stepwell(*command, run, folder=subjects.folder, seconds=600)
    if undisturbed.code != 0:
        raise RuntimeError(f"{name} fails undisturbed: {undisturbed.err}")
    expected = tensors_digest(run)
    while tally.tries < count:
        fresh()
        for _ in range(min(rng.randint(1, 3), count - tally.tries)):
            moment = rng.uniform(0, undisturbed.seconds)
            killed = stepwell(
                *command,
                run,
                folder=subjects.folder,
                kill_when=lambda passed, moment=moment: passed > moment,
            )
            fault = killed.fault if killed.code != -9 else None
            tally.add(killed, fault, f"killed after {moment:.2f} s")
        end: Outcome = stepwell(*command, run, folder=subjects.folder, seconds=600)
        fault = end.fault or ("refused" if end.code else None)
        if fault is None and tensors_digest(run) != expected:
            fault = "other weights"
        if fault:
            tally.faults[fault] += 1
            tally.examples.append(
                {"fault": fault, "about": f"try {tally.tries}", "said": end.err[-600:]}
            )
        if leftovers := [p.name for p in run.rglob("*.part")]:
            tally.faults["file left behind"] += 1
            tally.examples.append({"fault": "file left behind", "about": str(leftovers), "said": ""})
    return tally
