"""What a choice costs beyond its budget."""

import torch
from jaxtyping import Float
from torch import Tensor

from stepwell.losses.precision import in_full_precision


@in_full_precision
def cost_above_target(
    choice: Float[Tensor, "batch choices"], costs: Float[Tensor, " choices"], target: float
) -> Float[Tensor, ""]:
    """How far the mean cost of a batch lies above its target (Zhu et al. 2021, section 3.2).

        max(0, (mean over i of sum over j of costs_j · choice_ij - target) / (max costs - min costs))

    Below the target it is 0, and so is its gradient.

    Args:
        choice: (batch, choices), what share of each choice an image takes; rows sum to 1.
        costs: of each choice, in the unit of `target`, such as MACs.

    Raises:
        ValueError: all choices cost the same, so no target tells them apart.
    """
    spread = costs.max() - costs.min()
    if not spread > 0:
        raise ValueError(f"all choices cost the same, {costs.tolist()}: no target tells them apart")
    return torch.relu(((choice @ costs).mean() - target) / spread)
