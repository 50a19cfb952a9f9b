"""Table of the costs of plain networks."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from stepwell.cost.flops import Inputs, count_macs
from stepwell.cost.latency import measure_latencies, synchronised
from stepwell.cost.memory import peak_bytes
from stepwell.train_mode import in_eval_mode

#: Number of turns in which networks are timed.
ROUNDS = 5


def cost_of(module: nn.Module, x: Inputs, *, seconds: float = 0.5) -> dict[str, Any]:
    """Costs of one forward pass of `module` on the batch `x`, without gradients.

    Returns:
        "params"; "macs" per example; "peak_bytes" of live tensors for the batch; "ms" per example (the
        median over calls), "ms_low" and "ms_high", its 10 % and 90 % quantiles; "batch" and "threads".
    """
    return costs_of({"": module}, x, seconds=seconds)[""]


def costs_of(
    modules: Mapping[str, nn.Module], x: Inputs, *, seconds: float = 0.5
) -> dict[str, dict[str, Any]]:
    """Costs of several networks by name, as in `cost_of`; timed in turns, for `seconds` each."""
    batch = len(x)
    with in_eval_mode(*modules.values()):
        macs = {name: count_macs(module, x) for name, module in modules.items()}
        with torch.inference_mode():
            peak = {name: peak_bytes(partial(m, x)) for name, m in modules.items()}
            calls = {name: partial(_run, module, x) for name, module in modules.items()}
            times = measure_latencies(calls, seconds=seconds, rounds=ROUNDS)
    return {
        name: {
            "params": sum(p.numel() for p in module.parameters()),
            "macs": macs[name] // batch,
            "peak_bytes": peak[name],
            "ms": times[name].ms / batch,
            "ms_low": times[name].low / batch,
            "ms_high": times[name].high / batch,
            "batch": batch,
            "threads": torch.get_num_threads(),
        }
        for name, module in modules.items()
    }


def _run(module: nn.Module, x: Inputs) -> None:
    synchronised(module(x))
