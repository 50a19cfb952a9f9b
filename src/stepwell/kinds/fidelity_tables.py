"""Tables of fidelity: each depth beside its teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepwell.console import show, table
from stepwell.measures import FIDELITY, Measure, number_in, of_row

CKA = Measure("CKA", "number", 3)
SHARE = Measure("share", "percent")


def with_interval(numbers: Mapping[str, float], key: str, measure: Measure) -> str:
    """Write a number with its interval, if it has one: 98.1 % (97.0 to 98.9)."""
    if key not in numbers:
        return ""
    sign = " %" if measure.unit == "percent" else ""
    keys = (k for k in (key, f"{key}/low", f"{key}/high") if k in numbers)
    value, *ends = (number_in(measure.unit, numbers[k], measure.digits) for k in keys)
    return f"{value}{sign}" + (f" ({ends[0]} to {ends[1]})" if ends else "")


def show_fidelity(found: Mapping[str, Any], *, classes: int = 10) -> None:
    """Print every depth against the teacher on each part, and the classes that agree least."""
    parts = {part: values["numbers"] for part, values in found["parts"].items()}
    titles = {part: part for part in parts} | {"augmented": f"augmented: {found['augmentation']}"}
    for depth in found["depths"]:
        own = {
            part: of_row(numbers, depth)
            | {k: v for k, v in numbers.items() if k.startswith("teacher/")}
            for part, numbers in parts.items()
        }
        rows = [
            [measure.title, *(with_interval(numbers, key, measure) for numbers in own.values())]
            for key, measure in FIDELITY.items()
            if any(key in numbers for numbers in own.values())
        ]
        rows += [
            [f"CKA of {stage}", *(with_interval(n, f"cka/{stage}", CKA) for n in own.values())]
            for stage in found["stages"]
        ]
        columns = [f"{titles[part]} ({found['parts'][part]['images']:,})" for part in parts]
        show(table(f"depth {depth} against {found['teacher']['name']}", ["", *columns], rows))
        if verdict := transfer_verdict(own["test"]):
            show(verdict)
        _show_least(own["test"], found["classes"], classes)
    show(
        f"in brackets: {100 * found['level']:.0f} % intervals over the images, which do not cover "
        "another training of this pair; CKA: debiased linear",
        style="dim",
    )
    if "augmented" in parts:
        note = "train: without augmentation; augmented: the same images, augmented as in training"
        show(note, style="dim")


def transfer_verdict(numbers: Mapping[str, float]) -> str:
    """Judge the agreement beyond the control's in a sentence; empty without a control."""
    if "transfer" not in numbers:
        return ""

    def judged(key: str) -> str:
        if numbers[f"{key}/low"] > 0:
            return "more than chance"
        return "less than the control's" if numbers[f"{key}/high"] < 0 else "may be chance"

    points = with_interval(numbers, "transfer", FIDELITY["transfer"])
    nats = with_interval(numbers, "transfer_kl", FIDELITY["transfer_kl"])
    return (
        f"this teacher's own on test images: {points} points of agreement, {judged('transfer')}; "
        f"nearer by {nats} nats, {judged('transfer_kl')}"
    )


def _show_least(numbers: Mapping[str, float], classes: Sequence[str], count: int) -> None:
    measured = [c for c in classes if f"class/{c}/agreement" in numbers]
    measured.sort(key=lambda c: numbers[f"class/{c}/agreement"])
    keys = ("class/{}/agreement", "class/{}/accuracy", "teacher/class/{}/accuracy")
    rows = [
        [name, *(with_interval(numbers, key.format(name), SHARE) for key in keys)]
        for name in measured[:count]
    ]
    few = f", the {count} that agree least" if len(measured) > count else ""
    columns = ["class", "agreement", "accuracy", "of the teacher"]
    show(table(f"test images by class{few}", columns, rows))
