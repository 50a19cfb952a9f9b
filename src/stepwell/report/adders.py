"""The page's section about an adder network beside its convolutional twin."""

from collections.abc import Mapping

from stepwell.measures import MEASURES
from stepwell.report.markup import table, written
from stepwell.report.run_record import RunRecord, as_mapping, number

NUMBERS = ("accuracy", "additions", "multiplications", "model_uj", "ms")
NOTE = (
    "µJ: the arithmetic of one image by a model (0.9 pJ an addition, 3.7 pJ a multiplication of "
    "float32, Horowitz 2014), without memory. It is no measurement; the milliseconds are."
)


def adder_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show accuracy, operations, energy and time of both networks, and gradients by layer."""
    found = run.own("pkkd")
    twin, gradients = as_mapping(found.get("twin")), as_mapping(found.get("gradients"))
    if not twin or not run.rows:
        return ""
    full = run.rows[-1]
    own = {**as_mapping(as_mapping(run.results.get("costs")).get(full))}
    own["accuracy"] = run.score(full, "accuracy")
    rows = [
        [name, *(written(MEASURES[key], values.get(key)) for key in NUMBERS)]
        for name, values in (("adder network", own), ("convolutional twin", twin))
    ]
    layers = [
        [name, "" if (size := number(value)) is None else f"{size:.2e}"]
        for name, value in gradients.items()
    ]
    note = "Root mean square on one batch after the training, before the local rate makes all equal."
    return "\n".join(
        [
            "<h3>Additions in place of multiplications</h3>",
            table(("", *(MEASURES[key].title for key in NUMBERS)), rows, NOTE),
            "<h3>Gradients of the adder layers</h3>",
            table(("layer", "filter gradient"), layers, note),
        ]
    )
