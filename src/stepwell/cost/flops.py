"""Multiply-accumulates, counted by torch."""

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
    was_training, fused = module.training, torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            module(x)
    finally:
        module.train(was_training)
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() // 2
