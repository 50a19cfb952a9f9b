"""Cost and accuracy of every depth of a trained network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from stepwell.cost import costs_of
from stepwell.data import Batches
from stepwell.data.tokens import TextBatches
from stepwell.evaluation import ClassTally, NumberTally, Tally, evaluate, gather_logits, tally
from stepwell.evaluation.calibration import best_temperature
from stepwell.measure.mixtures import mixture_record
from stepwell.nets.decisions.deciding import use_break_even
from stepwell.nets.inputs import blank_inputs
from stepwell.nets.nested.net import NestedNet
from stepwell.train_mode import in_eval_mode
from stepwell.types import Labels, Logits

Examples = Batches | TextBatches
#: Sums over predictions by kind of network; the other kinds have a `Tally`.
TALLIES: Mapping[str, type[Tally]] = {
    "text": ClassTally, "sequence": ClassTally, "text-numbers": NumberTally
}  # fmt: skip


class Tempered(Tally):
    """Sums over predictions whose logits are divided by the temperature of their depth."""

    def __init__(self, temperatures: Mapping[str, float]) -> None:
        self.temperatures = temperatures

    def add(self, logits: Mapping[str, Logits], labels: Labels) -> Tally:
        """Add a batch of logits that nothing has divided; errors as for `Tally.add`."""
        return super().add({d: y / self.temperatures.get(d, 1.0) for d, y in logits.items()}, labels)

    def record(self) -> dict[str, dict[str, float]]:
        """By depth: its "temperature", and "nll" and "ece" after the division."""
        measured = self.measures()
        return {
            depth: {"temperature": self.temperatures.get(depth, 1.0)}
            | {measure: measured[f"{depth}/{measure}"] for measure in ("nll", "ece")}
            for depth in self.names
        }


def tally_of(kind: str) -> Tally:
    """The empty sums for predictions of a kind of network."""
    return TALLIES.get(kind, Tally)()


def cost_table(net: NestedNet, size: int, *, batch: int = 1) -> dict[str, dict[str, Any]]:
    """Measure the costs of every depth as a plain network, for `batch` inputs of `size` at once.

    The size is that of images in pixels, or of texts in tokens.

    Returns:
        By depth: "blocks", and the costs of `cost_of`.
    """
    inputs = blank_inputs(net, net.card, size, batch)
    costs = costs_of({d: net.subnet(d) for d in net.depths}, inputs)
    return {d: {"blocks": list(blocks)} | costs[d] for d, blocks in net.depths.items()}


def measure_depths(net: NestedNet, test: Examples, kind: str = "classifier") -> dict[str, Any]:
    """Measure every depth on labelled examples.

    Returns:
        Results as a run's results.json has them: "kind", "rows", "test", "churn", "examples",
        "confusion", "costs"; what `mixture_record` gives; and "tempered" if the card has temperatures.
    """
    use_break_even(net.module, {})  # answers do not depend on a clock
    tempered = [Tempered(net.card.temperatures)] if net.card.temperatures else []
    with in_eval_mode(net):
        sums = tally(logits_where_it_is(net), test, tally_of(kind), *tempered)
        record = mixture_record(net, test)
    for each in tempered:
        record = record | {"tempered": each.record()}
    return results_of(sums, net.card.classes, cost_table(net, net.card.size), kind) | record


def results_of(
    sums: Tally, classes: Sequence[str], costs: Mapping[str, Mapping[str, Any]],
    kind: str = "classifier", rows: str = "depth",
) -> dict[str, Any]:  # fmt: skip
    """Divide the sums over predictions into results as `stepwell.results` describes them."""
    return {
        "kind": kind, "rows": rows, "test": sums.measures(classes), "churn": sums.churn(),
        "examples": sums.examples, "confusion": sums.confusion(classes), "costs": costs,
    }  # fmt: skip


def accuracy_on(net: NestedNet, batches: Examples, part: str) -> tuple[dict[str, float], str]:
    """Measure the accuracy of every ready depth on one part of the data, in the form of a card."""
    ready = [depth for depth, status in net.status.items() if status != "fresh"]
    with in_eval_mode(net):
        measured = evaluate(logits_where_it_is(net, ready), batches)
    accuracy = {depth: measured[f"{depth}/accuracy"] for depth in ready}
    return accuracy, f"{len(batches.examples)} {part} {batches.examples.NOUN}"


def fit_temperatures(net: NestedNet, validation: Examples) -> dict[str, float]:
    """The temperature of every depth that makes its probabilities likeliest on validation examples."""
    with in_eval_mode(net):
        logits, labels = gather_logits(logits_where_it_is(net), validation)
    return {depth: best_temperature(values, labels) for depth, values in logits.items()}


def logits_where_it_is(
    net: NestedNet, depths: Sequence[str] | None = None
) -> Callable[[Tensor], dict[str, Logits]]:
    """Give a function from inputs to logits by depth, on the network's device."""
    device = next(net.parameters()).device
    return lambda inputs: net.logits_by_depth(inputs.to(device), depths)
