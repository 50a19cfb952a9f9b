"""Multiply-accumulates, counted by torch."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward pass of `module` on `x`, in eval mode.

    Half of the FLOPs that torch's counter sees in convolutions, matrix products and attention; norms,
    activations and pooling count nothing. Gradients stay enabled while counting: under `no_grad`
    attention takes kernels that the counter gets wrong.
    """
    was_training = module.training
    module.eval()
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            module(x)
    finally:
        module.train(was_training)
    return counter.get_total_flops() // 2
