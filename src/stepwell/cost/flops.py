"""Multiply-accumulates, counted by torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepwell.train_mode import in_eval_mode


def count_macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward pass of `module` on `x`, in eval mode.

    Half of the FLOPs that torch's counter sees in convolutions, matrix products and attention; norms,
    activations and pooling count nothing. The counter knows neither torch's fused attention on a CPU
    nor its fused transformer layer, so while it counts both run as the products they are made of.
    """
    return count_macs_of_steps([module], x)[0]


def count_joint_macs(net: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one `net.forward_all(x)`, in which common prefixes run once."""

    class AllDepths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> object:
            forward_all: Any = net.forward_all
            return forward_all(x)

    return count_macs(AllDepths(), x)


def count_macs_of_steps(steps: Sequence[nn.Module], x: Tensor) -> list[int]:
    """Multiply-accumulates of `steps` run one after the other on `x`, counted up to each of them."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    totals = []
    try:
        with (
            in_eval_mode(*steps),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            for step in steps:
                x = step(x)
                totals.append(counter.get_total_flops() // 2)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return totals
