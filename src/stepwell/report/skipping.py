"""The page's section about blocks that an image may skip, or run at some positions."""

from collections.abc import Mapping
from html import escape

from stepwell.measures import BLOCKS_SPEED, GATES
from stepwell.report.markup import as_count, as_percent, table
from stepwell.report.run_record import RunRecord, as_mapping, number
from stepwell.report.sections import speed_table


def skipping_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show how often each block runs, and the speed; nothing for a run without gates."""
    results = run.system_results(run.kind)
    rates = as_mapping(results.get("open"))
    words = GATES.get(run.kind)
    if words is None or not rates:
        return ""
    text = (
        f"An image runs {as_percent(number(results.get(words.key)))} {words.of_blocks} on average, and "
        f"costs {as_percent(number(results.get('cost')))} of the MACs of all blocks. The gates take "
        f"{as_count(results.get('gate_macs'))} MACs."
    )
    if (chance := number(results.get("random_accuracy"))) is not None:
        text += f" {words.at_random[0].upper()}{words.at_random[1:]}: {as_percent(chance)} accuracy."
    rows = [[name, as_percent(number(rate))] for name, rate in rates.items()]
    parts = ["<h3>Gates</h3>", f"<p>{escape(text)}</p>", table(("block", words.column), rows)]
    return "\n".join(filter(None, (*parts, speed_table(results, BLOCKS_SPEED))))
