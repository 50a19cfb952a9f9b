"""Networks that predict a number from a text: a nested encoder of one output, with its tokenizer.

A number has no classes and no confidence, so there are no cascades and no probabilities.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stepwell.kinds import Costs, Network, Predicted, classifier_tables, text
from stepwell.kinds.classifier import show_results as show_results
from stepwell.kinds.serving import Engine
from stepwell.kinds.text import export as export
from stepwell.kinds.text import open as open

if TYPE_CHECKING:
    from stepwell.serve.served import Served

NAME = "a network that predicts numbers"
NOUN, SIZE, TAKES = text.NOUN, text.SIZE, text.TAKES
ADVICE, NEXT = text.ADVICE, text.NEXT
SECTIONS = [
    f"stepwell.report.{section}" for section in (
        "numbers:lead", "systems:notes", "sections:cost_figures", "sections:row_table",
        "evaluations:other_evaluations", "sections:run_figures", "numbers:scatter",
        "systems:sections", "sections:facts", "sections:arguments",
    )
]  # fmt: skip


def evaluate(network: Network, *, data: str | None = None) -> dict[str, Any]:
    """Measure every depth. Flags as for `eval`."""
    return text.evaluate(network, data=data)


def predict(
    network: Network, inputs: Sequence[str], *, depth: str | None = None,
    budget_ms: float | None = None, budget_macs: float | None = None,
) -> Predicted:  # fmt: skip
    """Predict the numbers of texts at one depth, or within a budget. Flags as for `predict`."""
    limits = {"budget_ms": budget_ms, "budget_macs": budget_macs}
    budget: Any = {name: value for name, value in limits.items() if value is not None}
    return text.predict(network, inputs, depth=depth, **budget)


def serve(network: Network, *, engine: Engine = "torch") -> "Served":
    """Give every depth to a server. Flags as for `serve`."""
    return text.serve(network, engine=engine)


def cost(
    network: Network, *, size: int | None = None, batch: int = 1, save: bool = False
) -> Costs:  # fmt: skip
    """Measure the costs of every depth. Flags as for `cost`; the size is in tokens."""
    return text.cost(network, size=size, batch=batch, save=save)


def show_export(title: str, result: Mapping[str, Any]) -> None:
    """Print exported files: size and check."""
    classifier_tables.show_export(title, result, numeric=True)
