"""Image classifiers whose gates or masks decide what each image runs of every block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepwell.console import big, row_table, say, show, show_conditions, table
from stepwell.kinds import Network, Predicted, classifier
from stepwell.kinds.classifier_tables import show_classes, show_never_right, show_speed
from stepwell.kinds.classifier_tables import show_export as show_export
from stepwell.kinds.serving import Engine, serve_depths
from stepwell.measures import BLOCKS_SPEED, GATES, in_words

if TYPE_CHECKING:
    from stepwell.nets import NestedNet
    from stepwell.serve.served import Served

NAME = "a network that skips blocks"
ADVICE = {
    "calibrate": "it has one depth: train it again, or train a nested one (`stepwell train ekd`)",
    "delta": "it has one depth: export it as a whole",
    "cost": "`stepwell eval` measures its costs, which depend on the images",
}
NEXT = classifier.NEXT
SECTIONS = [
    f"stepwell.report.{section}" for section in (
        "resolution:lead", "sections:cost_figures", "sections:row_table", "classes:classes_section",
        "sections:churn", "evaluations:other_evaluations", "sections:run_figures", "systems:sections",
        "sections:examples", "sections:facts", "sections:arguments",
    )
]  # fmt: skip
EVALUATED = ("params", "macs", "accuracy", "balanced_accuracy", "nll", "ece", "ms")
#: A mean open rate outside of which the gates hardly choose; a distance from the target worth a note.
ALL_OPEN, FAR = 0.98, 0.05


def open(path: Path, module: Callable[[], Any] | None = None) -> "NestedNet":
    """Read the network of a run or a file; errors as for `stepwell.load` and `check_card`."""
    return classifier.open(path, module)


@contextmanager
def within(net: "NestedNet", limits: Mapping[str, Any]) -> Iterator[None]:
    """Set the cost penalty of the scores for a budget ("macs", "accuracy"; none if it is empty).

    Its effect is said; at the end, the network decides as before.
    """
    from stepwell.nets.decisions.budgets import Budget, best_budget
    from stepwell.nets.decisions.skipping import priced

    if not limits:
        yield
        return
    if "ms" in limits:
        raise ValueError("the time depends on the image: give --budget-macs instead")
    budget = best_budget([Budget(row[0], row[1], row[2]) for row in net.card.gate_budgets], **limits)
    say(
        f"cost penalty {budget.price:g}: a mean of {big(budget.macs)} MACs an image, and "
        f"{100 * budget.accuracy:.2f} % of the validation images right"
    )
    with priced(net.module, budget.price):
        yield


def evaluate(
    network: Network, *, data: str | None = None, budget_macs: float | None = None
) -> dict[str, Any]:
    """Measure the network as it decides, and with every block. Flags as for `eval`."""
    from stepwell.measure.data_parts import parts_of
    from stepwell.measure.skipping import measure_skipping

    limits = {} if budget_macs is None else {"macs": budget_macs}
    with within(network.net, limits):
        parts = parts_of(network.net, network.path, network.config, data)
        results, _ = measure_skipping(network.net, parts.test, network.kind)
    at = {} if budget_macs is None else {"at": f"at most {in_words('macs', budget_macs)}"}
    return results | {"data": parts.about} | at


def predict(
    network: Network, paths: Sequence[Path], *, depth: str | None = None, top: int = 1, **limits: float,
) -> Predicted:  # fmt: skip
    """Classify images; each runs what the network decides. Flags as for `predict`."""
    with within(network.net, classifier.budget_of(limits)):
        return classifier.predict(network, paths, depth=depth, top=top)


def serve(network: Network, *, engine: Engine = "torch") -> "Served":
    """Give the network to a server; each image runs what the network decides."""
    return serve_depths(network, engine, cascade=False)


def export(
    network: Network, folder: Path, *, format: Literal["onnx", "pt2", "safetensors"] = "onnx",
    depth: str | None = None, data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the network for other programs; gates skip blocks in ONNX, too. Flags as for `export`."""
    return classifier.export(network, folder, format=format, depth=depth, data=data)


def show_results(results: Mapping[str, Any], title: str, *, brief: bool = False) -> None:
    """Print results as tables; `brief`: as after a training."""
    costs, test, rows, kind = (results[k] for k in ("costs", "test", "rows", "kind"))
    show(row_table(title, classifier.TRAINED if brief else EVALUATED, costs, test, row=rows))
    if not brief:
        show_never_right(results, row=rows)
    show_classes(test)
    show_conditions(costs)
    show_gates(results[kind], kind)


def show_gates(record: Mapping[str, Any], kind: str) -> None:
    """Print what runs of each block, the cost and the speed."""
    title, column, key, of_blocks, at_random, unit = GATES[kind]
    rows = [[name, f"{100 * rate:.1f} %"] for name, rate in record["open"].items()]
    show(table(title, ["block", column], rows))
    show(
        f"an image runs {100 * record[key]:.1f} % {of_blocks} on average, and costs "
        f"{100 * record['cost']:.1f} % of the MACs of all blocks, gates included"
    )
    if "random_accuracy" in record:  # older results lack it
        show(f"{at_random}: {100 * record['random_accuracy']:.2f} % accuracy")
    if record["mean"] > ALL_OPEN:
        lower = "a lower --target, or " if "target" in record else ""
        show(f"nearly all {unit} run: try {lower}more epochs", style="dim")
    if abs(record.get("target", record[key]) - record[key]) > FAR:
        show(
            f"the target was {100 * record['target']:.0f} %: it was set on validation images, or on "
            "training images where there are few, and these differ from the test images",
            style="dim",
        )
    if idle := [name for name, rate in record["open"].items() if not rate]:
        show(f"these blocks run for no image: {', '.join(idle)}", style="dim")
    show_speed(record["speed"], BLOCKS_SPEED)
