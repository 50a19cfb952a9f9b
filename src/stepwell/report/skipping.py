"""The page's section about blocks that an image may skip, or run at some positions."""

from collections.abc import Mapping
from html import escape

from stepwell.measures import BLOCKS_SPEED
from stepwell.report.markup import as_count, as_percent, table
from stepwell.report.run_record import RunRecord, as_mapping, number
from stepwell.report.sections import speed_table

#: Words for shares of blocks, and for what stands beside the accuracy.
WORK = "' work"
AT_RANDOM = "If each block ran for as many images, drawn at random"


def skipping_section(run: RunRecord, colours: Mapping[str, str] | None = None) -> str:
    """Show how often each block runs, and the speed; nothing for a run without gates."""
    found, of_places = run.own(run.kind), run.kind == "pixels"
    rates = as_mapping(found.get("open"))
    if not rates:
        return ""
    text = (
        f"An image runs {as_percent(number(found.get('work' if of_places else 'mean')))} of the "
        f"blocks{WORK * of_places} on average, and costs {as_percent(number(found.get('cost')))} of "
        f"the MACs of all blocks. The gates take {as_count(found.get('gate_macs'))} MACs."
    )
    if (chance := number(found.get("random_accuracy"))) is not None:
        at_random = "With the mask of another image" if of_places else AT_RANDOM
        text += f" {at_random}: {as_percent(chance)} accuracy."
    rows = [[name, as_percent(number(rate))] for name, rate in rates.items()]
    column = "share of its MACs that runs" if of_places else "images that run it"
    parts = ["<h3>Gates</h3>", f"<p>{escape(text)}</p>", table(("block", column), rows)]
    return "\n".join(filter(None, (*parts, speed_table(found, BLOCKS_SPEED))))
