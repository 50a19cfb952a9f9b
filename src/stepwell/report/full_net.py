"""The page's note on the full net of `stepwell train ekd`: what training the sub-nets did to it."""

from collections.abc import Mapping

from stepwell.measures import MEASURES
from stepwell.report.markup import warning, written
from stepwell.report.run_record import RunRecord, as_mapping, number


def full_net_note(record: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Compare the full net before and after its sub-nets trained; nothing if it was not watched."""
    full_net = as_mapping(record.system_results("ekd").get("full_net"))
    before, after = number(full_net.get("before")), number(full_net.get("after"))
    if before is None or after is None:
        return ""
    limit = number(record.arguments.get("max_drop"))
    measure = MEASURES[str(full_net.get("score", "accuracy"))]
    word = measure.title
    start = f"The full net lost more than {limit or 0.0:g} points of validation {word}"
    if full_net.get("rolled_back"):
        return warning(
            f"{start} while its sub-nets trained. It was rolled back to its state before "
            f"({written(measure, before)}), and only the sub-nets' own norms were trained."
        )
    change = f"{written(measure, before)} before its sub-nets trained, {written(measure, after)} after"
    if limit is not None and 100 * (before - after) > limit:
        return warning(f"{start}: {change}. --on-drop rollback keeps it as it was.")
    return f'<p class="note">Validation {word} of the full net: {change}.</p>'
