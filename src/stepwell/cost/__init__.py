"""What a network costs: parameters, MACs, memory and measured time."""

from stepwell.cost.flops import count_macs
from stepwell.cost.latency import Latency, measure_latency
from stepwell.cost.memory import peak_bytes
from stepwell.cost.table import cost_of

__all__ = ["Latency", "cost_of", "count_macs", "measure_latency", "peak_bytes"]
