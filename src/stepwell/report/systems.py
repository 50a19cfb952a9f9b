"""Parts of the page about what only one system measured: its key in results.json names them."""

from collections.abc import Callable, Mapping, Sequence

from stepwell.measures import MIXTURES
from stepwell.report.adders import adder_section, bits_section
from stepwell.report.full_net import full_net_note
from stepwell.report.glances import glances_section
from stepwell.report.grafting import against_shots, grafting_section
from stepwell.report.internal import internal_section
from stepwell.report.mixtures import mixture_section
from stepwell.report.networks import networks_section
from stepwell.report.resolution import resolution_section, widths_section
from stepwell.report.run_record import RunRecord
from stepwell.report.sequences import sequences_section
from stepwell.report.skipping import skipping_section

Part = Callable[[RunRecord, Mapping[str, str]], str]
#: Notes below the lead, sections, and figures that compare several runs, by system.
NOTES: Mapping[str, Part] = {"ekd": full_net_note}
SECTIONS: Mapping[str, Part] = {
    "adder_bits": bits_section,
    "bert": internal_section,
    "cnc": networks_section,
    "drnet": resolution_section,
    **{key: mixture_section(key) for key in MIXTURES},
    "glance": glances_section,
    "netgraft": grafting_section,
    "pixels": skipping_section,
    "pkkd": adder_section,
    "sequences": sequences_section,
    "skipping": skipping_section,
    "widths": widths_section,
}
COMPARISONS = {"netgraft": against_shots}


def notes(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Show notes of the systems that left results in the run."""
    return "\n".join(note(record, colours) for key, note in NOTES.items() if key in record.results)


def sections(record: RunRecord, colours: Mapping[str, str]) -> str:
    """Show sections of the systems that left results in the run."""
    return "\n".join(part(record, colours) for key, part in SECTIONS.items() if key in record.results)


def comparisons(records: Sequence[RunRecord]) -> list[str]:
    """Draw what the systems compare between runs."""
    return [figure for compare in COMPARISONS.values() for figure in compare(records)]
