"""Text classifiers by a recurrent network whose gate decides which tokens it reads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from stepwell.console import row_table, show, show_conditions
from stepwell.kinds import Network, Predicted, classifier, skipping, text
from stepwell.kinds.classifier_tables import show_classes, show_never_right, show_speed
from stepwell.kinds.serving import Engine
from stepwell.kinds.text import open as open
from stepwell.kinds.text import show_export as show_export
from stepwell.measures import TOKENS_SPEED

if TYPE_CHECKING:
    from pathlib import Path

    from stepwell.serve.served import Served

NAME = "a network that skips tokens"
NOUN, SIZE, TAKES = text.NOUN, text.SIZE, text.TAKES
ADVICE = {
    "calibrate": "it has one depth: train it again, or train a nested encoder (`stepwell train ekd`)",
    "delta": "it has one depth: export it as a whole",
    "cost": "`stepwell eval` measures its costs, which depend on the texts",
}
NEXT = text.NEXT
SECTIONS = skipping.SECTIONS
#: A share of the tokens from which on the gate hardly chooses.
NEARLY_ALL = 0.98


def evaluate(network: Network, *, data: str | None = None) -> dict[str, Any]:
    """Measure the network as it decides, and with every token. Flags as for `eval`."""
    from stepwell.measure.sequences import measure_sequences
    from stepwell.measure.text import text_parts

    parts = text_parts(network.net, network.path, network.config, data)
    results, _ = measure_sequences(network.net.net, parts.test)
    return results | {"data": parts.about}


def predict(network: Network, inputs: Sequence[str], *, top: int = 1) -> Predicted:
    """Classify texts; each is read as far as the gate decides. Flags as for `predict`."""
    predicted = text.predict(network, inputs, top=top)
    return predicted._replace(title="tokens that the gate chooses")


def serve(network: Network, *, engine: Engine = "torch") -> "Served":
    """Give the network to a server. Flags as for `serve`."""
    return text.serve(network, engine=engine)


def export(
    network: Network, folder: "Path", *, format: Literal["onnx", "pt2", "safetensors"] = "onnx",
    data: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the network for other programs; its ONNX graph skips tokens, too. Flags as for `export`."""
    return text.export(network, folder, format=format, data=data)


def show_results(results: Mapping[str, Any], title: str, *, brief: bool = False) -> None:
    """Print results as tables; `brief`: as after a training."""
    costs, test, rows, record = (results[k] for k in ("costs", "test", "rows", "sequences"))
    columns = classifier.TRAINED if brief else classifier.EVALUATED
    show(row_table(title, columns, costs, test, row=rows, noun=NOUN))
    if not brief:
        show_never_right(results, row=rows)
        show_classes(test)
    if "ms" in costs["chosen"]:
        show_conditions(costs)
    show(
        f"a text updates the state {record['used']:.1f} times on average, at "
        f"{100 * record['share']:.1f} % of its tokens, and costs {100 * record['cost']:.1f} % of the "
        "MACs of all, the gate included"
    )
    if "random_accuracy" not in record:  # of a study: the tokens were picked without a gate
        return
    show(
        f"with at least as many other tokens: {100 * record['random_accuracy']:.2f} % accuracy at "
        f"random ones, {100 * record['even_accuracy']:.2f} % at evenly spaced ones"
    )
    if record["share"] > NEARLY_ALL:
        show("nearly all tokens are read: try a higher --cost-weight, or more epochs", style="dim")
    show_speed(record["speed"], TOKENS_SPEED)
