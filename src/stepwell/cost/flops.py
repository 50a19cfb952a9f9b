"""Multiply-accumulates, counted by torch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward pass of `module` on `x`, in eval mode.

    Half of the FLOPs that torch's counter sees in convolutions, matrix products and attention; norms,
    activations and pooling count nothing. The counter knows neither torch's fused attention on a CPU
    nor its fused transformer layer, so while it counts both run as the products they are made of.
    """
    return count_macs_of_steps([module], x)[0]


def count_macs_of_steps(steps: Sequence[nn.Module], x: Tensor) -> list[int]:
    """Multiply-accumulates of `steps` run one after the other on `x`, counted up to each of them."""
    were_training = [step.training for step in steps]
    fused = torch.backends.mha.get_fastpath_enabled()
    for step in steps:
        step.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    totals = []
    try:
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            for step in steps:
                x = step(x)
                totals.append(counter.get_total_flops() // 2)
    finally:
        for step, training in zip(steps, were_training, strict=True):
            step.train(training)
        torch.backends.mha.set_fastpath_enabled(fused)
    return totals
