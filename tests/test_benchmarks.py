"""Every benchmark runs, in its smallest case; what it measures is not looked at."""

import math
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks import timing
from benchmarks.__main__ import NAMES
from torchvision.models.resnet import BasicBlock

from forking import Forked
from stepwell.nets.decisions.pixels import MaskedBasicBlock

FOLDER = Path(timing.__file__).parent
#: Sizes of the smallest case, for the constants that a benchmark has.
SMALL = {
    "IMAGES": 64, "BATCH": 32, "ROUNDS": 1, "EPOCHS": 1, "SECONDS": 0.01, "SIZES": (1_000,), "SIDE": 64,
    "SOAK": 1.0, "CLOSED": 16, "CLIENTS": 4, "LARGE": 16, "LOADS": (1.0,),
    "DEPTHS": ("8",), "FULL": "14", "SIZE": 16, "EXPORTED": "resnet8",
    "LEAVING": (0.5,), "OPENED": (0.5,), "MORE_THREADS": (),
    "NODES": 50, "LARGER": (50, 100), "FILES": 1, "WIDTHS": (4,), "INPUTS": 4, "READ": 6,
    "USUAL": "fcos/resnet14_s4", "USUAL_SIDE": 64, "USUAL_IMAGES": 16,
    "CONFIG": {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
    "YAGO": {"triples": 600, "entities": 120, "relations": 5}, "CHANGE": {"added": 20, "removed": 5},
}  # fmt: skip
#: Cases in place of a benchmark's own.
CASES = {
    "joint_step": {"8": {"name": "resnet14", "depths": ["8"], "batch": 2, "rounds": 1}},
    "evaluation": {"8": {"name": "resnet14", "depths": ["8"], "batch": 2, "size": 8}},
    "drnet": {"8": ("resnet8", {"num_classes": 3}, (16, 12, 8), 64)},
    "dynamic": {"8": 8},
    "dynamic_graphs": {"8": 8},
    "dynamic_places": {"8": (BasicBlock, MaskedBasicBlock, 8, 8, 8)},
    "freed_memory": (("resnet8", 8, 2),),
    "file_size": {"8": ("resnet14", ["8"], 3, 16)},
}


def numbers(value):
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def started(command, **_):
    return Forked(*command[1:])


def ran(command, **_):
    process = Forked(*command[1:])
    _, err = process.communicate()
    assert process.returncode == 0, err


#: Those of more than six seconds. Tests of kernels, of each network that decides and of the server run
#: the same code on less.
LONG = (
    "adder",
    "detection",
    "dynamic",
    "dynamic_graphs",
    "dynamic_places",
    "dynamic_tokens",
    "file_size",
    "freed_memory",
    "help_time",
    "serve",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in NAMES]
)
def test_a_benchmark_runs(name, monkeypatch, untyped):
    module = import_module(f"benchmarks.{name}")
    once = {"rounds": 1, "warmup": 0}
    if hasattr(module, "side_by_side"):
        measured = timing.side_by_side
        monkeypatch.setattr(
            module, "side_by_side", lambda calls, **given: measured(calls, **given | once)
        )
    for constant, small in (SMALL | {"CASES": CASES.get(name)}).items():
        if hasattr(module, constant):
            monkeypatch.setattr(module, constant, small)
    if name == "serve":  # its processes start at once
        starts = SimpleNamespace(PIPE=None, DEVNULL=None, Popen=started, run=ran)
        monkeypatch.setattr(module, "subprocess", starts)
    monkeypatch.setenv("STEPWELL_QUIET", "1")
    found = [*numbers(module.measure())]
    assert found
    assert all(map(math.isfinite, found))


def test_every_module_of_benchmarks_can_be_imported():
    for file in FOLDER.rglob("*.py"):
        parts = file.relative_to(FOLDER.parent).with_suffix("").parts
        import_module(".".join(parts))
