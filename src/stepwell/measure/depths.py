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
from stepwell.types import Logits

Examples = Batches | TextBatches
#: Sums over predictions by kind of network; the other kinds have a `Tally`.
TALLIES: Mapping[str, type[Tally]] = {
    "text": ClassTally, "sequence": ClassTally, "text-numbers": NumberTally
}  # fmt: skip


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
        "confusion", "costs"; and what `mixture_record` gives.
    """
    use_break_even(net.module, {})  # answers do not depend on a clock
    with in_eval_mode(net):
        sums = tally(logits_where_it_is(net), test, tally_of(kind))
        record = mixture_record(net, test)
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


def measure_tempered(
    net: NestedNet, test: Examples, temperatures: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Likelihood and calibration of every depth whose logits are divided by its temperature.

    Returns:
        By depth: "temperature", and the "nll" and "ece" of `evaluate`.
    """
    predict = logits_where_it_is(net, tuple(temperatures))

    def tempered(inputs: Tensor) -> dict[str, Logits]:
        return {depth: values / temperatures[depth] for depth, values in predict(inputs).items()}

    with in_eval_mode(net):
        measured = evaluate(tempered, test)
    return {
        depth: {"temperature": temperature} | {m: measured[f"{depth}/{m}"] for m in ("nll", "ece")}
        for depth, temperature in temperatures.items()
    }


def logits_where_it_is(
    net: NestedNet, depths: Sequence[str] | None = None
) -> Callable[[Tensor], dict[str, Logits]]:
    """Give a function from inputs to logits by depth, on the network's device."""
    device = next(net.parameters()).device
    return lambda inputs: net.logits_by_depth(inputs.to(device), depths)
