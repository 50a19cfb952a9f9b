"""Tables about image classifiers: churn, cascades, classes, exported files."""

from collections.abc import Mapping
from typing import Any

from stepwell.console import big, show, size, table


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


def show_cascade(cascade: Mapping[str, Any], *, row: str = "depth") -> None:
    """Print a cascade's thresholds, accuracy and cost on validation and on test images."""
    found, test = cascade["validation"], cascade["test"]
    thresholds = [*(f"{t:.4f}" for t in found["thresholds"]), "the rest"]
    shares = ([f"{100 * s:.1f} %" for s in part["shares"]] for part in (found, test))
    rows = zip(found["depths"], thresholds, *shares, strict=True)
    columns = [row, "answers from", "answered, validation", "answered, test"]
    show(table(f"cascade: {found['goal']}", columns, rows))
    sigma = (found["accuracy"] * (1 - found["accuracy"]) / found["images"]) ** 0.5
    show(
        f"accuracy on {found['images']} validation images, where the thresholds were set: "
        f"{100 * found['accuracy']:.2f} % (±{196 * sigma:.1f} points)\n"
        f"accuracy on {test['images']} test images: {100 * test['accuracy']:.2f} % "
        f"(full net: {100 * test['full_accuracy']:.2f} %)\n"
        f"mean MACs an image: {big(found['macs'])} on validation, {big(test['macs'])} on test "
        f"(full net: {big(test['full_macs'])})\n"
        f"mean ms, one image at a time: {test['ms']:.2f} (full net: {test['full_ms']:.2f})"
    )


def show_classes(test: Mapping[str, float]) -> None:
    """Print the accuracy of each class, if it was measured: if classes are uneven."""
    found: dict[str, dict[str, float]] = {}
    for name, value in test.items():
        depth, _, rest = name.partition("/accuracy/")
        if rest:
            found.setdefault(rest, {})[depth] = value
    if found:
        depths = next(iter(found.values()))
        rows = [[c, *(f"{100 * v[d]:.1f} %" for d in depths)] for c, v in found.items()]
        show(table("accuracy by class (classes are uneven)", ["class", *depths], rows))


def show_export(title: str, result: Mapping[str, Any]) -> None:
    """Print exported files: size, check and, if measured, accuracy and time."""
    rows = result["files"]
    checked = next(row["parity"] for row in rows if "parity" in row)
    columns = ["depth", "file", "size", "largest difference", "same class"]
    measured = any("accuracy" in row for row in rows)
    columns += ["accuracy", "agreement", "ms per image"] if measured else []
    cells = []
    for row in rows:
        cell = [row["depth"], row["file"], size(row["bytes"]), "", ""]
        if parity := row.get("parity"):
            cell[3:] = f"{parity['difference']:.1e}", f"{100 * parity['same_class']:.0f} %"
        if measured:
            agreement = f"{100 * row['agreement']:.1f} %" if "agreement" in row else ""
            cell += [f"{100 * row['accuracy']:.2f} %", agreement, f"{row['ms']:.2f}"]
        cells.append(cell)
    show(table(title, columns, cells, words=2))
    show(f"checked on {checked['images']} {checked['part']} images", style="dim")
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
