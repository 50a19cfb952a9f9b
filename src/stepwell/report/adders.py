"""The page's section about an adder network beside its convolutional twin."""

from collections.abc import Mapping

from stepwell.measures import MEASURES
from stepwell.report.markup import as_percent, table, written
from stepwell.report.run_record import RunRecord, as_mapping, number

NUMBERS = ("accuracy", "additions", "multiplications", "model_uj", "ms")
BITS = (
    "Inputs and filters of the adder layers are whole numbers of this many bits, without training; all "
    "other layers are float32."
)
NOTE = (
    "µJ: the arithmetic of one image by a model (0.9 pJ an addition, 3.7 pJ a multiplication of "
    "float32, Horowitz 2014), without memory. It is no measurement; the milliseconds are."
)

BEST = (
    "Both networks have the weights of the epoch that was best for the adder network on validation "
    "images, so the twin's accuracy may be below that of its own best epoch."
)


def adder_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show accuracy, operations, energy and time of both networks, and gradients by layer."""
    results = run.system_results("pkkd")
    twin, gradients = as_mapping(results.get("twin")), as_mapping(results.get("gradients"))
    if not twin or not run.rows:
        return ""
    full = run.rows[-1]
    adder = {**as_mapping(as_mapping(run.results.get("costs")).get(full))}
    adder["accuracy"] = run.score(full, "accuracy")
    if "ms" in results:  # beside the twin's: those of a later `eval` may be of other threads
        adder["ms"] = results["ms"]
    rows = [
        [name, *(written(MEASURES[key], values.get(key)) for key in NUMBERS)]
        for name, values in (("adder network", adder), ("convolutional twin", twin))
    ]
    layers = [
        [name, "" if (size := number(value)) is None else f"{size:.2e}"]
        for name, value in gradients.items()
    ]
    below = f"{NOTE} {BEST}" if number(run.data.get("validation")) else NOTE
    note = "Root mean square on one batch after the training, before the local rate makes all equal."
    return "\n".join(
        [
            "<h3>Additions in place of multiplications</h3>",
            table(("", *(MEASURES[key].title for key in NUMBERS)), rows, below),
            "<h3>Gradients of the adder layers</h3>",
            table(("layer", "filter gradient"), layers, note),
        ]
    )


def bits_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show the accuracy of every depth by the number of bits of its adder layers."""
    accuracies = {
        depth: as_mapping(by_bits)
        for depth, by_bits in as_mapping(run.results.get("adder_bits")).items()
    }
    if not accuracies:
        return ""
    names = list(dict.fromkeys(name for by_bits in accuracies.values() for name in by_bits))
    rows = [
        [depth, *(as_percent(by_bits.get(name)) for name in names)]
        for depth, by_bits in accuracies.items()
    ]
    head = (run.row, *(name if name == "float" else f"{name} bits" for name in names))
    return "<h3>Adder layers of few bits</h3>" + table(head, rows, BITS)
