"""Files whose header was changed and whose checksum is right: what a hostile author could write."""

import copy
import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.fuzz.process import stepwell
from benchmarks.fuzz.subjects import Subjects
from benchmarks.fuzz.tally import Tally
from stepwell.nets.files.container import digest

#: What no field expects.
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 10**6, 10**12, 0.5, 1e308, math.nan, "", "x", "../../x", "\x1b[2J",
    [], {}, [1], [None], ["x"], {"x": 1}, [[1]], [10**6] * 4, {"8": 1}, "timm/resnet18", "resnet152",
)  # fmt: skip


def mutate(rng: random.Random, header: dict[str, Any]) -> str:
    """Change one place of a header at random, and say which."""
    places: list[tuple[Any, Any, str]] = []

    def visit(value: Any, name: str) -> None:
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in children:
            places.append((value, key, f"{name}/{key}"))
            if isinstance(child, dict | list):
                visit(child, f"{name}/{key}")

    visit(header, "")
    parent, key, name = rng.choice(places)
    how = rng.choice(("other", "other", "other", "drop", "more", "longer"))
    if how == "drop":
        del parent[key]
    elif how == "more" and isinstance(parent, dict):
        parent[rng.choice(("newer", "checkpoint_path", "pretrained", "cache_dir", "module"))] = (
            rng.choice(VALUES)
        )
    elif how == "longer" and isinstance(parent, list):
        parent.extend(copy.deepcopy(parent) * rng.choice((1, 1000)))
    else:
        how, parent[key] = "other", copy.deepcopy(rng.choice(VALUES))
    return f"{how} {name}"


def mutate_tensors(rng: random.Random, tensors: dict[str, Tensor]) -> str:
    """Change one tensor at random, and say how."""
    name = rng.choice([*tensors])
    how = rng.choice(("drop", "rename", "shape", "type", "nan", "inf", "empty", "more"))
    value = tensors[name]
    if how == "drop":
        del tensors[name]
    elif how == "rename":
        tensors[f"{name}x"] = tensors.pop(name)
    elif how == "shape":
        tensors[name] = torch.zeros((*value.shape, 2))
    elif how == "type":
        tensors[name] = value.to(rng.choice((torch.int64, torch.float16, torch.bool)))
    elif how in ("nan", "inf"):
        tensors[name] = torch.full(value.shape, float(how)) if value.is_floating_point() else value
    elif how == "empty":
        tensors[name] = torch.zeros(0)
    else:
        tensors["depths/x/y"] = torch.zeros(3)
    return f"{how} {name}"


def rewrite(source: Path, target: Path, rng: random.Random) -> str:
    """Write a changed copy of a file with a right checksum, and say what was changed."""
    with safetensors.safe_open(source, framework="pt") as file:
        header = json.loads(file.metadata()["stepwell"])
    tensors = load_file(source)
    header.pop("sha256", None)
    about = mutate_tensors(rng, tensors) if rng.random() < 0.25 else mutate(rng, header)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    header["sha256"] = digest(header, tensors)
    target.unlink(missing_ok=True)
    save_file(tensors, target, {"stepwell": json.dumps(header)})
    return about


def tries(subjects: Subjects, count: int, seed: int = 0) -> Iterator[Tally]:
    """Craft files of every kind and read each by a command that uses most of it."""
    rng = random.Random(seed)
    image = subjects.images / "one.png"
    kinds = {
        "nested, predict": (subjects.nested, ("predict", "RUN", image, "--json")),
        "nested, cost": (subjects.nested, ("cost", "RUN")),
        "nested, export": (subjects.nested, ("export", "RUN", "--depth", "all")),
        "resolution, predict": (subjects.resolution, ("predict", "RUN", image)),
        "graph, query": (subjects.graph, ("kg", "query", "RUN", "--head", "e1", "--relation", "r0")),
    }
    for name, (run, command) in kinds.items():
        tally = Tally("crafted", name)
        for i in range(-(-count // len(kinds))):
            copied = subjects.folder / "try"
            shutil.rmtree(copied, ignore_errors=True)
            copied.mkdir()
            about = rewrite(run / "net.safetensors", copied / "net.safetensors", rng)
            arguments = [copied / "net.safetensors" if a == "RUN" else a for a in command]
            if command[0] == "kg":
                for name in ("config.json", "results.json"):
                    shutil.copy(run / name, copied)
                arguments = [copied if a == "RUN" else a for a in command]
            outcome = stepwell(*arguments, folder=subjects.folder, seconds=30)
            fault = outcome.fault
            if outcome.code == 0 and ("NaN" in outcome.out or "nan %" in outcome.out):
                fault = "answer of NaN"
            tally.add(outcome, fault, f"{i}: {about}")
        yield tally
