"""What commands do with a network that chooses the resolution of each image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwell.commands.run_files import file_of, parts_of
from stepwell.console import (
    big,
    depth_table,
    print_json,
    say,
    show,
    show_churn,
    show_classes,
    show_conditions,
    table,
)

#: Budgets that are shown, about.
BUDGETS = 6
#: Where more than this share of the images make one choice, that is said.
ALIKE = 0.98
#: A mean cost above this many times the target is told.
OVER = 1.1
EVALUATED = ("params", "macs", "accuracy", "nll", "ece", "agreement", "ms")


def resolution_of(run: Path) -> Any:
    """The dynamic network of a run or a file; none where it is of one resolution."""
    from stepwell.nets.files.resolution import is_resolution, load_resolution

    file = file_of(run)
    return load_resolution(file) if is_resolution(file) else None


def held_at(net: Any, name: str) -> Any:
    """The network with one choice for all images; none where `name` is a depth, at full size."""
    if name in net.net.net.depths:
        return None
    net.hold(name)
    return net


def set_budget(
    net: Any,
    *,
    ms: float | None = None,
    macs: float | None = None,
    accuracy: float | None = None,
) -> None:
    """Set the price of cost for a budget, and say what it comes to; `ms` is measured now."""
    from stepwell.measure.resolution import times_of_choices

    times = [] if ms is None else times_of_choices(net, net.net.net.card.size)
    found = net.for_budget(ms=ms, macs=macs, accuracy=accuracy, times=times)
    by_clock = f" ({found.time(times):.3g} ms here, one by one)" if times else ""
    say(
        f"price {found.price:.3g}: {big(found.macs)} MACs an image in the mean{by_clock}, and "
        f"{100 * found.accuracy:.2f} % right, of the images that prices were found on"
    )


def eval_resolution(
    run: Path,
    net: Any,
    config: Mapping[str, Any],
    data: str | None,
    *,
    budget_macs: float | None = None,
    json: bool,
) -> None:
    """Measure a dynamic network as a whole, and each of its choices for all images."""
    from stepwell.measure.resolution import (
        choice_table,
        measure_resolution,
        measure_speed,
        timed_images,
    )

    if budget_macs is not None:
        set_budget(net, macs=budget_macs)
    nested = net.net.net
    parts = parts_of(nested, run, config, data)
    found, _ = measure_resolution(net, parts.test, choice_table(net, nested.card.size))
    record = found["drnet"]
    arguments = config.get("arguments", {})
    if budget_macs is None and arguments.get("schedule") != "resolutions":
        record["target"] = arguments.get("target")
    record["speed"] = measure_speed(net, timed_images(parts.test))
    if json:
        print_json(found)
        return
    costs, test = found["costs"], found["test"]
    title = f"{run} on {found['examples']} images"
    show(depth_table(title, EVALUATED, costs, test, what="choice"))
    show_churn(found["churn"])
    show_classes(test)
    show_conditions(costs)
    show_choices(record)
    show_budgets(net)


def show_choices(record: Mapping[str, Any]) -> None:
    """How often each choice is made, what the mean cost is, and the speed by the clock."""
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in record["shares"].items())
    free, target = record["unpriced"], record.get("target")
    aim = "" if target is None else f", target {100 * target:.3g} %"
    show(
        f"chosen: {shares}; mean cost {100 * record['cost']:.1f} % of the costliest choice's{aim} "
        f"(price of cost {record['price']:.3g}; without it {100 * free['cost']:.1f} %, and accuracy "
        f"{100 * free['accuracy']:.2f} %)",
        style="dim",
    )
    if target is not None and record["cost"] > OVER * target:
        show(
            "that is above the target, to which the price keeps on the images it was found on: they "
            "may be too few (--val-fraction)",
            style="dim",
        )
    if max(record["shares"].values()) > ALIKE:
        show(
            "nearly all images make one choice: there may be nothing to choose by; more epochs, "
            "another --target or resolutions further apart may help",
            style="dim",
        )
    show_speed(record["speed"])


def show_budgets(net: Any) -> None:
    """What budgets the network knows, a few of them."""
    if not net.budgets:
        return
    every = max(1, round((len(net.budgets) - 1) / (BUDGETS - 1)))
    kept = net.budgets[::-every][::-1]  # the dearest is among them
    rows = [[big(b.macs), f"{100 * b.accuracy:.2f} %", f"{b.price:.3g}"] for b in kept]
    show(table("budgets", ["MACs", "accuracy", "price"], rows))
    show(
        "of predict's --budget-ms, --budget-macs and --min-accuracy, as the validation images say",
        style="dim",
    )


def show_speed(speed: Sequence[Mapping[str, float]]) -> None:
    """Images a second of the dynamic network against the fixed one, at equal batch size."""
    head = ["batch", "chosen, images/s", "fixed, images/s", "speed-up", "by MACs"]
    rows = [
        [
            f"{row['batch']:.0f}",
            *(f"{row[kind]:.0f}" for kind in ("chosen", "fixed")),
            *(f"{row[kind]:.2f} ×" for kind in ("speed_up", "by_macs")),
        ]
        for row in speed
    ]
    show(table("by the clock", head, rows))


def show_exported(run: Path, folder: Path, result: Mapping[str, Any]) -> None:
    """The files of an exported dynamic network, and how the host loop over them compares."""
    rows = [
        [row["choice"], row["file"], f"{row['bytes'] / 1024:.0f} KiB", f"{difference:.1e}"]
        for row in result["files"]
        for difference in [row["parity"]["difference"]]
    ]
    show(table(f"exported {run} to {folder}", ["choice", "file", "size", "off by"], rows, words=2))
    weights, parity = result["weights"], result["parity"]
    show(
        f"all graphs read their weights from {weights['file']} ({weights['bytes'] / 2**20:.2f} MiB); "
        f"in their loop, {parity['images']} {parity['part']} images differ by "
        f"{parity['difference']:.1e} in a logit, and {100 * parity['same_choice']:.0f} % choose alike",
        style="dim",
    )
