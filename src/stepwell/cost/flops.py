"""Multiply-accumulates (MACs), counted by torch."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepwell.train_mode import in_eval_mode

Inputs = Shaped[Tensor, "batch ..."]
#: The operator of adder layers.
ADDER = "stepwell.adder_conv2d"


def count_macs(module: nn.Module, x: Inputs) -> int:
    """Multiply-accumulates of one forward pass of `module` on `x`, in eval mode.

    Half of the FLOPs that torch counts in convolutions, matrix products and attention. Norms,
    activations and pooling count as zero. Torch's fused attention on a CPU and its fused transformer
    layer run unfused here, because the counter misses them.
    """
    return count_macs_of_steps([module], x)[0]


def count_joint_macs(net: nn.Module, x: Inputs) -> int:
    """Multiply-accumulates of one `net.forward_all(x)`, where common prefixes run once."""

    class AllDepths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> object:
            forward_all: Any = net.forward_all
            return forward_all(x)

    return count_macs(AllDepths(), x)


def count_operations(module: nn.Module, x: Inputs) -> dict[str, int]:
    """Count "additions" and "multiplications" of one forward pass of `module` on `x`, in eval mode.

    A multiply-accumulate is one of each; a pair of numbers in an adder layer is two additions, and
    counts as a multiply-accumulate elsewhere. The rest counts as zero, as in `count_macs`.
    """
    macs, pairs = _count([module], x)[0]
    return {"additions": macs + pairs, "multiplications": macs - pairs}


def count_macs_of_steps(steps: Sequence[nn.Module], x: Inputs) -> list[int]:
    """Multiply-accumulates of `steps` in sequence on `x`, summed up to each step."""
    return [macs for macs, _ in _count(steps, x)]


def _count(steps: Sequence[nn.Module], x: Inputs) -> list[tuple[int, int]]:
    """Multiply-accumulates up to each step, and how many of them are pairs in adder layers."""
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
                counts = counter.get_flop_counts().get("Global", {})  # nothing was counted yet
                pairs = sum(flops for operator, flops in counts.items() if str(operator) == ADDER)
                totals.append((counter.get_total_flops() // 2, pairs // 2))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return totals
