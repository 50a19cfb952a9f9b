"""All costs of one plain network in one call."""

from typing import Any

import torch
from torch import Tensor, nn

from stepwell.cost.flops import count_macs
from stepwell.cost.latency import measure_latency
from stepwell.cost.memory import peak_bytes


def cost_of(module: nn.Module, x: Tensor, *, seconds: float = 0.5) -> dict[str, Any]:
    """What one forward pass of `module` on the batch `x` costs, without gradients.

    Returns:
        "params"; "macs" an example; "peak_bytes" of live tensors for the batch; "ms" an example (the
        median over calls), "ms_low" and "ms_high" its 10 % and 90 % quantiles; "batch" and "threads".
    """
    was_training = module.training
    module.eval()
    batch = len(x)
    try:
        macs = count_macs(module, x)
        with torch.inference_mode():
            peak = peak_bytes(lambda: module(x))
            time = measure_latency(lambda: _synchronised(module(x)), seconds=seconds)
    finally:
        module.train(was_training)
    return {
        "params": sum(p.numel() for p in module.parameters()),
        "macs": macs // batch,
        "peak_bytes": peak,
        "ms": time.ms / batch,
        "ms_low": time.low / batch,
        "ms_high": time.high / batch,
        "batch": batch,
        "threads": torch.get_num_threads(),
    }


def _synchronised(output: Tensor) -> Tensor:
    if output.is_cuda:
        torch.cuda.synchronize(output.device)
    return output
