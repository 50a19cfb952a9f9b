"""Networks that choose the resolution of each image (`ResolutionNet`).

The nested net at full size inside is an image classifier, which does what a choice of resolutions has
no part in: cascades, fidelity, depths within a budget.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepwell.console import big, row_table, say, show, show_conditions, size, table, written
from stepwell.kinds import Costs, Network, Predicted, classifier
from stepwell.kinds.classifier_tables import show_churn, show_classes, show_never_right, show_speed
from stepwell.kinds.serving import Engine, serve_choices
from stepwell.measures import BUSY, CONTROLS, MEASURES, SPEED, Measure, in_words
from stepwell.results import read_results

if TYPE_CHECKING:
    from stepwell.measure.choices import System
    from stepwell.nets.decisions.choosing import ChoosingNet
    from stepwell.nets.resolution.chooser import ResolutionNet
    from stepwell.serve.served import Served

NAME = "a network of several resolutions"
#: Rows of the nested net inside.
FULL_SIZE = "depth at full size"
ADVICE = {
    "calibrate": "a new depth has no norms for its resolutions: name it with --depths when you train"
}
NEXT = classifier.NEXT
SECTIONS = [
    f"stepwell.report.{section}" for section in (
        "resolution:lead", "sections:cost_figures", "sections:row_table", "classes:classes_section",
        "sections:churn", "evaluations:other_evaluations", "sections:run_figures",
        "fidelity:fidelity_section", "systems:sections", "sections:examples", "sections:facts",
        "sections:arguments",
    )
]  # fmt: skip
TRAINED = classifier.TRAINED
#: Budgets to show, about.
BUDGETS = 6
#: A share of equal choices above which the network hardly chooses.
ALIKE = 0.98
#: A mean cost above this multiple of the target is a miss.
OVER = 1.1
EVALUATED = ("params", "macs", "accuracy", "balanced_accuracy", "nll", "ece", "agreement", "ms")


def open(path: Path, module: Callable[[], Any] | None = None) -> "ResolutionNet":
    """Read the network of a run or a file; errors as for `load_resolution` and `check_card`."""
    from stepwell.nets.files.resolution import load_resolution

    net = load_resolution(path, module)
    classifier.check_card(path, net.nested)
    return net


def at_full_size(network: Network, *, cascade: bool = False) -> Network:
    """Give the nested net inside, an image classifier of full-size images."""
    nested = network.net.nested
    if cascade and len(nested.depths) < 2:
        raise ValueError(
            f"{network.path} holds {NAME} and one depth, and a cascade needs two: leave --cascade out, "
            "the network chooses by itself"
        )
    return network._replace(kind="classifier", net=nested)


def evaluate(
    network: Network, *, data: str | None = None, budget_macs: float | None = None, **of_depths: Any
) -> dict[str, Any]:
    """Measure the network as a whole, and each of its choices for all images. Flags as for `eval`.

    With a cascade or a teacher, the depths at full size are measured instead.
    """
    from stepwell.measure import choices as measuring

    if of_depths:
        full = at_full_size(network, cascade="cascade" in of_depths)
        results = classifier.evaluate(full, data=data, budget_macs=budget_macs, **of_depths)
        return results | {"rows": FULL_SIZE}
    return measured(network, data, budget_macs, measuring.RESOLUTION)


def measured(
    network: Network, data: str | None, budget_macs: float | None, system: "System"
) -> dict[str, Any]:
    """Measure a network that chooses as a whole, and each of its choices for all images."""
    from stepwell.measure import choices as measuring
    from stepwell.measure.data_parts import parts_of
    from stepwell.measure.speed import timed_images
    from stepwell.nets.files.container import folder_of

    net, config = network.net, network.config
    if budget_macs is not None:
        set_budget(net, macs=budget_macs)
    parts = parts_of(net.nested, network.path, config, data)
    table = measuring.choice_table(net, net.card.size)
    results, _ = measuring.measure_choices(net, parts.test, table, system)
    results["data"] = parts.about
    if budget_macs is not None:
        results["at"] = f"at most {in_words('macs', budget_macs)}"
    record = results[system.key]
    run = folder_of(network.path)
    if budget_macs is None and config and (run / "results.json").exists():
        record["target"] = read_results(run)[system.key].get("target")
    record["speed"] = measuring.measure_speed(net, timed_images(parts.test))
    return results


def show_results(results: Mapping[str, Any], title: str, *, brief: bool = False) -> None:
    """Print results as tables; `brief`: as after a training."""
    show_rows(results, "drnet", title, brief=brief)


def show_rows(
    results: Mapping[str, Any], key: str, title: str, *, brief: bool = False,
    speed: Mapping[str, Measure] = SPEED,
) -> None:  # fmt: skip
    """Print results of a network that chooses, whose own ones stand at `key`."""
    costs, test, rows, record = (results[k] for k in ("costs", "test", "rows", key))
    show(row_table(title, TRAINED if brief else EVALUATED, costs, test, row=rows))
    if not brief:
        show_churn(results["churn"], row=rows)
        show_never_right(results, row=rows)
    show_classes(test)
    show_conditions(costs)
    show_choices(record, speed)
    if not brief:
        show_budgets(record["budgets"])


def set_budget(
    net: "ChoosingNet", *, ms: float | None = None, macs: float | None = None,
    accuracy: float | None = None,
) -> None:  # fmt: skip
    """Set the cost penalty for a budget, and say its effect; milliseconds are measured now."""
    from stepwell.measure.choices import latencies_of_choices

    latencies = [] if ms is None else latencies_of_choices(net, net.nested.card.size)
    times = [choice.ms for choice in latencies]
    budget = net.for_budget(ms=ms, macs=macs, accuracy=accuracy, times=times)
    unsure = f"; {BUSY}" if any(time.unsure for time in latencies) else ""
    by_clock = f" ({budget.time(times):.3g} ms here, one by one{unsure})" if times else ""
    say(
        f"cost penalty {budget.price:.3g}: {big(budget.macs)} MACs an image in the mean{by_clock}, and "
        f"{100 * budget.accuracy:.2f} % right, on the images that set the cost penalty"
    )


def predict(
    network: Network, paths: Sequence[Path], *, depth: str | None = None, cascade: bool = False,
    top: int = 1, **limits: float,
) -> Predicted:  # fmt: skip
    """Classify images as the chooser decides, or at one choice or depth. Flags as for `predict`."""
    net = network.net
    nested = net.nested
    # a network that never chose has no budgets: a depth fits one
    if cascade or depth in nested.depths or (limits and not net.budgets):
        full = at_full_size(network, cascade=cascade)
        predicted = classifier.predict(full, paths, depth=depth, cascade=cascade, top=top, **limits)
        return predicted._replace(row=FULL_SIZE)
    if depth is not None:
        net.hold(depth)
        return Predicted(classifier.classified(nested, net, paths, top), f"choice {depth}", "choice")
    if limits:
        set_budget(net, **classifier.budget_of(limits))
    predictions = classifier.classified(nested, net, paths, top)
    readable = [p.file for p in predictions if isinstance(p.file, Path) and not p.error]
    held = getattr(net.chooser, "choice", None)
    title = f"chosen of {', '.join(net.names)}" if held is None else f"choice {net.names[held]}"
    return Predicted(predictions, title, "choice", partial(_speed, net, readable))


def serve(network: Network, *, engine: Engine = "torch") -> "Served":
    """Give every choice to a server, and the network's own choice. Flags as for `serve`."""
    return serve_choices(network, engine)


def _speed(net: "ChoosingNet", files: Sequence[Path]) -> list[str]:
    """Measure images per second with and without the choice, if there are enough files."""
    from stepwell.measure.choices import measure_speed
    from stepwell.measure.speed import BATCHES, TIMED

    if len(files) < max(BATCHES):
        return []  # the ratio of a few images is chance
    return [
        f"in batches of {row['batch']}: {row['chosen']:.0f} images/s, at the costliest choice always "
        f"{row['fixed']:.0f}: {row['speed_up']:.2f} ×, of {row['by_macs']:.2f} × by MACs"
        + (f"; {BUSY}" if "unsure" in row else "")
        for row in measure_speed(net, net.preprocess(files[:TIMED]))
    ]


def export(
    network: Network, folder: Path, *, format: Literal["onnx", "pt2", "safetensors"] = "onnx",
    depth: str | None = None, int8: bool = False, data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a graph for each choice and the chooser; or depths at full size. Flags as for `export`."""
    from stepwell.export import export_resolution

    net, full = network.net, at_full_size(network)
    if depth is not None and depth in set(net.names) - set(full.net.depths):
        raise ValueError(
            f"--depth {depth} is a choice of resolution, and all choices are exported together: leave "
            f"--depth out, or name a depth at full size ({', '.join(full.net.depths)})"
        )
    if depth is not None or format != "onnx":
        return classifier.export(full, folder, format=format, depth=depth, int8=int8, data=data)
    if int8:
        raise ValueError(
            f"{network.path} holds {NAME}, and --int8 writes one depth at full size: name a --depth"
        )
    full.net.require_ready(*full.net.depths)
    sample, _ = classifier.sample_of(full, data)
    own = classifier.is_own(network, folder)
    return export_resolution(net, folder, sample, own=own, say=say)


def delta(network: Network, depth: str, beyond: str, out: Path) -> dict[str, Any]:
    """Write the tensors that `depth` at full size needs in addition to `beyond`."""
    return classifier.delta(at_full_size(network), depth, beyond, out)


def cost(network: Network, *, save: bool = False, **saved: Any) -> Costs:
    """Measure the costs of every choice, or with `save` of every depth at full size."""
    if save:
        return classifier.cost(at_full_size(network), save=True, **saved)._replace(row=FULL_SIZE)
    if saved:
        flag = next(iter(saved)).replace("_", "-")
        raise ValueError(f"--{flag} is not for {NAME}, which {network.path} holds: leave it out")
    from stepwell.measure.choices import choice_table

    size = network.net.nested.card.size
    return Costs(choice_table(network.net, size), f"{size}×{size}", "choice")


def show_choices(record: Mapping[str, Any], speed: Mapping[str, Measure] = SPEED) -> None:
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
            "nearly all images make one choice; perhaps no image needs another one. Try more epochs, "
            "another target, or choices that differ more"
        )
        show(note, style="dim")
    show_controls(record.get("controls", {}))
    show_speed(record["speed"], speed)


def show_controls(controls: Mapping[str, float]) -> None:
    """Print the accuracy of other ways to choose at the same mean cost."""
    if controls:
        rows = [[words, f"{100 * controls[name]:.2f} %"] for name, words in CONTROLS.items()]
        cost = f"{100 * controls['oracle cost']:.1f} %"
        rows[-1][0] += f" (its mean cost: {cost} of the costliest choice's)"
        show(table("other ways to choose, at the same mean cost", ["choice", "accuracy"], rows))


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


def show_export(
    title: str, result: Mapping[str, Any], readers: str = "all graphs read their weights"
) -> None:
    """Print exported files: a graph a choice, or depths at full size.

    `readers` says what is read from the file of weights.
    """
    if "choices" not in result:
        classifier.show_export(title, result)
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
        f"{readers} from {weights['file']} ({size(weights['bytes'])}); the host "
        f"loop over them differs by {parity['difference']:.1e} in a logit on {parity['images']} "
        f"{parity['part']} images, and {100 * parity['same_choice']:.0f} % of the choices are equal",
        style="dim",
    )
