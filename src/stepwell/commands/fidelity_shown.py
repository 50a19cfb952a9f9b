"""What `eval --fidelity` prints of the numbers that it measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepwell.console import show, table
from stepwell.report.fidelity_reading import FORMS, MEASURES, Kind


def with_interval(numbers: Mapping[str, float], key: str, kind: Kind) -> str:
    """A number with its interval, where it has one: 98.1 % (97.0 to 98.9)."""
    if key not in numbers:
        return ""
    scale, form = FORMS[kind]
    unit = " %" if kind == "percent" else ""
    value, *ends = (
        form.format(scale * numbers[k]) for k in (key, f"{key}/low", f"{key}/high") if k in numbers
    )
    return f"{value}{unit}" + (f" ({ends[0]} to {ends[1]})" if ends else "")


def show_fidelity(found: Mapping[str, Any], *, classes: int = 10) -> None:
    """Every depth against the teacher, train and test side by side; the classes that agree least."""
    parts = {part: values["numbers"] for part, values in found["parts"].items()}
    titles = {part: part for part in parts} | {"augmented": f"augmented: {found['augmentation']}"}
    for depth in found["depths"]:
        own = {
            part: {
                k.removeprefix(f"{depth}/"): v
                for k, v in numbers.items()
                if k.startswith(f"{depth}/")
            }
            | {k: v for k, v in numbers.items() if k.startswith("teacher/")}
            for part, numbers in parts.items()
        }
        rows = [
            [title, *(with_interval(numbers, key, kind) for numbers in own.values())]
            for key, title, kind in MEASURES
            if any(key in numbers for numbers in own.values())
        ]
        rows += [
            [f"CKA of {stage}", *(with_interval(n, f"cka/{stage}", "number") for n in own.values())]
            for stage in found["stages"]
        ]
        columns = [f"{titles[part]} ({found['parts'][part]['images']:,})" for part in parts]
        show(table(f"depth {depth} against {found['teacher']['name']}", ["", *columns], rows))
        if verdict := transfer_verdict(own["test"]):
            show(verdict)
        _show_least(own["test"], found["classes"], classes)
    show(
        f"in brackets: {100 * found['level']:.0f} % intervals over the images, of this one pair of "
        "trainings; CKA: debiased linear",
        style="dim",
    )
    if "augmented" in parts:
        show(
            "train: as they are; augmented: the same, changed at random as in training", style="dim"
        )


def transfer_verdict(numbers: Mapping[str, float]) -> str:
    """What agreement beyond the control's says, in a sentence; empty without a control."""
    if "transfer" not in numbers:
        return ""

    def judged(key: str) -> str:
        if numbers[f"{key}/low"] > 0:
            return "more than chance"
        return "less than the control's" if numbers[f"{key}/high"] < 0 else "may be chance"

    points = with_interval(numbers, "transfer", "points")
    nats = with_interval(numbers, "transfer_kl", "number")
    return (
        f"this teacher's own on test images: {points} points of agreement, {judged('transfer')}; "
        f"nearer by {nats} nats, {judged('transfer_kl')}"
    )


def _show_least(numbers: Mapping[str, float], classes: Sequence[str], count: int) -> None:
    measured = [c for c in classes if f"class/{c}/agreement" in numbers]
    measured.sort(key=lambda c: numbers[f"class/{c}/agreement"])
    rows = [
        [
            name,
            *(
                with_interval(numbers, key, "percent")
                for key in (
                    f"class/{name}/agreement",
                    f"class/{name}/accuracy",
                    f"teacher/class/{name}/accuracy",
                )
            ),
        ]
        for name in measured[:count]
    ]
    few = f", the {count} that agree least" if len(measured) > count else ""
    columns = ["class", "agreement", "accuracy", "of the teacher"]
    show(table(f"test images by class{few}", columns, rows))
