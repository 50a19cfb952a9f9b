"""Measure trained networks from Python: depths, cascades, resolutions, fidelity."""

from stepwell.measure.cascade import calibrate_cascade, measure_cascade
from stepwell.measure.choices import choice_table, measure_choices, measure_speed
from stepwell.measure.data_parts import parts_for
from stepwell.measure.depths import cost_table, measure_depths
from stepwell.measure.fidelity import measure_fidelity

__all__ = [
    "calibrate_cascade",
    "choice_table",
    "cost_table",
    "measure_cascade",
    "measure_choices",
    "measure_depths",
    "measure_fidelity",
    "measure_speed",
    "parts_for",
]  # fmt: skip
