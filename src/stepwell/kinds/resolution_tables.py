"""Tables about networks that choose resolutions: choices, budgets, speed, exported files."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepwell.console import show, size, table, written
from stepwell.kinds.classifier_tables import show_export as show_depths
from stepwell.measures import MEASURES, SPEED

#: Budgets to show, about.
BUDGETS = 6
#: A share of equal choices above which the network hardly chooses.
ALIKE = 0.98
#: A mean cost above this multiple of the target is a miss.
OVER = 1.1


def show_choices(record: Mapping[str, Any]) -> None:
    """Print the share of each choice, the mean cost, and the speed."""
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in record["shares"].items())
    free, target = record["unpriced"], record.get("target")
    aim = "" if target is None else f", target {100 * target:.3g} %"
    show(
        f"chosen: {shares}; mean cost {100 * record['cost']:.1f} % of the costliest choice's{aim} "
        f"(cost penalty {record['price']:.3g}; without it {100 * free['cost']:.1f} % and accuracy "
        f"{100 * free['accuracy']:.2f} %)",
        style="dim",
    )
    if target is not None and record["cost"] > OVER * target:
        note = (
            "the mean cost is above the target: the cost penalty meets it on the validation images, "
            "which may be too few (--val-fraction)"
        )
        show(note, style="dim")
    if max(record["shares"].values()) > ALIKE:
        note = (
            "nearly all images make one choice: the images may give no reason for another; more "
            "epochs, another --target or resolutions further apart may help"
        )
        show(note, style="dim")
    rows = [[written(measure, row[k]) for k, measure in SPEED.items()] for row in record["speed"]]
    show(table("speed", [measure.title for measure in SPEED.values()], rows))


def show_budgets(budgets: Sequence[Mapping[str, Any]]) -> None:
    """Print a few of the budgets that the network knows, cheapest first."""
    if not budgets:
        return
    every = max(1, round((len(budgets) - 1) / (BUDGETS - 1)))
    some = budgets[::-every][::-1]  # the most expensive is among them
    columns = ("macs", "accuracy")
    rows = [[*(written(MEASURES[c], b[c]) for c in columns), f"{b['price']:.3g}"] for b in some]
    show(table("budgets", [*(MEASURES[c].title for c in columns), "cost penalty"], rows))
    flags = "--budget-ms, --budget-macs and --min-accuracy"
    show(f"for predict's {flags}; measured on validation images", style="dim")


def show_export(title: str, result: Mapping[str, Any]) -> None:
    """Print exported files: a graph a choice, or depths at full size."""
    if "choices" not in result:
        show_depths(title, result)
        return
    rows = [
        [
            row["file"],
            row["choice"] if row["file"] in result["choices"] else "",
            size(row["bytes"]),
            f"{row['parity']['difference']:.1e}",
        ]
        for row in result["files"]
    ]
    show(table(title, ["file", "choice", "size", "largest difference"], rows, words=2))
    weights, parity = result["weights"], result["parity"]
    show(
        f"all graphs read their weights from {weights['file']} ({size(weights['bytes'])}); the host "
        f"loop over them differs by {parity['difference']:.1e} in a logit on {parity['images']} "
        f"{parity['part']} images, and {100 * parity['same_choice']:.0f} % of the choices are equal",
        style="dim",
    )
