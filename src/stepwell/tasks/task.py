"""An open run with its data: what every task of training has."""

import contextlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from stepwell.cost import count_macs
from stepwell.measures import big
from stepwell.nets import NestedNet, build
from stepwell.nets.build import name_of
from stepwell.nets.inputs import INPUTS
from stepwell.training import Loop, Run
from stepwell.training.job import Stream
from stepwell.training.loop import device_of
from stepwell.training.optimisation import Optimisation
from stepwell.training.progress import tell

B = TypeVar("B", bound=Stream)

#: Images below this size get the small stem.
SMALL = 64


@dataclass(frozen=True)
class Inputs(Generic[B]):
    """Data and teacher of a run before it has a directory; all parts are prepared alike.

    about: the record of the data in config.json.
    weights: fingerprints of the weights that a resumed run must find unchanged.
    """

    train: B
    validation: B | None
    test: B
    teacher: nn.Module | None
    about: Mapping[str, Any]
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task(Generic[B]):
    """An open run and its data as batches, all normalised alike; and the teacher, if there is one.

    device: the device of training and measuring.
    """

    run: Run
    train: B
    validation: B | None
    test: B
    teacher: nn.Module | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def check_patience(training: Optimisation, validated: bool) -> None:
    """Refuse patience without a validation part."""
    if training.patience is not None and not validated:
        raise ValueError(
            f"--patience {training.patience} counts epochs without a better validation score, and "
            "there is no validation part: set --val-fraction above 0"
        )


@contextlib.contextmanager
def open_task(
    recipe: str, out: Path, loop: Loop, arguments: Mapping[str, Any], inputs: Inputs[B],
    net: NestedNet | None = None,
) -> Iterator[Task[B]]:  # fmt: skip
    """Open the run directory of a recipe, and say what `net` costs; errors as for `Run.start`."""
    teacher = "/".join(inputs.weights) or None
    with Run.start(out, recipe, arguments, data=inputs.about, teacher=teacher) as run:
        if net is not None and run.writes and not (out / "results.json").exists():
            batches: Any = inputs.train
            examples = batches.examples
            tell_cost(net, examples.size, arguments.get("stem", "auto"), examples.input)
        parts = inputs.train, inputs.validation, inputs.test
        yield Task(run, *parts, inputs.teacher, device_of(loop))


def tell_cost(net: NestedNet, size: int, stem: str, input: str = "image") -> None:
    """Say which stem and how many MACs an input takes, and whether a larger image costs less."""
    assert net.builder is not None
    name, arguments = net.builder
    kind = INPUTS[input]
    own = arguments.get("stem", "")
    stems = {"small": " with the small stem (3×3, stride 1)", "imagenet": " with the imagenet stem"}
    macs = _macs(net, input, size)
    label = f"{name_of(net.builder)}{stems.get(own, '')}"
    text = f"{label}: {big(macs)} MACs per {kind.noun} of {size} {kind.unit}"
    if own == "small" and stem == "auto" and 32 < size < SMALL:
        larger = _macs(build(name, **arguments | {"stem": "imagenet"}), "image", SMALL)
        if larger < macs:
            text += f"; --size {SMALL} takes the imagenet stem and costs less, {big(larger)}"
    tell(text)


def _macs(net: NestedNet, kind: str, size: int) -> int:
    twin = deepcopy(net.module).to("meta").eval()  # shapes without arithmetic
    return count_macs(twin, INPUTS[kind].blank(1, size).to("meta"))
