"""Networks that learned a teacher's features without labels, and have no classifier yet."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell.console import big, say

if TYPE_CHECKING:
    from stepwell.nets import NestedNet

NAME = "features without a classifier"
_HEAD = "train one: stepwell train supervised --data LABELLED --net NETWORK --init RUN --out FOLDER"
ADVICE = dict.fromkeys(("evaluate", "predict", "export", "delta", "cost", "calibrate", "serve"), _HEAD)
NEXT = (
    "stepwell train supervised --data LABELLED --net {results[features][net]} "
    "--size {results[features][size]} --init {run} --out FOLDER",
)  # fmt: skip
SECTIONS = [f"stepwell.report.sections:{name}" for name in ("facts", "run_figures", "arguments")]


def open(path: Path, module: Callable[[], Any] | None = None) -> "NestedNet":
    """Read the network of a run or a file; arguments and errors as for `stepwell.load`."""
    from stepwell.nets.files.nested import load

    return load(path, module=module)


def show_results(results: Mapping[str, Any], title: str, *, brief: bool = False) -> None:
    """Print the distance from the teacher, and the cost of the student."""
    (cost,) = results["costs"].values()
    say(
        f"{title}: loss against the teacher {results['test']['loss']:.4g} on {results['examples']:,} "
        f"images; the student takes {big(cost['macs'])} MACs an image"
    )
