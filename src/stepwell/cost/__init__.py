"""Costs of a network: parameters, MACs, memory and measured time."""

from stepwell.cost.energy import energy
from stepwell.cost.flops import (
    count_joint_macs,
    count_macs,
    count_macs_of_steps,
    count_operations,
)
from stepwell.cost.latency import Latency, mean_of_medians, measure_latencies, time_each
from stepwell.cost.table import cost_of, costs_of, peak_bytes

__all__ = [
    "Latency", "cost_of", "costs_of", "count_joint_macs", "count_macs", "count_macs_of_steps",
    "count_operations", "energy", "mean_of_medians", "measure_latencies", "peak_bytes", "time_each",
]  # fmt: skip
