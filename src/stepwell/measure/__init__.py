"""Measure trained networks from Python: depths, cascades, resolutions, fidelity.

The names below are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwell.measure.cascade import calibrate_cascade as calibrate_cascade
    from stepwell.measure.cascade import measure_cascade as measure_cascade
    from stepwell.measure.data_parts import parts_for as parts_for
    from stepwell.measure.depths import cost_table as cost_table
    from stepwell.measure.depths import measure_depths as measure_depths
    from stepwell.measure.fidelity import measure_fidelity as measure_fidelity
    from stepwell.measure.resolution import choice_table as choice_table
    from stepwell.measure.resolution import measure_resolution as measure_resolution
    from stepwell.measure.resolution import measure_speed as measure_speed

_WHERE = {
    "calibrate_cascade": "cascade",
    "measure_cascade": "cascade",
    "parts_for": "data_parts",
    "cost_table": "depths",
    "measure_depths": "depths",
    "measure_fidelity": "fidelity",
    "choice_table": "resolution",
    "measure_resolution": "resolution",
    "measure_speed": "resolution",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"stepwell.measure.{_WHERE[name]}"), name)
