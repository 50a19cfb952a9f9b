"""Tables about image classifiers: churn, cascades, classes, exported files, fidelity to a teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepwell.console import big, show, size, table, written
from stepwell.measures import (
    BUSY,
    CURVE,
    FIDELITY,
    MIXTURES,
    Measure,
    chance_in_words,
    curve_rows,
    number_in,
    of_row,
    share_interval,
    threshold_title,
    with_article,
)
from stepwell.results import never_in_words, never_right

CKA = Measure("CKA", "number", 3)
SHARE = Measure("share", "percent")
#: Classes to list, at most; validation images below which a cascade is hardly decided.
CLASSES, FEW = 20, 200


def show_churn(churn: Mapping[str, float], *, row: str = "depth") -> None:
    """Print the share of predictions that flip between each two rows, of three or more rows."""
    pairs = {tuple(name.split("/churn/")): v for name, v in churn.items() if "/churn/" in name}
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    if len(names) < 3:
        return
    rows = [
        [a, *(f"{100 * pairs.get((a, b), pairs.get((b, a), 0.0)):.1f} %" for b in names)] for a in names
    ]
    show(table(f"predictions that flip between {row}s", [row, *names], rows))


def show_bits(accuracies: Mapping[str, Mapping[str, float]], *, row: str = "depth") -> None:
    """Print the accuracy of every depth by the number of bits of its adder layers."""
    columns = [name if name == "float" else f"{name} bits" for name in next(iter(accuracies.values()))]
    rows = [
        [depth, *(f"{100 * share:.2f} %" for share in by_bits.values())]
        for depth, by_bits in accuracies.items()
    ]
    show(table("accuracy by the bits of adder layers, without training", [row, *columns], rows))


def show_tempered(tempered: Mapping[str, Mapping[str, float]], *, row: str = "depth") -> None:
    """Print likelihood and calibration of probabilities after division by temperatures."""
    rows = [
        [depth, f"{of['temperature']:.3g}", f"{of['nll']:.3f}", f"{of['ece']:.3f}"]
        for depth, of in tempered.items()
    ]
    columns = [row, "temperature", "NLL", "ECE"]
    show(table("probabilities of logits divided by the temperature", columns, rows))


def show_cascade(cascade: Mapping[str, Any], *, row: str = "depth", noun: str = "image") -> None:
    """Print a cascade's thresholds, accuracy and cost on validation and on test images, or texts."""
    validation, test = cascade["validation"], cascade["test"]
    thresholds = [*(f"{t:.4g}" for t in validation["thresholds"]), "the rest"]
    shares = ([f"{100 * s:.1f} %" for s in part["shares"]] for part in (validation, test))
    rows = zip(validation["depths"], thresholds, *shares, strict=True)
    columns = [row, threshold_title(validation), "answered, validation", "answered, test"]
    show(table(f"cascade, set on {validation['images']} validation {noun}s", columns, rows))
    full = test | {"accuracy": test["full_accuracy"]}
    unsure = f"; {BUSY}" if "unsure" in test else ""
    show(
        f"goal on the validation {noun}s: {validation['goal']}; reached there: "
        f"{with_wilson(validation)}\n"
        f"on {test['images']} test {noun}s: {with_wilson(test)} (full net: {with_wilson(full)})\n"
        f"mean MACs {with_article(noun)}: {big(validation['macs'])} on validation, "
        f"{big(test['macs'])} on test (full net: {big(test['full_macs'])})\n"
        f"mean ms, one {noun} at a time: {test['ms']:.2f} (full net: {test['full_ms']:.2f}){unsure}"
    )
    if words := chance_in_words(test, noun):
        show(words)
    if curve := curve_rows(cascade):
        show(table(f"cascades within budgets of MACs, on test {noun}s", CURVE, curve))
    if validation["images"] < FEW:
        show(
            f"{validation['images']} validation {noun}s decide little: trust the test {noun}s, or set "
            f"the thresholds on more{' (--data with a larger val/ folder)' * (noun == 'image')}",
            style="dim",
        )


def show_glances(glance: Mapping[str, Any], *, noun: str = "image") -> None:
    """Print the accuracies of a network that glances, with its crops or frames elsewhere."""
    if "others" not in glance:
        return
    columns = {
        "others": f"places of another {noun}", "random": "random places", "fixed": "fixed places",
    }  # fmt: skip
    rows = [
        [count, *(f"{100 * glance[key][count]:.2f} %" for key in columns)] for count in glance["others"]
    ]
    show(table("with other places, on test data", ["glances", *columns.values()], rows))
    show(
        f"over the {noun}s, places vary by {glance['apart']:.2f} (random ones by 0.29); right at any "
        f"glance: {100 * glance['oracle']:.2f} %",
        style="dim",
    )


def with_wilson(part: Mapping[str, Any]) -> str:
    """Write an accuracy with the ends of its 95 % interval."""
    ends = share_interval(part["accuracy"], part["images"])
    low, high = (f"{100 * end:.1f}" for end in ends)
    return f"{100 * part['accuracy']:.2f} % ({low} to {high})"


def show_classes(test: Mapping[str, float]) -> None:
    """Print the accuracy of each class, of many the worst, if it was measured (classes are uneven)."""
    by_class: dict[str, dict[str, float]] = {}
    for name, value in test.items():
        depth, _, label = name.partition("/accuracy/")
        if label:
            by_class.setdefault(label, {})[depth] = value
    if by_class:
        depths = list(next(iter(by_class.values())))
        shown = by_class
        if len(by_class) > CLASSES:
            shown = dict(sorted(by_class.items(), key=lambda item: item[1][depths[-1]])[:CLASSES])
        which = f"the {CLASSES} worst of {len(by_class)}; " if len(by_class) > CLASSES else ""
        rows = [[c, *(f"{100 * v[d]:.1f} %" for d in depths)] for c, v in shown.items()]
        show(table(f"accuracy by class ({which}classes are uneven)", ["class", *depths], rows))


def show_never_right(results: Mapping[str, Any], *, row: str = "depth", noun: str = "image") -> None:
    """Name the classes of which a row has no test example right."""
    for rows, names in never_right(results.get("confusion", {})).items():
        show(f"{never_in_words(rows, names, row)}: see the {noun}s, their number and their labels")


def show_export(title: str, result: Mapping[str, Any], *, numeric: bool = False) -> None:
    """Print exported files: size, check and, if measured, accuracy and time."""
    rows = result["files"]
    checked = next(row["parity"] for row in rows if "parity" in row)
    same = "same depth" if "same_choice" in checked else "same class"
    columns = ["depth", "file", "size", "largest difference", same]
    measured = any("accuracy" in row for row in rows)
    columns += ["accuracy", "agreement", "ms per image"] if measured else []
    columns = [column for column in columns if not (numeric and column == "same class")]
    cells = []
    for row in rows:
        cell = [row["depth"], row["file"], size(row["bytes"]), "", ""]
        if parity := row.get("parity"):
            same = parity.get("same_class", parity.get("same_choice"))
            cell[3:] = f"{parity['difference']:.1e}", f"{100 * same:.0f} %"
        cell = cell[: 4 if numeric else 5]
        if measured:
            agreement = f"{100 * row['agreement']:.1f} %" if "agreement" in row else ""
            cell += [f"{100 * row['accuracy']:.2f} %", agreement, f"{row['ms']:.2f}"]
        cells.append(cell)
    show(table(title, columns, cells, words=2))
    show(
        f"checked on {checked['images']} {checked['part']} {result.get('noun', 'image')}s", style="dim"
    )
    if "weights" in result:
        weights = result["weights"]
        share = weights["bytes"] / weights["full_net_bytes"]
        show(
            f"{weights['file']}: {size(weights['bytes'])}, the weights of all depths "
            f"({share:.3f} × the full net's alone)",
            style="dim",
        )
    if measured:
        threads = f"{result['threads']} thread{'s' * (result['threads'] != 1)}"
        show(f"ms: onnxruntime, median at batch 1 on {threads}", style="dim")


def show_delta(depth: str, beyond: str, delta: Mapping[str, Any]) -> None:
    """Print the sizes of a delta and of the depths that it leads from and to."""
    names = {"base_bytes": f"depth {beyond}", "bytes": "delta", "whole_bytes": f"depth {depth}"}
    rows = [
        [name, size(delta[key]), f"{100 * delta[key] / delta['whole_bytes']:.1f} %"]
        for key, name in names.items()
    ]
    show(table(f"wrote {delta['path']}", ["weights", "size", f"of depth {depth}"], rows))


def show_mixture(key: str, mixture: Mapping[str, Any]) -> None:
    """Print the use of experts or mixed kernels in each layer, and their speed."""
    words = MIXTURES[key]
    layers = mixture["layers"]
    numbers = range(1, 1 + max(len(layer["shares"]) for layer in layers.values()))
    rows = [
        [name, *(written(SHARE, s) for s in layer["shares"]), f"{layer['cv']:.2f}",
         written(SHARE, layer["by_class"])]
        for name, layer in layers.items()
    ]  # fmt: skip
    show(table(words.parts, ["layer", *map(str, numbers), "CV", "by class"], rows))
    show(words.legend, style="dim")
    show_speed(mixture["speed"], words.speed)


def show_speed(speed: Sequence[Mapping[str, float]], measures: Mapping[str, Measure]) -> None:
    """Print images per second, as `compare_speed` gives them, and a note if they are unsure."""
    rows = [[written(measure, row[key]) for key, measure in measures.items()] for row in speed]
    show(table("speed", [measure.title for measure in measures.values()], rows))
    if any("unsure" in row for row in speed):
        show(BUSY, style="bold")


def with_interval(numbers: Mapping[str, float], key: str, measure: Measure) -> str:
    """Write a number with its interval, if it has one: 98.1 % (97.0 to 98.9)."""
    if key not in numbers:
        return ""
    sign = " %" if measure.unit == "percent" else ""
    keys = (k for k in (key, f"{key}/low", f"{key}/high") if k in numbers)
    value, *ends = (number_in(measure.unit, numbers[k], measure.digits) for k in keys)
    return f"{value}{sign}" + (f" ({ends[0]} to {ends[1]})" if ends else "")


def show_fidelity(fidelity: Mapping[str, Any], *, classes: int = 10) -> None:
    """Print every depth against the teacher on each part, and the classes that agree least."""
    parts = {part: values["numbers"] for part, values in fidelity["parts"].items()}
    noun = fidelity["noun"]
    titles = {part: part for part in parts} | {"augmented": f"augmented: {fidelity['augmentation']}"}
    for depth in fidelity["depths"]:
        by_part = {
            part: of_row(numbers, depth)
            | {k: v for k, v in numbers.items() if k.startswith("teacher/")}
            for part, numbers in parts.items()
        }
        rows = [
            [measure.title, *(with_interval(numbers, key, measure) for numbers in by_part.values())]
            for key, measure in FIDELITY.items()
            if any(key in numbers for numbers in by_part.values())
        ]
        rows += [
            [
                f"CKA of {stage}",
                *(with_interval(numbers, f"cka/{stage}", CKA) for numbers in by_part.values()),
            ]
            for stage in fidelity["stages"]
        ]
        columns = [f"{titles[part]} ({fidelity['parts'][part]['images']:,})" for part in parts]
        show(table(f"depth {depth} against {fidelity['teacher']['name']}", ["", *columns], rows))
        if verdict := transfer_verdict(by_part["test"], noun):
            show(verdict)
        _show_least(by_part["test"], fidelity["classes"], classes, noun)
    show(
        f"in brackets: {100 * fidelity['level']:.0f} % intervals over the {noun}, which do not cover "
        "another training of this pair; CKA: debiased linear",
        style="dim",
    )
    if "augmented" in parts:
        note = "train: without augmentation; augmented: the same images, augmented as in training"
        show(note, style="dim")


def transfer_verdict(numbers: Mapping[str, float], noun: str = "images") -> str:
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
        f"this teacher's own on test {noun}: {points} points of agreement, {judged('transfer')}; "
        f"nearer by {nats} nats, {judged('transfer_kl')}"
    )


def _show_least(numbers: Mapping[str, float], classes: Sequence[str], count: int, noun: str) -> None:
    measured = [c for c in classes if f"class/{c}/agreement" in numbers]
    measured.sort(key=lambda c: numbers[f"class/{c}/agreement"])
    keys = ("class/{}/agreement", "class/{}/accuracy", "teacher/class/{}/accuracy")
    rows = [
        [name, *(with_interval(numbers, key.format(name), SHARE) for key in keys)]
        for name in measured[:count]
    ]
    few = f", the {count} that agree least" if len(measured) > count else ""
    columns = ["class", "agreement", "accuracy", "of the teacher"]
    show(table(f"test {noun} by class{few}", columns, rows))
